"""Boxes of a data set: padded to one number for each image."""

from collections.abc import Sequence

import numpy as np

from bmx.core.types import HostBatch


def padded(boxes: Sequence[np.ndarray], labels: Sequence[np.ndarray], most: int = 0) -> HostBatch:
  """Pads the boxes of N images.

  Args:
    boxes: of each image, (top, left, bottom, right) in pixels, [m, 4].
    labels: their classes, int [m].
    most: boxes of an image, M; 0: the largest number, at least 1.

  Returns:
    `boxes` float32 [N, M, 4], `box_label` int32 [N, M], `box_weights` float32 [N, M], 0 for
    padding.
  """
  most = most or max(1, *(len(b) for b in boxes))
  n = len(boxes)
  result = {
    'boxes': np.zeros((n, most, 4), np.float32),
    'box_label': np.zeros((n, most), np.int32),
    'box_weights': np.zeros((n, most), np.float32),
  }
  for i, (some, label) in enumerate(zip(boxes, labels, strict=True)):
    result['boxes'][i, : len(some)] = some
    result['box_label'][i, : len(some)] = label
    result['box_weights'][i, : len(some)] = 1
  return result
