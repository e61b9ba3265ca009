"""Single sounds for classifiers: log-mel features as images."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.data import Examples, Spec
from bmx.core.errors import InputError
from bmx.core.types import HostBatch
from bmx.data.audio.features import LogMel
from bmx.data.audio.recordings import Waves, recordings
from bmx.data.audio.utterances import FeatureData
from bmx.data.transforms import Around


@dataclasses.dataclass
class Single:
  """Recordings of single words.

  Attributes:
    waves: float32 [n] each.
    longest: samples; longer ones are cut off.
    about: result of `describe` for each.
    words: unit of each, from 1 on; () where they are not known.
  """

  waves: Sequence[np.ndarray]
  longest: int
  about: Sequence[dict[str, Any]]
  words: Sequence[int] = ()

  def __post_init__(self):
    self.size, self.units = len(self.waves), int(bool(self.words))

  def wave(self, index: int, position: int) -> tuple[np.ndarray, Sequence[int]]:
    """Returns a recording and its unit."""
    return self.waves[index][: self.longest], self.words[index : index + 1]

  def describe(self, index: int) -> dict[str, Any]:
    """Its file or its speaker."""
    return dict(self.about[index])

  def digest(self) -> str:
    """Returns the SHA-256 of the recordings, their words and descriptions."""
    total = hashlib.sha256(repr([list(self.words), list(self.about)]).encode())
    for wave in self.waves:
      total.update(wave.tobytes())
    return total.hexdigest()

  def outline(self) -> HostBatch:
    """Nothing: one word fits into any recording."""
    return {}


@dataclasses.dataclass(frozen=True)
class ImageData(Around):
  """Features of single words as `image` [T, M, 1], with `label` where words are known.

  Attributes:
    inner: features, and transcripts of one unit.
  """

  inner: FeatureData

  @property
  def spec(self) -> dict[str, Spec]:
    """Arrays of one example."""
    shape = self.inner.frames, self.inner.log_mel.mels, 1
    spec = {'image': Spec(shape, np.dtype(np.float32)), 'weights': Spec((), np.dtype(np.float32))}
    return spec | ({'label': Spec((), np.dtype(np.int32))} if self.inner.source.units else {})

  def describe(self, indices: np.ndarray) -> list[dict[str, Any]]:
    """What the examples are to people."""
    return self.inner.describe(indices)

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Computes rows; any number of threads gives the same."""
    rows = self.inner.rows(indices, positions)
    image = {'image': rows['features'][..., None], 'weights': rows['weights']}
    return image | ({'label': rows['transcript'][:, 0] - 1} if 'transcript' in rows else {})


def recorded(
  path: str = '',
  unreadable: str = 'skip',
  fitted: Mapping[str, Any] | None = None,
  train: bool = False,
) -> Examples:
  """Reads files of single words to predict, with the features of a run.

  Args:
    path: a folder of files in any folders, a table with a column `file`, or a file.
    unreadable: 'refuse' files that cannot be read, or 'skip' them and list their names.
    fitted: `state()` of the training data.
    train: unused, as files without classes are not trained on.

  Raises:
    InputError: no file can be read; the run has not learned from audio.
  """
  if train or 'sounds' not in (fitted or {}):
    raise InputError('expected files to predict with a run such as that of fsdd_cnn')
  state = dict(fitted or {})
  log_mel, samples = LogMel.restore(state['sounds']['log_mel']), int(state['sounds']['samples'])
  waves = Waves(recordings(path, 'file', 'text', predicted=True), log_mel.rate, 0, unreadable)
  names = waves.files.names
  single = Single([waves.wave(i) for i in range(len(names))], samples, [{'file': n} for n in names])
  facts = {'source': path, 'class_names': state['class_names']}
  if waves.failed:
    facts['unreadable'] = waves.failed
  data = FeatureData(single, log_mel, log_mel.frames(samples), facts, state, train=False)
  return ImageData(data)
