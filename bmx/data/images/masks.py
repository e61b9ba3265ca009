"""Masks of COCO annotations: polygons, and run lengths down the columns, plain or compressed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.errors import InputError

BITS, SIGN, MORE, FIRST = 5, 16, 32, 48  # of a character of compressed run lengths


def decode(segmentation: Any, size: tuple[int, int], where: str) -> np.ndarray:
  """Returns the mask of an annotation, bool [height, width].

  Args:
    segmentation: polygons, each [x, y, x, y, ...] in pixels; or run lengths, {'size': [height,
      width], 'counts': numbers or text}.
    size: height and width of the image.
    where: name of the annotation and of its image, for messages.

  Raises:
    InputError: another kind of mask, or a mask of another size.
  """
  if isinstance(segmentation, Mapping):
    return _runs(segmentation, size, where)
  if isinstance(segmentation, Sequence) and not isinstance(segmentation, str) and segmentation:
    return _polygons(segmentation, size, where)
  raise InputError(f'{where}: expected `segmentation` as polygons or run lengths, found '
                   f'{str(segmentation)[:40]!r}')  # fmt: skip


def _polygons(polygons: Sequence[Any], size: tuple[int, int], where: str) -> np.ndarray:
  """The pixels whose centers lie in one of the polygons."""
  mask = np.zeros(size, bool)
  for polygon in polygons:
    try:
      corners = np.asarray(polygon, np.float64)
    except (TypeError, ValueError):
      corners = np.zeros(0)
    if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2 or not np.isfinite(corners).all():
      raise InputError(
        f'{where}: expected a polygon [x, y, x, y, x, y, ...], found {str(polygon)[:40]}'
      )
    mask |= _filled(corners.reshape(-1, 2), size)
  return mask


def _filled(corners: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """The pixels whose centers have an odd number of sides of a polygon on their left."""
  height, width = size
  sides = np.zeros((height, width + 1), np.int64)
  for (x, y), (other_x, other_y) in zip(corners, np.roll(corners, 1, 0), strict=True):
    low, high = (int(np.clip(np.ceil(v - 0.5), 0, height)) for v in sorted((y, other_y)))
    rows = np.arange(low, high)
    if len(rows):
      place = x + (rows + 0.5 - y) * (other_x - x) / (other_y - y)
      sides[rows, np.clip(np.ceil(place - 0.5), 0, width).astype(int)] += 1
  return np.cumsum(sides, 1)[:, :width] % 2 == 1


def _runs(given: Mapping[str, Any], size: tuple[int, int], where: str) -> np.ndarray:
  own = given.get('size')
  if not isinstance(own, Sequence) or list(own) != list(size):
    raise InputError(
      f'{where}: the mask has the size {own}, the image {list(size)} (height, width); expected one '
      'size'
    )
  counts = given.get('counts')
  counts = counts.decode('ascii', 'replace') if isinstance(counts, bytes) else counts
  try:
    runs = _uncompressed(counts) if isinstance(counts, str) else np.asarray(counts, np.int64)
  except (TypeError, ValueError, IndexError):
    runs = np.zeros(0, np.int64)
  if runs.ndim != 1 or (runs < 0).any() or runs.sum() != size[0] * size[1]:
    raise InputError(
      f'{where}: expected run lengths of {size[0] * size[1]} pixels, found those of '
      f'{int(runs.sum())}'
    )
  inside = np.arange(len(runs)) % 2 == 1
  return np.repeat(inside, runs).reshape(size[1], size[0]).T


def _uncompressed(text: str) -> np.ndarray:
  """Numbers of compressed run lengths: five bits a character; from the fourth on, differences."""
  counts: list[int] = []
  position = 0
  while position < len(text):
    value, shift, more = 0, 0, True
    while more:
      digit = ord(text[position]) - FIRST
      if not 0 <= digit < 2 * MORE:
        raise ValueError('expected characters of run lengths')
      value |= (digit & (MORE - 1)) << shift
      more, shift, position = bool(digit & MORE), shift + BITS, position + 1
      if not more and digit & SIGN:
        value -= 1 << shift
    counts.append(value + counts[-2] if len(counts) > 2 else value)
  return np.array(counts, np.int64)
