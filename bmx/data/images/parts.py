"""Augmentation by random parts of an image: a crop that is resized, a rectangle that is erased."""

import dataclasses

import numpy as np

from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.core.streams import Draws
from bmx.core.types import HostBatch
from bmx.data.images.geometry import PIXELS, move_boxes, resize

CHANCE, ERASED, RESIZED = 1, 16, 32  # streams, see `data.images.augment`
ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
  """Crops a random part of the image, of a random shape, and resizes it to the image's size.

  Pixels are resized bilinearly with antialiasing, as Pillow does; masks by the nearest pixel.

  Attributes:
    scale: least and largest share of the area.
    ratio: least and largest width / height.

  Raises:
    InputError: a number outside its range.

  Source: Szegedy et al. 2015; torchvision has the same ten attempts, then the center.
  """

  scale: tuple[float, float] = (0.08, 1.0)
  ratio: tuple[float, float] = (3 / 4, 4 / 3)

  def __post_init__(self):
    check_interval('scale', self.scale, at_most=1)
    check_interval('ratio', self.ratio)

  def __call__(self, rows: HostBatch, random: Draws) -> HostBatch:
    """rows['image'] [n, I, J, C]."""
    n, height, width = rows['image'].shape[:3]
    parts = self.parts(np.full(n, height), np.full(n, width), random)
    pixels = {k: np.empty_like(rows[k]) for k in PIXELS if k in rows}
    for name, moved in pixels.items():
      for i, (top, left, bottom, right) in enumerate(parts):
        part = rows[name][i, top:bottom, left:right]
        moved[i] = resize(part, (height, width), smooth=name == 'image')
    scale = np.array([height, width]) / (parts[:, 2:] - parts[:, :2])
    matrix = scale[:, :, None] * np.eye(2)
    return {**rows, **pixels, **move_boxes(rows, matrix, -parts[:, :2] * scale, (height, width))}

  def parts(self, height: np.ndarray, width: np.ndarray, random: Draws) -> np.ndarray:
    """Returns the parts that are cropped, (top, left, bottom, right), int64 [n, 4].

    Args:
      height: of each image, in pixels, [n].
      width: of each image, in pixels, [n].
      random: draws.
    """
    found, fits = parts(RESIZED, height, width, self.scale, self.ratio, random)
    return np.where(fits[:, None], found, _middle(height, width, self.ratio))


def _middle(height: np.ndarray, width: np.ndarray, ratio: tuple[float, float]) -> np.ndarray:
  """The largest part in the center of a shape within `ratio`, int64 [n, 4]."""
  rows = np.minimum(height, np.rint(width / ratio[0])).astype(np.int64)
  columns = np.minimum(width, np.rint(height * ratio[1])).astype(np.int64)
  top, left = (height - rows) // 2, (width - columns) // 2
  return np.stack([top, left, top + rows, left + columns], 1)


@dataclasses.dataclass(frozen=True)
class RandomErasing:
  """Fills a random rectangle with the mean of the image, each channel with its own.

  Boxes and masks stay: the object is still there, behind the rectangle.

  Attributes:
    probability: of each image.
    scale: least and largest share of the area.
    ratio: least and largest width / height.

  Raises:
    InputError: a number outside its range.

  Source: Zhong et al. 2017.
  """

  probability: float = 0.5
  scale: tuple[float, float] = (0.02, 1 / 3)
  ratio: tuple[float, float] = (0.3, 3.3)

  def __post_init__(self):
    check_number('erase', self.probability, at_least=0, at_most=1)
    check_interval('scale', self.scale, at_most=1)
    check_interval('ratio', self.ratio)

  def __call__(self, rows: HostBatch, random: Draws) -> HostBatch:
    """rows['image'] [n, I, J, C]."""
    image = rows['image'].copy()
    n, height, width = image.shape[:3]
    sizes = np.full(n, height), np.full(n, width)
    found, there = parts(ERASED, *sizes, self.scale, self.ratio, random)
    for i in np.flatnonzero(there & (random(CHANCE)[:, 0] < self.probability)):
      top, left, bottom, right = found[i]
      mean = image[i].mean((0, 1), dtype=np.float64)
      whole = np.issubdtype(image.dtype, np.integer)
      image[i, top:bottom, left:right] = np.rint(mean) if whole else mean
    return {**rows, 'image': image}


def parts(
  stream: int,
  height: np.ndarray,
  width: np.ndarray,
  scale: tuple[float, float],
  ratio: tuple[float, float],
  random: Draws,
) -> tuple[np.ndarray, np.ndarray]:
  """Draws a rectangle in each image: the first of ten attempts that fits.

  Args:
    stream: number of the first attempt's draws.
    height: of each image, in pixels, [n].
    width: of each image, in pixels, [n].
    scale: least and largest share of the area.
    ratio: least and largest width / height; its logarithm is uniform.
    random: draws.

  Returns:
    (top, left, bottom, right) int64 [n, 4], and whether one fitted, bool [n].
  """
  found, fits = np.zeros((len(height), 4), np.int64), np.zeros(len(height), bool)
  low, high = np.log(ratio)
  for attempt in range(ATTEMPTS):
    draw = random(stream + attempt)
    area = height * width * (scale[0] + draw[:, 0] * (scale[1] - scale[0]))
    shape = np.exp(low + draw[:, 1] * (high - low))
    columns = np.rint(np.sqrt(area * shape)).astype(np.int64)
    rows = np.rint(np.sqrt(area / shape)).astype(np.int64)
    new = ~fits & (rows > 0) & (columns > 0) & (rows <= height) & (columns <= width)
    top = (draw[:, 2] * (height - rows + 1)).astype(np.int64)
    left = (draw[:, 3] * (width - columns + 1)).astype(np.int64)
    found[new] = np.stack([top, left, top + rows, left + columns], 1)[new]
    fits |= new
    if fits.all():
      break
  return found, fits


def check_interval(name: str, value: tuple[float, float], at_most: float | None = None) -> None:
  """Raises InputError unless a value is two ascending numbers above 0, up to `at_most`."""
  if len(value) != 2 or value[0] > value[1]:
    raise InputError(f'{name}={value}: expected the least and the largest')
  for number in value:
    check_number(name, number, above=0, at_most=at_most)
