"""Features of utterances: what recordings and composed sequences have in common.

N examples, T frames, M mel bands, L units of a transcript.
"""

import concurrent.futures
import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from bmx.core import streams
from bmx.core.data import Spec
from bmx.core.types import HostBatch, Metadata
from bmx.data.arrays import ArrayData
from bmx.data.audio.augment import SpeechAugment
from bmx.data.audio.features import LogMel
from bmx.data.audio.units import padded
from bmx.data.audio.waves import faster
from bmx.data.files import THREADS

NAMES = {'features': ('length', None)}


class Utterances(Protocol):
  """Waves with transcripts.

  Attributes:
    size: number of examples.
    units: largest number of units of a transcript, L; 0 without transcripts.
  """

  size: int
  units: int

  def wave(self, index: int, position: int) -> tuple[np.ndarray, Sequence[int]]:
    """Returns (wave float32 [n], ids of its transcript); random choices vary with `position`."""
    ...

  def describe(self, index: int) -> dict[str, Any]:
    """What an example is to people."""
    ...

  def digest(self) -> str:
    """Returns the SHA-256 of the source."""
    ...

  def outline(self) -> HostBatch:
    """Returns `samples` [N] and the transcripts of all examples; {} where they are composed."""
    ...


@dataclasses.dataclass
class FeatureData:
  """Examples `features` [T, M], `num_frames`, `transcript` [L] and `transcript_length`.

  Frames behind the last one of an example are 0. Features are computed by threads as they are
  needed.

  Attributes:
    source: waves and transcripts.
    log_mel: how waves become features.
    frames: T.
    metadata: facts.
    fitted: result of `state`.
    seed: of augmentation.
    train: whether examples are augmented.
    augment: of training examples.
    fill: samples that every wave is cut off at or filled up to with zeros, all frames of which
      count, as Whisper reads them; 0: waves as they are.
  """

  source: Utterances
  log_mel: LogMel
  frames: int
  metadata: Metadata
  fitted: dict[str, Any]
  seed: int = 0
  train: bool = True
  augment: SpeechAugment | None = None
  fill: int = 0

  def __post_init__(self):
    self.size = self.source.size
    self.pool = concurrent.futures.ThreadPoolExecutor(THREADS, 'features')
    self.spec = blank_spec(self.frames, self.log_mel.mels, self.source.units)

  def state(self) -> dict[str, Any]:
    """Returns units, and how files become features."""
    return self.fitted

  def describe(self, indices: np.ndarray) -> list[dict[str, Any]]:
    """What the examples are to people."""
    return [self.source.describe(int(i)) for i in indices]

  def digest(self) -> str:
    """Returns the SHA-256 of the source."""
    return self.source.digest()

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Computes rows; any number of threads gives the same."""
    augment = self.augment if self.train else None
    random = streams.Draws(self.seed, np.asarray(positions))
    speeds = augment.speeds_of(random) if augment else np.ones(len(indices))
    shape = len(indices), self.frames, self.log_mel.mels
    features, frames = np.zeros(shape, np.float32), np.zeros(len(indices), np.int32)
    ids: list[Sequence[int]] = [()] * len(indices)

    def fill(row: int) -> None:
      wave, ids[row] = self.source.wave(int(indices[row]), int(positions[row]))
      wave = self._filled(faster(wave, float(speeds[row])))
      made = self.log_mel(wave)[: self.frames]
      features[row, : len(made)], frames[row] = made, len(made)

    list(self.pool.map(fill, range(len(indices))))
    if augment:
      features = augment.masked(features, frames, random)
    rows = {'features': features, 'num_frames': frames, 'weights': np.ones(len(ids), np.float32)}
    return rows | (padded(ids, self.source.units) if self.source.units else {})

  def _filled(self, wave: np.ndarray) -> np.ndarray:
    if not self.fill:
      return wave
    return np.pad(wave[: self.fill], (0, max(0, self.fill - len(wave))))

  def outline(self) -> HostBatch:
    """Returns the lengths and transcripts of all examples, at the highest speed of training."""
    found = dict(self.source.outline())
    if not found:
      return {}
    fastest = self.augment.fastest if self.augment and self.train else 1.0
    samples = [int(n / fastest) for n in found.pop('samples')]
    frames = [min(self.log_mel.frames(n), self.frames) for n in samples]
    return found | {'num_frames': np.array(frames, np.int32)}

  def computed(self) -> ArrayData:
    """Returns the examples in memory."""
    every = np.arange(self.size)
    arrays = self.rows(every, every)
    described = self.describe(every)
    names: Any = NAMES
    return ArrayData(arrays, self.metadata, self.seed, False, names=names, fitted=self.fitted,
                     described=described)  # fmt: skip

  @property
  def bytes(self) -> int:
    """Bytes of the features of all examples."""
    return self.size * self.frames * self.log_mel.mels * 4


def blank_spec(frames: int, mels: int, units: int) -> dict[str, Spec]:
  """Returns the arrays of one example; without transcripts where `units` is 0."""
  whole = np.dtype(np.int32)
  spec = {
    'features': Spec((frames, mels), np.dtype(np.float32), NAMES['features']),
    'num_frames': Spec((), whole),
    'weights': Spec((), np.dtype(np.float32)),
  }
  if units:
    spec |= {'transcript': Spec((units,), whole), 'transcript_length': Spec((), whole)}
  return spec
