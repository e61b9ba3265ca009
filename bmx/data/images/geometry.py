"""Boxes and masks of images: moved as the pixels of the image move."""

from typing import Any

import numpy as np

from bmx.core.types import HostBatch

PIXELS = ('image', 'mask', 'mask_weights')  # arrays of pixels, [n, I, J] or [n, I, J, C]
MIN_AREA = 0.25  # share of a box that must stay inside the image; below it, its weight becomes 0


def move_boxes(
  rows: HostBatch, matrix: Any, offset: Any, size: tuple[int, int]
) -> dict[str, np.ndarray]:
  """Moves `boxes` by an affine map of points (row, column), and clips them to the new image.

  A moved box is the smallest one around its four moved corners. Boxes of weight 0 become zeros.

  Args:
    rows: `boxes` float [n, M, 4], (top, left, bottom, right) in pixels, `box_weights` [n, M].
    matrix: [2, 2], or [n, 2, 2] for each image.
    offset: [2] or [n, 2], in pixels.
    size: height and width of the new image, in pixels.

  Returns:
    `boxes` and `box_weights`; {} where the rows have no boxes.
  """
  if 'boxes' not in rows:
    return {}
  boxes, weights = rows['boxes'], rows['box_weights']
  n = len(boxes)
  corners = boxes[..., [[0, 1], [0, 3], [2, 1], [2, 3]]].astype(np.float64)  # [n, M, 4, 2]
  matrix = np.broadcast_to(np.asarray(matrix, np.float64), (n, 2, 2))
  offset = np.broadcast_to(np.asarray(offset, np.float64), (n, 2))
  corners = np.einsum('nxy,nmcy->nmcx', matrix, corners) + offset[:, None, None]
  moved = np.concatenate([corners.min(2), corners.max(2)], -1)
  clipped = np.clip(moved, 0, np.array([*size, *size], np.float64))
  kept = area(clipped) >= MIN_AREA * np.maximum(area(moved), 1e-9)
  weights = np.where(kept, weights, 0).astype(weights.dtype)
  return {
    'boxes': np.where(weights[..., None] > 0, clipped, 0).astype(boxes.dtype),
    'box_weights': weights,
  }


def area(boxes: np.ndarray) -> np.ndarray:
  """Returns the areas of boxes [..., 4] in square pixels, [...]."""
  return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def resize(pixels: np.ndarray, size: tuple[int, int], *, smooth: bool) -> np.ndarray:
  """Resizes pixels [I, J] or [I, J, C] to a height and width, as Pillow does.

  Args:
    pixels: bytes in one or three channels; other numbers are resized channel by channel as float32.
    size: height and width, in pixels.
    smooth: bilinear with antialiasing; otherwise the nearest pixel.
  """
  from PIL import Image

  rows, columns = size
  kind = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
  resized = lambda plane: np.asarray(Image.fromarray(plane).resize((columns, rows), kind))
  shape, channels = (rows, columns, *pixels.shape[2:]), pixels.reshape(*pixels.shape[:2], -1)
  if pixels.dtype == np.uint8 and channels.shape[-1] in (1, 3):
    return resized(channels[..., 0] if channels.shape[-1] == 1 else channels).reshape(shape)
  planes = [resized(plane.astype(np.float32)) for plane in np.moveaxis(channels, -1, 0)]
  found = np.stack(planes, -1).reshape(shape)
  whole = np.issubdtype(pixels.dtype, np.integer)
  return np.rint(found).astype(pixels.dtype) if whole else found.astype(pixels.dtype)
