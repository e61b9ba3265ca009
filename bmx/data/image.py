"""Images: normalisation, and augmentation that is a function of (seed, position)."""

import dataclasses
from typing import Any

import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import Batch, Rows


@dataclasses.dataclass(frozen=True)
class Normalise:
  """image / scale, minus `mean`, over `std`, per channel or for all; numpy and jax arrays alike."""

  scale: float = 255.0
  mean: tuple[float, ...] = (0.0,)
  std: tuple[float, ...] = (1.0,)

  def __call__(self, batch: Batch) -> Batch:
    image: Any = batch['image']
    channels = image.shape[-1]
    row = lambda values: np.broadcast_to(np.float32(values), (channels,)).reshape(1, 1, 1, channels)
    factor = 1.0 / (np.float32(self.scale) * row(self.std))
    offset = row(self.mean) / row(self.std)
    return {**batch, 'image': image.astype(np.float32) * factor - offset}


@dataclasses.dataclass(frozen=True)
class Augment:
  """Random crop of the image padded by `crop` black pixels, then a random left-right flip."""

  crop: int = 0
  flip: bool = False

  def __call__(self, rows: Rows, draws: np.ndarray) -> Rows:
    """rows['image'] [n, I, J, C]; draws float64 [n, 4] in [0, 1): row, column, flip, unused."""
    image = rows['image']
    if self.crop:
      image = self._crop(image, *(draws[:, :2] * (2 * self.crop + 1)).astype(int).T)
    if self.flip:
      image = np.where((draws[:, 2] < 0.5)[:, None, None, None], image[:, :, ::-1], image)
    return {**rows, 'image': image}

  def _crop(self, image: np.ndarray, top: np.ndarray, left: np.ndarray) -> np.ndarray:
    n, height, width, channels = image.shape
    pad = ((0, 0), (self.crop, self.crop), (self.crop, self.crop), (0, 0))
    # Copies whole rows of width·channels values: a tenth of the time of picking pixels.
    lines = np.pad(image, pad).reshape(n, height + 2 * self.crop, -1)
    windows = np.lib.stride_tricks.sliding_window_view(lines, (height, width * channels), (1, 2))
    return windows[np.arange(n), top, left * channels].reshape(image.shape)


def augment(crop: int, flip: bool) -> Augment | None:
  if crop < 0:
    raise InputError(f'crop={crop} is no number of pixels: 0 is no crop')
  return Augment(crop, flip) if crop or flip else None
