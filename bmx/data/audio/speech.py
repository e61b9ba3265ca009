"""Speech in files: a folder or a table of audio with transcripts -> log-mel features."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.data import Examples
from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.core.types import HostBatch
from bmx.data.arrays import RESIDENT_BYTES, split_indices
from bmx.data.audio.augment import SpeechAugment
from bmx.data.audio.features import Kind, LogMel
from bmx.data.audio.recordings import Waves, recordings
from bmx.data.audio.units import UnitKind, Units, padded
from bmx.data.audio.utterances import FeatureData, blank_spec
from bmx.data.files import check_unreadable
from bmx.data.shapes import shapes
from bmx.data.text.targets import Target, TargetData, target_of, target_spec
from bmx.data.text.tokenizer import Tokenizer

log = logging.getLogger('bmx')
SECONDS, UNITS = 20.0, 100  # of an example where files are not read


def speech(
  path: str = '',
  file: str = 'file',
  text: str = 'text',
  units: UnitKind = 'characters',
  lower: bool = True,
  rate: int = 16000,
  mels: int = 80,
  window: float = 0.025,
  hop: float = 0.01,
  normalize: bool = True,
  kind: Kind = 'mel',
  fill: bool = False,
  seconds: float = 0.0,
  split: str = 'all',
  holdout: float = 0.0,
  augment: SpeechAugment | None = None,
  tokenizer: Tokenizer | None = None,
  length: int = 0,
  begin: tuple[int, ...] = (),
  unreadable: str = 'refuse',
  fitted: Mapping[str, Any] | None = None,
  read: bool = True,
  seed: int = 0,
  train: bool = True,
) -> Examples:
  """Reads files of audio -> `features`, `num_frames`, and `transcript` where texts are known.

  Files are WAV or FLAC. Several channels are mixed down to their mean, and other rates are
  resampled; the log says so. Features without augmentation of up to 1 GiB are computed once.

  Args:
    path: folder with transcripts.csv (.tsv, .jsonl), or a table of files and texts; to predict,
      also a folder of files, or a file.
    file: column of the table with the path of a file, relative to the table.
    text: column of the table with its transcript.
    units: of the model's outputs: 'characters', or 'words' where there are few.
    lower: whether transcripts are written in lower case.
    rate: samples a second of the features' input.
    mels: bands of the features.
    window: seconds of a frame.
    hop: seconds between frames.
    normalize: whether each band of a recording gets mean 0 and standard deviation 1.
    kind: of the features, 'mel' or 'whisper', see `features.LogMel`.
    fill: whether waves are filled up with zeros to `seconds`, and all frames count, as Whisper
      reads them; else features are padded, and models ignore the padding.
    seconds: longest recording; 0: that of the training data.
    split: 'all', 'train' or 'valid'.
    holdout: share of 'valid'.
    augment: of training, such as `bmx.data.audio.augment:SpeechAugment`.
    tokenizer: of transcripts for a decoder, `tokens` and `targets`; None: `transcript`, for CTC.
    length: tokens of a transcript for a decoder, begin and end included; 0: for CTC.
    begin: ids before a transcript; () is those that the tokenizer puts there, or else its end.
    unreadable: 'refuse' files that cannot be read, are empty, silent or too long, or 'skip' them
      and list their names.
    fitted: `state()` of the training data, whose units and features count.
    read: False returns shapes only.
    seed: of augmentation.
    train: whether examples are augmented.

  Raises:
    InputError: a file that cannot be read (its name), a transcript with other units than those of
      the training data, no file at all.
  """
  check_unreadable(unreadable)
  Units.check(units)
  check_number('seconds', seconds, at_least=0)
  log_mel = LogMel(rate, mels, window, hop, normalize=normalize, kind=kind)
  if fill and not seconds:
    raise InputError('fill=True: expected the length that waves are filled up to; set '
                     '--data.seconds=30')  # fmt: skip
  known = dict((fitted or {}).get('audio', {}))
  if known:
    log_mel, fill = LogMel.restore(known['log_mel']), bool(known.get('fill'))
  slowest = min(augment.speeds, default=1.0) if augment and train and not fill else 1.0
  if not read:
    frames = log_mel.frames(math.ceil((seconds or SECONDS) * log_mel.rate / slowest))
    own = target_spec(length) if length else {}
    return shapes(blank_spec(frames, log_mel.mels, 0 if length else UNITS) | own, length=length)
  target = target_of(tokenizer, length, begin, lower, fitted)
  most = int(known['samples']) if known else round(seconds * log_mel.rate)
  files = recordings(path, file, text, predicted=not train and bool(known))
  waves = Waves(files, log_mel.rate, most, unreadable)
  labeled = all(t is not None for t in waves.files.texts)
  found = target or _units(known, waves.files.texts, units, lower)
  chosen = split_indices(len(waves.lengths), split, holdout, ('all', 'train', 'valid'))
  if not known:
    longest = max(most, int(waves.lengths.max()))
    samples = math.ceil(longest / slowest)
    if fill:
      samples = most
    known = {'log_mel': log_mel.state(), 'samples': samples, 'fill': fill}
    known |= {} if target else {'units': found.facts}
    _describe(path, waves, chosen, found)
  source = Transcribed(waves.take(chosen), found, labeled)
  facts = {'source': f'{path}, {split}', **found.facts}
  facts['features'] = {**log_mel.state(), 'samples': known['samples'], 'fill': fill}
  if waves.failed:
    facts['unreadable'] = waves.failed
  frames = log_mel.frames(int(known['samples']))
  state = {'audio': known}
  if isinstance(found, Units):
    state |= {'class_names': found.facts['class_names']}
  data = FeatureData(source, log_mel, frames, facts, state, seed, train, augment,
                     int(known['samples']) if fill else 0)  # fmt: skip
  plain = augment is None or not train
  made = data.computed() if plain and data.bytes <= RESIDENT_BYTES else data
  if target is None:
    return made
  texts = tuple(target.plain(t or '') for t in source.waves.files.texts) if labeled else ()
  return TargetData(made, target, texts=texts)


def _units(
  known: Mapping[str, Any], texts: Sequence[str | None], kind: UnitKind, lower: bool
) -> Units:
  if known:
    return Units.of(known['units'])
  return Units.learn((t for t in texts if t is not None), kind, lower)


def _describe(path: str, waves: Waves, chosen: np.ndarray, units: Units | Target) -> None:
  """Logs the size of the training data."""
  seconds = waves.lengths[chosen].sum() / waves.rate
  if isinstance(units, Units):
    size, kind = len(units.names), units.kind
  else:
    size, kind = units.tokenizer.size, 'tokens'
  log.info('%s: %d recordings, %.1f minutes, %d %s', path, len(chosen), seconds / 60, size, kind)


@dataclasses.dataclass
class Transcribed:
  """Recordings and the ids of their transcripts.

  Attributes:
    waves: of the files.
    alphabet: units of transcripts, or their tokens.
    labeled: whether files have transcripts.
  """

  waves: Waves
  alphabet: Units | Target
  labeled: bool

  def __post_init__(self):
    files = self.waves.files
    self.size = len(files.names)
    self.ids: list[list[int]] = [[] for _ in files.names]
    if self.labeled:
      pairs = zip(files.names, files.texts, strict=True)
      self.ids = [
        self.alphabet.encode(text or '', f'{files.path_of(name)}: the transcript')
        for name, text in pairs
      ]
    self.units = max(1, *map(len, self.ids)) if self.labeled else 0

  def wave(self, index: int, position: int) -> tuple[np.ndarray, Sequence[int]]:
    """Returns a recording and the ids of its transcript."""
    return self.waves.wave(index), self.ids[index]

  def describe(self, index: int) -> dict[str, Any]:
    """The name of a file."""
    return {'file': self.waves.files.names[index]}

  def digest(self) -> str:
    """Returns the SHA-256 of names, transcripts and sizes of the files."""
    return self.waves.files.digest()

  def outline(self) -> HostBatch:
    """Returns `samples` of each recording, and transcripts where there are any."""
    if not self.labeled:
      return {}
    return {'samples': self.waves.lengths, **padded(self.ids)}
