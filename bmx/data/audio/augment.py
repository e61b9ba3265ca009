"""Augmentation of speech: functions of the seed and of the position of an example alone.

`random(k)` gives four uniform numbers for each example from the k-th independent stream: features
of an example depend neither on the batch nor on the number of threads or processes. The streams:

| k | operation |
|---|---|
| 64 | speed (first number) |
| from 65 on | `SpecAugment`: band mask i (width, start), frame mask i (width, start) |
"""

import dataclasses

import numpy as np

from bmx.core.ranges import check_number
from bmx.core.streams import Draws
from bmx.data.audio.waves import check_speeds

SPEED, MASKS = 64, 65  # streams
MAX_MASKS = 16


@dataclasses.dataclass(frozen=True)
class SpeechAugment:
  """Speed perturbation of waves, and SpecAugment: masks of bands and of frames.

  Attributes:
    speeds: factors, one of which is drawn for each example; () is without.
    band_masks: number of masks of bands.
    band_width: largest number of bands of a mask.
    frame_masks: number of masks of frames.
    frame_width: largest number of frames of a mask.
    frame_share: largest share of the frames of an example that a mask covers.

  Raises:
    InputError: a number outside its range.

  Source: Ko et al. 2015; Park et al. 2019, SpecAugment, without time warping.
  """

  speeds: tuple[float, ...] = (0.9, 1.0, 1.1)
  band_masks: int = 2
  band_width: int = 8
  frame_masks: int = 2
  frame_width: int = 20
  frame_share: float = 0.2

  def __post_init__(self):
    check_speeds(self.speeds)
    for name, value in (('band_masks', self.band_masks), ('frame_masks', self.frame_masks)):
      check_number(name, value, at_least=0, at_most=MAX_MASKS)
    for name, value in (('band_width', self.band_width), ('frame_width', self.frame_width)):
      check_number(name, value, at_least=1)
    check_number('frame_share', self.frame_share, at_least=0, at_most=1)

  @property
  def fastest(self) -> float:
    """The largest factor of speed."""
    return max(self.speeds, default=1.0)

  def speeds_of(self, random: Draws) -> np.ndarray:
    """Draws the factor of speed of each example, float64 [n]."""
    known = np.array(self.speeds or (1.0,))
    return known[(random(SPEED)[:, 0] * len(known)).astype(int)]

  def masked(self, features: np.ndarray, frames: np.ndarray, random: Draws) -> np.ndarray:
    """Sets bands and frames to 0, the mean of normalized features.

    Args:
      features: [n, T, M].
      frames: T of each example, without padding, int [n].
      random: draws.
    """
    features, bands = features.copy(), features.shape[2]
    for i in range(max(self.band_masks, self.frame_masks)):
      draw = random(MASKS + i)
      if i < self.band_masks:
        most = np.full(len(frames), min(self.band_width, bands))
        _mask(features.transpose(0, 2, 1), bands, most, draw[:, :2])
      if i < self.frame_masks:
        most = np.minimum(self.frame_width, (frames * self.frame_share).astype(int))
        _mask(features, frames, most, draw[:, 2:])
    return features


def _mask(values: np.ndarray, size: int | np.ndarray, most: np.ndarray, draw: np.ndarray) -> None:
  """Sets places start to start + width of the second dimension to 0, in place.

  Args:
    values: [n, T, ...].
    size: places of each example that count.
    most: largest width of each example, [n].
    draw: uniform numbers, [n, 2].
  """
  width = (draw[:, 0] * (most + 1)).astype(int)
  start = (draw[:, 1] * (size - width + 1)).astype(int)
  place = np.arange(values.shape[1])[None]
  values[(place >= start[:, None]) & (place < (start + width)[:, None])] = 0
