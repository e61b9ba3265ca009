"""Spoken digits: the Free Spoken Digit Dataset, or touch tones, which need no files."""

import dataclasses
import functools
import io
import itertools
import math
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from bmx.core import streams
from bmx.core.data import Examples, Spec
from bmx.core.errors import InputError, did_you_mean
from bmx.core.ranges import check_number
from bmx.data.arrays import RESIDENT_BYTES
from bmx.data.audio.augment import SpeechAugment
from bmx.data.audio.compose import SPLITS, Clip, Sequences
from bmx.data.audio.features import LogMel
from bmx.data.audio.single import ImageData, Single
from bmx.data.audio.units import Units
from bmx.data.audio.utterances import FeatureData, blank_spec
from bmx.data.audio.waves import decode
from bmx.data.files import names_below
from bmx.data.records import no_file
from bmx.data.shapes import shapes
from bmx.data.text.targets import TargetData, target_of, target_spec
from bmx.data.text.tokenizer import Tokenizer
from bmx.runtime.storage import place

SOURCES = ('fsdd', 'tones')
RATE = 8000
NAMES = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
FILE = re.compile(r'(?:.*/)?([0-9])_([a-z]+)_([0-9]+)\.wav')
# Indices of the recordings of a digit by a speaker: the published test set, and a part of the rest.
PARTS = {'test': range(5), 'valid': range(5, 10), 'train': range(10, 1000)}
LOW, HIGH = (697, 770, 852, 941), (1209, 1336, 1477)  # Hz, of the rows and columns of a keypad
KEYS = '123456789*0#'
TONES = 8  # clips of each digit and split


def sequences(
  source: str = 'fsdd',
  path: str = '',
  split: str = 'train',
  left_out: str = '',
  count: int = 10_000,
  words: tuple[int, int] = (1, 4),
  pauses: tuple[float, float] = (0.05, 0.2),
  noise: tuple[float, float] = (1e-3, 1e-2),
  seconds: float = 3.2,
  mels: int = 40,
  window: float = 0.032,
  hop: float = 0.01,
  augment: SpeechAugment | None = None,
  tokenizer: Tokenizer | None = None,
  length: int = 0,
  sequence_seed: int = 0,
  fitted: Mapping[str, Any] | None = None,
  read: bool = True,
  seed: int = 0,
  train: bool = True,
) -> Examples:
  """Returns features of composed sequences of spoken digits, whose units are the ten words.

  Training composes a new sequence at each position, of the run's seed; evaluation reads `count`
  sequences of `sequence_seed`. The splits have recordings of their own.

  Args:
    source: 'fsdd', files; or 'tones', touch tones of ITU-T Q.23, which need none.
    path: of the Free Spoken Digit Dataset: the folder of DIGIT_SPEAKER_INDEX.wav, or a .tar of it.
    split: 'train', 'valid', 'test', or 'left_out': all recordings of the speaker `left_out`.
    left_out: speaker whose recordings the other splits do without; '' is nobody.
    count: sequences of an epoch.
    words: least and largest number of digits of a sequence.
    pauses: least and largest pause, in seconds.
    noise: least and largest standard deviation of white noise; the largest sample of a digit is 1.
    seconds: longest sequence.
    mels: bands of the features.
    window: seconds of a frame.
    hop: seconds between frames.
    augment: of training, such as `bmx.data.audio.augment:SpeechAugment`.
    tokenizer: of transcripts for a decoder, `tokens` and `targets`; None: `transcript`, for CTC.
    length: tokens of a transcript for a decoder, its end included; 0: for CTC.
    sequence_seed: of the sequences that evaluation reads.
    fitted: `state()` of the training data; features are computed as theirs.
    read: False returns shapes only.
    seed: of training sequences and augmentation.
    train: whether sequences follow positions and are augmented.

  Raises:
    InputError: an unknown word, a number outside its range, files that are missing or damaged.
  """
  _check(source, split, left_out)
  check_number('count', count, at_least=1)
  log_mel = _log_mel(fitted, mels, window, hop)
  units = Units(NAMES, 'words')
  slowest = min(augment.speeds, default=1.0) if augment and train else 1.0
  known = dict((fitted or {}).get('audio', {}))
  samples = int(known.get('samples') or math.ceil(seconds * RATE / slowest))
  frames = log_mel.frames(samples)
  if not read:
    if length:
      return shapes(blank_spec(frames, mels, 0) | target_spec(length), length=length)
    return shapes(blank_spec(frames, mels, words[1]), **units.facts)
  target = target_of(tokenizer, length, fitted=fitted)
  clips = _clips(source, path, split, left_out)
  composed = Sequences(clips, RATE, split, count, words, pauses, noise, seconds,
                       seed if train else sequence_seed, train)  # fmt: skip
  if target is not None:
    spell = lambda ids: target.encode(units.decode(ids), 'a sequence of digits')
    composed = dataclasses.replace(composed, spell=spell, units=target.length)
  named = units.facts if target is None else {}
  facts = {'source': f'{count} sequences of {source}, {split}', **named}
  facts['features'] = {**log_mel.state(), 'samples': samples, 'fill': False}
  state = known or {'log_mel': log_mel.state(), 'samples': samples}
  fit = {'audio': state}
  if target is None:
    fit = {'class_names': units.facts['class_names'], 'audio': state | {'units': units.facts}}
  data = FeatureData(composed, log_mel, frames, facts, fit, seed, train, augment)
  found = data if train or data.bytes > RESIDENT_BYTES else data.computed()
  return found if target is None else TargetData(found, target)


def digits(
  source: str = 'fsdd',
  path: str = '',
  split: str = 'train',
  left_out: str = '',
  seconds: float = 1.0,
  mels: int = 40,
  window: float = 0.032,
  hop: float = 0.01,
  augment: SpeechAugment | None = None,
  fitted: Mapping[str, Any] | None = None,
  read: bool = True,
  seed: int = 0,
  train: bool = True,
) -> Examples:
  """Returns single spoken digits as images, `image` [T, M, 1], with `label`, for a classifier.

  Args:
    source: see `sequences`.
    path: see `sequences`.
    split: see `sequences`.
    left_out: see `sequences`.
    seconds: of a digit; longer ones are cut off.
    mels: bands of the features.
    window: seconds of a frame.
    hop: seconds between frames.
    augment: of training, such as `bmx.data.audio.augment:SpeechAugment`.
    fitted: `state()` of the training data; features are computed as theirs.
    read: False returns shapes only.
    seed: of augmentation.
    train: whether digits are augmented.

  Raises:
    InputError: an unknown word, a number outside its range, files that are missing or damaged.
  """
  _check(source, split, left_out)
  check_number('seconds', seconds, above=0)
  log_mel = _log_mel(fitted, mels, window, hop)
  frames = log_mel.frames(round(seconds * RATE))
  facts = {'source': f'{source}, {split}', 'num_classes': len(NAMES), 'class_names': list(NAMES)}
  if not read:
    spec = {'image': Spec((frames, mels, 1), np.dtype(np.float32))}
    return shapes(spec | {'label': Spec((), np.dtype(np.int32))}, **facts)
  clips = _clips(source, path, split, left_out)
  samples = round(seconds * RATE)
  single = Single([clip.wave for clip in clips], samples, [{'speaker': c.speaker} for c in clips],
                  [clip.word for clip in clips])  # fmt: skip
  fit = {'class_names': list(NAMES), 'sounds': {'log_mel': log_mel.state(), 'samples': samples}}
  return ImageData(FeatureData(single, log_mel, frames, facts, fit, seed, train, augment))


def _check(source: str, split: str, left_out: str) -> None:
  for name, value, known in (('source', source, SOURCES), ('split', split, SPLITS)):
    if value not in known:
      raise InputError(
        f'{name}={value!r}: expected one of {", ".join(known)}{did_you_mean(value, known)}'
      )
  if split == 'left_out' and not left_out:
    raise InputError("split='left_out': expected the name of a speaker in left_out")


def _log_mel(fitted: Mapping[str, Any] | None, mels: int, window: float, hop: float) -> LogMel:
  known = dict((fitted or {}).get('audio') or (fitted or {}).get('sounds') or {})
  return LogMel.restore(known['log_mel']) if known else LogMel(RATE, mels, window, hop)


def _clips(source: str, path: str, split: str, left_out: str) -> list[Clip]:
  """Returns the recordings of a split."""
  if source == 'tones':
    if left_out:
      raise InputError(f'left_out={left_out!r}: tones have no speakers; leave it out')
    return tones(split)
  if not path:
    raise InputError('data.path: expected the folder recordings of the Free Spoken Digit Dataset, '
                     'or a .tar of it, such as --data.path=recordings')  # fmt: skip
  found, speakers = [], set()
  for name, data in _files(path):
    match = FILE.fullmatch(name)
    if match is None:
      continue
    digit, speaker, number = int(match[1]), match[2], int(match[3])
    speakers.add(speaker)
    chosen = speaker == left_out if split == 'left_out' else (
      speaker != left_out and number in PARTS[split]
    )  # fmt: skip
    if chosen:
      found.append(Clip(decode(data(), f'{path}/{name}', RATE).samples, digit + 1, speaker))
  if left_out and left_out not in speakers:
    raise InputError(f'left_out={left_out!r}: expected one of {", ".join(sorted(speakers))}')
  if not found:
    raise InputError(f'{path}: expected recordings DIGIT_SPEAKER_INDEX.wav of the split {split}')
  return found


def _files(path: str) -> Iterator[tuple[str, Callable[[], bytes]]]:
  """Yields (name, function that reads it) of the recordings in a folder or a .tar, sorted."""
  source = place(path)
  if source.is_dir():
    for name in names_below(source, ('.wav',), 'recordings', warn=False):
      yield name, functools.partial(lambda n: (source / n).read_bytes(), name)
    return
  if not source.is_file():
    raise no_file(source)
  try:
    with tarfile.open(fileobj=io.BytesIO(source.read_bytes())) as archive:
      for member in sorted(archive.getmembers(), key=lambda m: m.name):
        if member.isfile():
          yield member.name, functools.partial(_member, archive, member)
  except (tarfile.TarError, EOFError, OSError) as error:
    raise InputError(f'{path}: expected a folder of recordings, or a .tar of it: {error}') from None


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
  file = archive.extractfile(member)
  return file.read() if file is not None else b''


def tones(split: str) -> list[Clip]:
  """Returns touch tones of the ten digits, of random lengths, levels and noise.

  Source: ITU-T Q.23: a digit is the sum of two sines, of its row and its column.
  """
  random = streams.generator(0, streams.SPEECH, (1 << 60) + SPLITS.index(split))
  found = []
  for digit, _ in itertools.product(range(10), range(TONES)):
    row, column = divmod(KEYS.index(str(digit)), 3)
    time = np.arange(round(RATE * random.uniform(0.1, 0.25))) / RATE
    levels = random.uniform(0.5, 1, 2)
    waves = [a * np.sin(2 * np.pi * f * time + random.uniform(0, 6))
             for a, f in zip(levels, (LOW[row], HIGH[column]), strict=True)]  # fmt: skip
    wave = np.sum(waves, 0) + random.normal(0, 0.03, len(time))
    found.append(Clip(wave.astype(np.float32), digit + 1, 'keypad'))
  return found
