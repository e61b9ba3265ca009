"""Speech in files: a folder or a table of audio with transcripts -> log-mel features."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.data import Examples
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
  seconds: float = 0.0,
  split: str = 'all',
  holdout: float = 0.0,
  augment: SpeechAugment | None = None,
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
    seconds: longest recording; 0: that of the training data.
    split: 'all', 'train' or 'valid'.
    holdout: share of 'valid'.
    augment: of training, such as `bmx.data.audio.augment:SpeechAugment`.
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
  known = dict((fitted or {}).get('audio', {}))
  if known:
    log_mel = LogMel.restore(known['log_mel'])
  slowest = min(augment.speeds, default=1.0) if augment and train else 1.0
  if not read:
    frames = log_mel.frames(math.ceil((seconds or SECONDS) * log_mel.rate / slowest))
    return shapes(blank_spec(frames, log_mel.mels, UNITS))
  most = int(known['samples']) if known else round(seconds * log_mel.rate)
  files = recordings(path, file, text, predicted=not train and bool(known))
  waves = Waves(files, log_mel.rate, most, unreadable)
  labeled = all(t is not None for t in waves.files.texts)
  found = _units(known, waves.files.texts, units, lower)
  chosen = split_indices(len(waves.lengths), split, holdout, ('all', 'train', 'valid'))
  if not known:
    longest = max(most, int(waves.lengths.max()))
    samples = math.ceil(longest / slowest)
    known = {'log_mel': log_mel.state(), 'samples': samples, 'units': found.facts}
    _describe(path, waves, chosen, found)
  source = Transcribed(waves.take(chosen), found, labeled)
  facts = {'source': f'{path}, {split}', **found.facts}
  if waves.failed:
    facts['unreadable'] = waves.failed
  frames = log_mel.frames(int(known['samples']))
  state = {'class_names': found.facts['class_names'], 'audio': known}
  data = FeatureData(source, log_mel, frames, facts, state, seed, train, augment)
  plain = augment is None or not train
  return data.computed() if plain and data.bytes <= RESIDENT_BYTES else data


def _units(
  known: Mapping[str, Any], texts: Sequence[str | None], kind: UnitKind, lower: bool
) -> Units:
  if known:
    return Units.of(known['units'])
  return Units.learn((t for t in texts if t is not None), kind, lower)


def _describe(path: str, waves: Waves, chosen: np.ndarray, units: Units) -> None:
  """Logs the size of the training data."""
  seconds = waves.lengths[chosen].sum() / waves.rate
  log.info('%s: %d recordings, %.1f minutes, %d %s', path, len(chosen), seconds / 60,
           len(units.names), units.kind)  # fmt: skip


@dataclasses.dataclass
class Transcribed:
  """Recordings and the ids of their transcripts.

  Attributes:
    waves: of the files.
    alphabet: units of transcripts.
    labeled: whether files have transcripts.
  """

  waves: Waves
  alphabet: Units
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
