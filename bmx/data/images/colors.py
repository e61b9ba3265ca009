"""Augmentation by color, and RandAugment: operations of Pillow on images of bytes.

The operations and their ranges are those of torchvision, which uses the same ones of Pillow.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.core.streams import Draws
from bmx.core.types import HostBatch
from bmx.data.images.geometry import PIXELS, move_boxes

FACTORS, ORDER, RANDOM = 2, 3, 48  # streams, see `data.images.augment`
BINS = 31  # steps of the magnitude of RandAugment


@dataclasses.dataclass(frozen=True)
class ColorJitter:
  """Changes brightness, contrast, saturation and hue at random, in a random order.

  Attributes:
    brightness: factor between 1 - brightness (at least 0) and 1 + brightness.
    contrast: factor, likewise; images are blended with their mean gray.
    saturation: factor, likewise; images are blended with their gray version.
    hue: shift between -hue and hue, of a circle of 1; at most ½.

  Raises:
    InputError: a number outside its range; images that do not consist of bytes.
  """

  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  hue: float = 0.0

  def __post_init__(self):
    check_number('brightness', self.brightness, at_least=0)
    check_number('contrast', self.contrast, at_least=0)
    check_number('saturation', self.saturation, at_least=0)
    check_number('hue', self.hue, at_least=0, at_most=0.5)

  def __call__(self, rows: HostBatch, random: Draws) -> HostBatch:
    """rows['image'] uint8 [n, I, J, C], C 1 or 3."""
    check_bytes('jitter', rows['image'])
    spread = np.array([self.brightness, self.contrast, self.saturation])
    low = np.maximum(1 - spread, 0)
    drawn, order = random(FACTORS), np.argsort(random(ORDER), axis=1, kind='stable')
    factors = low + drawn[:, :3] * (1 + spread - low)
    hues = (2 * drawn[:, 3] - 1) * self.hue
    image = np.empty_like(rows['image'])
    for i, pixels in enumerate(rows['image']):
      picture = to_picture(pixels)
      for number in order[i]:
        if number == 3:
          picture = shift_hue(picture, hues[i]) if self.hue else picture
        elif spread[number]:
          picture = enhance(picture, ENHANCERS[number], factors[i, number])
      image[i] = to_pixels(picture, pixels.shape)
    return {**rows, 'image': image}


ENHANCERS = ('Brightness', 'Contrast', 'Color')


def enhance(picture: Any, name: str, factor: float) -> Any:
  """Returns a picture of Pillow, enhanced: 'Brightness', 'Contrast', 'Color' or 'Sharpness'."""
  from PIL import ImageEnhance

  makers = {'Brightness': ImageEnhance.Brightness, 'Contrast': ImageEnhance.Contrast,
            'Color': ImageEnhance.Color, 'Sharpness': ImageEnhance.Sharpness}  # fmt: skip
  return makers[name](picture).enhance(factor)


def shift_hue(picture: Any, shift: float) -> Any:
  """Shifts the hue of a picture of Pillow by a share of the circle; gray ones have none."""
  from PIL import Image

  if picture.mode == 'L':
    return picture
  hue, saturation, value = picture.convert('HSV').split()
  moved = (np.asarray(hue, np.int32) + int(shift * 255)) % 256
  hue = Image.fromarray(moved.astype(np.uint8), 'L')
  return Image.merge('HSV', (hue, saturation, value)).convert('RGB')


# Operations of RandAugment: name -> (largest magnitude, whether its sign is random).
OPERATIONS: dict[str, tuple[float, bool]] = {
  'identity': (0.0, False),
  'shear_x': (0.3, True),
  'shear_y': (0.3, True),
  'translate_x': (150 / 331, True),  # of the width
  'translate_y': (150 / 331, True),  # of the height
  'rotate': (30.0, True),  # degrees
  'Brightness': (0.9, True),
  'Color': (0.9, True),
  'Contrast': (0.9, True),
  'Sharpness': (0.9, True),
  'posterize': (4.0, False),  # bits that are removed
  'solarize': (255.0, False),  # below the largest value, which is inverted
  'autocontrast': (0.0, False),
  'equalize': (0.0, False),
}
NAMES = tuple(OPERATIONS)
GEOMETRIC = ('shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate')


@dataclasses.dataclass(frozen=True)
class RandAugment:
  """Applies `operations` of the 14 of `OPERATIONS`, drawn for each image, one after another.

  Attributes:
    operations: number of operations of each image.
    magnitude: of all operations, 0 to 30, of 31 equal steps up to their largest.

  Raises:
    InputError: a number outside its range; images that do not consist of bytes.

  Source: Cubuk et al. 2020.
  """

  operations: int = 2
  magnitude: int = 9

  def __post_init__(self):
    check_number('randaugment', self.operations, at_least=0)
    check_number('magnitude', self.magnitude, at_least=0, at_most=BINS - 1)

  def __call__(self, rows: HostBatch, random: Draws) -> HostBatch:
    """rows['image'] uint8 [n, I, J, C], C 1 or 3."""
    check_bytes('randaugment', rows['image'])
    for number in range(self.operations):
      draw = random(RANDOM + number)
      chosen = (draw[:, 0] * len(NAMES)).astype(int)
      rows = self._apply(rows, [NAMES[i] for i in chosen], draw[:, 1] < 0.5)
    return rows

  def _apply(self, rows: HostBatch, names: list[str], negative: np.ndarray) -> HostBatch:
    """Applies one operation to each image."""
    height, width = rows['image'].shape[1:3]
    moved = {k: rows[k].copy() for k in PIXELS if k in rows}
    inverse = np.tile(np.eye(2, 3), (len(names), 1, 1))
    for i, name in enumerate(names):
      most, signed = OPERATIONS[name]
      size = most * self.magnitude / (BINS - 1) * (-1 if signed and negative[i] else 1)
      if name in GEOMETRIC:
        inverse[i] = inverse_of(name, size, width, height)
        for pixels in moved.values():
          pixels[i] = warp(pixels[i], inverse[i])
      else:
        picture = recolor(to_picture(rows['image'][i]), name, size)
        moved['image'][i] = to_pixels(picture, rows['image'][i].shape)
    return {**rows, **moved, **move_boxes(rows, *forward(inverse), (height, width))}


def recolor(picture: Any, name: str, size: float) -> Any:
  """Returns a picture of Pillow after an operation that moves no pixels.

  Args:
    picture: mode L or RGB.
    name: of `OPERATIONS`.
    size: magnitude in the unit of the operation.
  """
  from PIL import ImageOps

  operations: dict[str, Callable[[], Any]] = {
    'identity': lambda: picture,
    'posterize': lambda: ImageOps.posterize(picture, 8 - round(size)),
    'solarize': lambda: ImageOps.solarize(picture, math.ceil(255 - size)),
    'autocontrast': lambda: ImageOps.autocontrast(picture),
    'equalize': lambda: ImageOps.equalize(picture),
  }
  return operations[name]() if name in operations else enhance(picture, name, 1 + size)


def inverse_of(name: str, size: float, width: int, height: int) -> np.ndarray:
  """Returns the map of points (x, y) of the new image to those of the old one, [2, 3].

  Args:
    name: of `GEOMETRIC`.
    size: of a shear its tangent, of a translation a share of the side, of a rotation degrees,
      counterclockwise.
    width: of the image, in pixels.
    height: of the image, in pixels.
  """
  if name == 'rotate':
    cos, sin = math.cos(math.radians(size)), math.sin(math.radians(size))
    x, y = width / 2, height / 2
    return np.array([[cos, -sin, x - cos * x + sin * y], [sin, cos, y - sin * x - cos * y]])
  return {
    'shear_x': np.array([[1, size, 0], [0, 1, 0]]),
    'shear_y': np.array([[1, 0, 0], [size, 1, 0]]),
    'translate_x': np.array([[1, 0, -int(size * width)], [0, 1, 0]]),
    'translate_y': np.array([[1, 0, 0], [0, 1, -int(size * height)]]),
  }[name].astype(np.float64)


def forward(inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns matrix [n, 2, 2] and offset [n, 2] of the map of points (row, column) to new ones.

  Args:
    inverse: [n, 2, 3], of points (x, y) of the new image to those of the old one.
  """
  matrix = np.linalg.inv(inverse[:, :, :2])
  offset = -np.einsum('nxy,ny->nx', matrix, inverse[:, :, 2])
  return matrix[:, ::-1, ::-1], offset[:, ::-1]


def warp(pixels: np.ndarray, inverse: np.ndarray) -> np.ndarray:
  """Moves pixels by an affine map, nearest neighbors, 0 outside: [I, J] or [I, J, C]."""
  from PIL import Image

  picture = to_picture(pixels)
  moved = picture.transform(
    picture.size, Image.Transform.AFFINE, tuple(inverse.ravel()), Image.Resampling.NEAREST
  )
  return to_pixels(moved, pixels.shape)


def to_picture(pixels: np.ndarray) -> Any:
  """Returns an image of Pillow: bytes, int32 or float32, [I, J], [I, J, 1] or [I, J, 3]."""
  from PIL import Image

  return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)


def to_pixels(picture: Any, shape: tuple[int, ...]) -> np.ndarray:
  """Returns the pixels of an image of Pillow, of a shape."""
  return np.asarray(picture).reshape(shape)


def check_bytes(word: str, image: np.ndarray) -> None:
  """Raises InputError unless images consist of bytes, in one or three channels."""
  if image.dtype != np.uint8 or image.shape[-1] not in (1, 3):
    raise InputError(
      f'{word}: expected images of bytes (uint8) with 1 or 3 channels, found {image.dtype} with '
      f'{image.shape[-1]}; leave {word} out'
    )
