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
