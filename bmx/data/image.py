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
    n, height, width, _ = image.shape
    if self.crop:
      side = 2 * self.crop + 1
      top, left = (draws[:, :2] * side).astype(int).T
      pad = ((0, 0), (self.crop, self.crop), (self.crop, self.crop), (0, 0))
      i = top[:, None, None] + np.arange(height)[None, :, None]
      j = left[:, None, None] + np.arange(width)[None, None, :]
      image = np.pad(image, pad)[np.arange(n)[:, None, None], i, j]
    if self.flip:
      image = np.where((draws[:, 2] < 0.5)[:, None, None, None], image[:, :, ::-1], image)
    return {**rows, 'image': image}


def augment(crop: int, flip: bool) -> Augment | None:
  if crop < 0:
    raise InputError(f'crop={crop} is no number of pixels: 0 is no crop')
  return Augment(crop, flip) if crop or flip else None
