"""Images: normalization, and augmentation that is a function of (seed, position)."""

import dataclasses
from typing import Any

import numpy as np

from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.core.types import Batch, HostBatch


@dataclasses.dataclass(frozen=True)
class Normalise:
  """Computes (image / scale - mean) / std, per channel or for all; for numpy and jax arrays.

  Raises InputError for a number that is not finite, or a scale or std that is not above 0.
  """

  scale: float = 255.0
  mean: tuple[float, ...] = (0.0,)
  std: tuple[float, ...] = (1.0,)

  def __post_init__(self):
    check_number('scale', self.scale, above=0)
    for mean in self.mean:
      check_number('mean', mean)
    for std in self.std:
      check_number('std', std, above=0)

  def __call__(self, batch: Batch) -> Batch:
    image: Any = batch['image']
    width, channels = image.shape[-2:]
    # Of a line of the image: numpy takes a fifth of the time that it takes over the channels alone.
    every = lambda values: np.broadcast_to(np.float32(values), (channels,))
    line = lambda values: np.tile(every(values), width).reshape(1, 1, -1)
    factor = 1.0 / (np.float32(self.scale) * line(self.std))
    offset = line(self.mean) / line(self.std)
    pixels = image.reshape(*image.shape[:-2], -1).astype(np.float32) * factor - offset
    return {**batch, 'image': pixels.reshape(image.shape)}


@dataclasses.dataclass(frozen=True)
class Augment:
  """Random crop of the image padded by `crop` black pixels, then a random left-right flip."""

  crop: int = 0
  flip: bool = False

  def __call__(self, rows: HostBatch, draws: np.ndarray) -> HostBatch:
    """rows['image'] [n, I, J, C]; draws float64 [n, 4] in [0, 1): row, column, flip, unused."""
    image = rows['image']
    if self.crop:
      image = self._crop(image, *(draws[:, :2] * (2 * self.crop + 1)).astype(int).T)
    if self.flip:
      image, chosen = image.copy(), draws[:, 2] < 0.5
      image[chosen] = np.take(image[chosen], np.arange(image.shape[2])[::-1], axis=2)
    return {**rows, 'image': image}

  def _crop(self, image: np.ndarray, top: np.ndarray, left: np.ndarray) -> np.ndarray:
    n, height, width, channels = image.shape
    pad = ((0, 0), (self.crop, self.crop), (self.crop, self.crop), (0, 0))
    # Copies whole rows of width·channels values: a tenth of the time of picking pixels.
    lines = np.pad(image, pad).reshape(n, height + 2 * self.crop, -1)
    windows = np.lib.stride_tricks.sliding_window_view(lines, (height, width * channels), (1, 2))
    return windows[np.arange(n), top, left * channels].reshape(image.shape)


def augment(crop: int, flip: bool) -> Augment | None:
  """Returns the augmentation, None without any. Raises InputError for a negative `crop`."""
  if crop < 0:
    raise InputError(f'crop={crop}: expected a number of pixels, at least 0')
  return Augment(crop, flip) if crop or flip else None
