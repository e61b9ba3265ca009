"""Sequences of spoken words, composed of recordings of single words.

A sequence is a function of a seed, the split and its number alone.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bmx.core import streams
from bmx.core.errors import InputError
from bmx.core.types import HostBatch

SPLITS = ('train', 'valid', 'test', 'left_out')
WORDS = 1  # draws 1, 2, ...: of the first word, the second, ...


@dataclasses.dataclass(frozen=True)
class Clip:
  """A recording of one word.

  Attributes:
    wave: float32 [n].
    word: id of its unit, from 1 on.
    speaker: who says it.
  """

  wave: np.ndarray
  word: int
  speaker: str


@dataclasses.dataclass
class Sequences:
  """Sequences of words of one speaker, with pauses and noise.

  Each clip is scaled to a largest sample of 1. The speaker, the number of words, the words, the
  pauses before, between and behind them, and the level of the noise are drawn. A word that no
  longer fits into `seconds` is left out, unless it is the first one.

  Attributes:
    clips: recordings.
    rate: of the clips, in samples a second.
    split: of `SPLITS`; sequences of two splits are drawn apart.
    count: number of sequences; training draws new ones at each position.
    words: least and largest number of words.
    pauses: least and largest pause, in seconds.
    noise: least and largest standard deviation of white noise.
    seconds: longest sequence.
    seed: of the draws.
    train: whether `position` numbers a sequence, and not its index.
    spell: ids of words -> ids of the transcript; default: the same.
    units: largest number of ids of a transcript; 0: that of words.

  Raises:
    InputError: numbers that are not ascending; a clip that does not fit into `seconds`.
  """

  clips: Sequence[Clip]
  rate: int
  split: str
  count: int
  words: tuple[int, int]
  pauses: tuple[float, float]
  noise: tuple[float, float]
  seconds: float
  seed: int
  train: bool
  spell: Callable[[Sequence[int]], Sequence[int]] = list
  units: int = 0

  def __post_init__(self):
    for name, value, least in (
      ('words', self.words, 1), ('pauses', self.pauses, 0.0), ('noise', self.noise, 1e-6)
    ):  # fmt: skip
      if len(value) != 2 or not least <= value[0] <= value[1]:
        raise InputError(f'{name}={value}: expected the least and the largest, from {least:g} on')
    self.size, self.units = self.count, self.units or self.words[1]
    self.longest = round(self.seconds * self.rate)
    fits = self.longest - 2 * round(self.pauses[1] * self.rate)
    most = max(len(clip.wave) for clip in self.clips)
    if most > fits:
      raise InputError(
        f'seconds={self.seconds:g}: expected enough for the longest word, '
        f'{most / self.rate:.2f} s, and two pauses of {self.pauses[1]:g} s'
      )
    self._by_speaker: dict[str, list[Clip]] = {}
    for clip in self.clips:
      self._by_speaker.setdefault(clip.speaker, []).append(clip)
    self.speakers = sorted(self._by_speaker)

  def wave(self, index: int, position: int) -> tuple[np.ndarray, Sequence[int]]:
    """Composes a sequence -> (its wave, the ids of its transcript)."""
    number = SPLITS.index(self.split) << 40 | (position if self.train else index)
    draw = lambda k: streams.draws(self.seed, streams.SPEECH, np.array([number]), k)[0]
    speaker, words, loud, start = draw(0)
    clips = self._by_speaker[self.speakers[int(speaker * len(self.speakers))]]
    parts, ids = [np.zeros(self._pause(start), np.float32)], []
    length = len(parts[0])
    for k in range(self.words[0] + int(words * (self.words[1] - self.words[0] + 1))):
      chosen, between, _, _ = draw(WORDS + k)
      clip, silence = clips[int(chosen * len(clips))], self._pause(between)
      length += len(clip.wave) + silence
      if k and length > self.longest:
        break
      parts += [clip.wave / np.abs(clip.wave).max(), np.zeros(silence, np.float32)]
      ids.append(clip.word)
    wave = np.concatenate(parts)
    level = self.noise[0] * (self.noise[1] / self.noise[0]) ** loud
    random = streams.generator(self.seed, streams.SPEECH, number)
    return wave + np.float32(level) * random.standard_normal(len(wave), np.float32), self.spell(ids)

  def _pause(self, share: float) -> int:
    """Returns the samples of a pause at this share of the way from the shortest to the longest."""
    shortest, longest = self.pauses
    return round(self.rate * (shortest + share * (longest - shortest)))

  def describe(self, index: int) -> dict[str, Any]:
    """Nothing: a sequence is not a file."""
    return {}

  def digest(self) -> str:
    """Returns the SHA-256 of the clips and of how they are composed."""
    how = [self.rate, self.split, self.words, self.pauses, self.noise, self.seconds]
    parts = repr([*how, self.seed, digest_clips(self.clips)])
    return hashlib.sha256(parts.encode()).hexdigest()

  def outline(self) -> HostBatch:
    """Nothing: sequences are composed as they are needed."""
    return {}


def digest_clips(clips: Sequence[Clip]) -> str:
  """Returns the SHA-256 of recordings, their words and speakers."""
  total = hashlib.sha256()
  for clip in clips:
    total.update(clip.wave.tobytes() + bytes([clip.word]) + clip.speaker.encode())
  return total.hexdigest()
