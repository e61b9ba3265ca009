"""Grids of images: as one array, as PNG, and as a section of the report."""

import base64
import io
import math

import numpy as np

from bmx.core.data import Data
from bmx.runtime.files import write_bytes
from bmx.runtime.report import Section
from bmx.runtime.storage import Place

SHOWN = 16  # pairs of an image and its reconstruction
GAP = 1  # pixels between images
SCALE = 3  # side of a pixel of an image in the report


def grid(images: np.ndarray, columns: int = 0) -> np.ndarray:
  """Places images side by side, row by row: [n, I, J, C] -> uint8 [height, width, C].

  Args:
    images: pixels in [0, 1], others are clipped; NaN is black.
    columns: images in a row; 0: as many as rows, or one more.

  >>> grid(np.ones((3, 2, 2, 1)), 2).shape
  (5, 5, 1)
  """
  n, height, width, channels = images.shape
  columns = columns or math.ceil(math.sqrt(n))
  rows = -(-n // columns)
  cells = np.zeros((rows * columns, height + GAP, width + GAP, channels), np.float32)
  cells[:n, :height, :width] = np.clip(np.nan_to_num(images), 0.0, 1.0)
  cells = cells.reshape(rows, columns, height + GAP, width + GAP, channels).swapaxes(1, 2)
  whole = cells.reshape(rows * (height + GAP), columns * (width + GAP), channels)
  return np.rint(255 * whole[:-GAP, :-GAP]).astype(np.uint8)


def png(pixels: np.ndarray, scale: int = 1) -> bytes:
  """Encodes an image uint8 [height, width, 1 or 3] as PNG, each pixel `scale` wide and high."""
  from PIL import Image

  pixels = pixels.repeat(scale, 0).repeat(scale, 1)
  file = io.BytesIO()
  Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, 'PNG')
  return file.getvalue()


def write(path: Place, images: np.ndarray, columns: int = 0) -> None:
  """Writes a grid of images [n, I, J, C] as a PNG file, whole or not at all; see `grid`."""
  path.parent.mkdir(parents=True, exist_ok=True)
  write_bytes(path, png(grid(images, columns)))


def section(title: str, images: np.ndarray, columns: int = 0) -> Section:
  """Returns a grid of images [n, I, J, C] as a section of the report."""
  pixels = grid(images, columns)
  width = SCALE * pixels.shape[1]
  data = base64.b64encode(png(pixels, SCALE)).decode()
  return Section(title, f'<img alt="" width="{width}" src="data:image/png;base64,{data}">')


def pairs(title: str, made: np.ndarray, data: Data) -> list[Section]:
  """Returns the first images of a split above those that a model made of them.

  Args:
    title: plain text.
    made: float [N, I, J, C], of the first N examples.
    data: the split.
  """
  n = min(SHOWN, len(made), data.batch_size)
  given = data.rows(data.indices(0)[0, :n], np.arange(n))['image']
  if given.shape != made[:n].shape:
    return []
  return [section(title, np.concatenate([given, made[:n]]), n)]
