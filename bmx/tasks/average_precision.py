"""Average precision of detections, as the COCO benchmark defines it.

N images, D detections and M boxes of an image, G boxes and T overlaps of a class, K classes, R
recalls. A config names a metric by import path: 'bmx.tasks.average_precision:ap50'.

Source: Lin et al. 2014, Microsoft COCO; the program pycocotools.
"""

from typing import NamedTuple

import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import HostBatch

OVERLAPS = np.linspace(0.5, 0.95, 10)  # intersection over union that makes a detection right
RECALLS = np.linspace(0, 1, 101)
LARGEST = 1e10  # square pixels
SMALL, MEDIUM = 32**2, 96**2  # square pixels, upper bounds
EVERY = (0.0, LARGEST)
MAX_DETECTIONS = 100  # of a class in an image: those of the highest scores
KEYS = 'box', 'score', 'prediction', 'boxes', 'box_label', 'box_weights'


class Truth(NamedTuple):
  """The true boxes of a class in one image, G of them.

  Attributes:
    boxes: (top, left, bottom, right) in pixels, float64 [G, 4].
    areas: of the objects, in square pixels, float64 [G].
    crowd: regions of many objects: any number of detections inside count nothing, bool [G].
  """

  boxes: np.ndarray
  areas: np.ndarray
  crowd: np.ndarray


class Found(NamedTuple):
  """The detections of a class in one image, D of them, the highest score first.

  Attributes:
    boxes: float64 [D, 4].
    scores: float64 [D].
  """

  boxes: np.ndarray
  scores: np.ndarray


def ap(rows: HostBatch) -> float:
  """Computes the mean average precision over classes and overlaps of 0.5, 0.55 to 0.95, 0 to 1.

  Args:
    rows: predictions of a `Detection`, with its labels.

  Raises:
    InputError: a key is missing, or the split has no boxes.
  """
  return _mean(rows)


def ap50(rows: HostBatch) -> float:
  """Computes mean average precision at an overlap of 0.5; arguments and errors as in `ap`."""
  return _mean(rows, overlaps=OVERLAPS[:1])


def ap75(rows: HostBatch) -> float:
  """Computes mean average precision at an overlap of 0.75; arguments and errors as in `ap`."""
  return _mean(rows, overlaps=OVERLAPS[5:6])


def ap_small(rows: HostBatch) -> float:
  """Computes `ap` of objects of at most 32² pixels of the original image."""
  return _mean(rows, (0.0, SMALL), 'boxes of at most 32² pixels')


def ap_medium(rows: HostBatch) -> float:
  """Computes `ap` of objects of 32² to 96² pixels of the original image."""
  return _mean(rows, (SMALL, MEDIUM), 'boxes of 32² to 96² pixels')


def ap_large(rows: HostBatch) -> float:
  """Computes `ap` of objects of at least 96² pixels of the original image."""
  return _mean(rows, (MEDIUM, LARGEST), 'boxes of at least 96² pixels')


def by_class(
  rows: HostBatch, areas: tuple[float, float] = EVERY, overlaps: np.ndarray = OVERLAPS
) -> dict[int, np.ndarray]:
  """Computes the average precision of each class that has boxes.

  Args:
    rows: predictions of a `Detection`, with its labels.
    areas: least and largest area of the objects that count, in square pixels.
    overlaps: [T].

  Returns:
    Class -> average precision at each overlap, float64 [T].

  Raises:
    InputError: a key is missing.
  """
  if missing := [k for k in KEYS if k not in rows]:
    raise InputError(
      f'average precision reads {", ".join(KEYS)}; the predictions lack {", ".join(missing)}'
    )
  truths, founds = _truths(rows), _founds(rows)
  result = {}
  for label in sorted(truths):
    images = sorted({*truths[label], *founds.get(label, {})})
    pairs = [(truths[label].get(i), founds.get(label, {}).get(i)) for i in images]
    precision = average_precision(pairs, areas, overlaps)
    if precision is not None:
      result[label] = precision
  return result


def average_precision(
  pairs: list[tuple[Truth | None, Found | None]],
  areas: tuple[float, float] = EVERY,
  overlaps: np.ndarray = OVERLAPS,
) -> np.ndarray | None:
  """Computes the average precision of one class: the mean precision at 101 recalls.

  Args:
    pairs: truth and detections of each image that has either.
    areas: least and largest area of the objects that count, in square pixels.
    overlaps: [T].

  Returns:
    float64 [T], or None without objects that count.
  """
  scores, hits, ignored, total = [], [], [], 0
  for truth, found in pairs:
    truth = truth or Truth(np.zeros((0, 4)), np.zeros(0), np.zeros(0, bool))
    skipped = truth.crowd | (truth.areas < areas[0]) | (truth.areas > areas[1])
    total += int((~skipped).sum())
    if found is not None:
      hit, free = matches(found, truth, skipped, areas, overlaps)
      scores.append(found.scores)
      hits.append(hit)
      ignored.append(free)
  if not total:
    return None
  if not scores:
    return np.zeros(len(overlaps))
  order = np.argsort(-np.concatenate(scores), kind='stable')
  hit, free = (np.concatenate(x, 1)[:, order] for x in (hits, ignored))
  right = np.cumsum(hit & ~free, 1).astype(np.float64)
  wrong = np.cumsum(~hit & ~free, 1).astype(np.float64)
  recall, precision = right / total, right / (wrong + right + np.spacing(1))
  # Precision at a recall is the best at this or a higher one.
  precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
  return np.array([_at_recalls(r, p) for r, p in zip(recall, precision, strict=True)])


def matches(
  found: Found,
  truth: Truth,
  skipped: np.ndarray,
  areas: tuple[float, float],
  overlaps: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Matches the detections of one image with its boxes, the highest score first.

  A detection takes the free box of the largest overlap; one that counts before one that does not.

  Args:
    found: D detections.
    truth: G boxes.
    skipped: boxes that do not count, bool [G].
    areas: a detection without a box does not count if its area lies outside.
    overlaps: [T].

  Returns:
    Whether each detection has a box, and whether it does not count, bool [T, D].
  """
  shape = len(overlaps), len(found.scores)
  overlap = iou(found.boxes, truth.boxes, truth.crowd)
  hit, free = np.zeros(shape, bool), np.zeros(shape, bool)
  taken = np.zeros((len(overlaps), len(truth.boxes)), bool)
  least = np.minimum(overlaps, 1 - 1e-10)[:, None]
  every = np.arange(len(overlaps))
  for d in range(shape[1] if len(truth.boxes) else 0):
    able = (overlap[d] >= least) & (~taken | truth.crowd)
    rank = np.where(able, overlap[d] + 2.0 * ~skipped, -1.0)
    best = rank.shape[1] - 1 - rank[:, ::-1].argmax(1)  # of equal overlaps, the last
    hit[:, d] = able[every, best]
    free[:, d] = hit[:, d] & skipped[best]
    taken[every[hit[:, d]], best[hit[:, d]]] = True
  size = area(found.boxes)
  free |= ~hit & ((size < areas[0]) | (size > areas[1]))
  return hit, free


def iou(found: np.ndarray, boxes: np.ndarray, crowd: np.ndarray) -> np.ndarray:
  """Computes intersection over union; of a crowd, over the area of the detection.

  Args:
    found: [D, 4].
    boxes: [G, 4].
    crowd: bool [G].

  Returns:
    float64 [D, G].
  """
  top_left = np.maximum(found[:, None, :2], boxes[None, :, :2])
  bottom_right = np.minimum(found[:, None, 2:], boxes[None, :, 2:])
  inside = np.maximum(bottom_right - top_left, 0).prod(-1)
  own, other = area(found)[:, None], area(boxes)[None]
  union = np.where(crowd[None], own, own + other - inside)
  return np.divide(inside, union, out=np.zeros_like(inside), where=inside > 0)


def area(boxes: np.ndarray) -> np.ndarray:
  """Returns the areas of boxes [..., 4], [...]."""
  return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def true_boxes(rows: HostBatch) -> np.ndarray:
  """Returns the true boxes in pixels of the original images, float64 [N, M, 4], see `Detection`."""
  boxes = rows['boxes'].astype(np.float64)
  if 'frame' not in rows:
    return boxes
  return boxes / np.tile(rows['frame'][:, None, :2].astype(np.float64), 2)


def _mean(
  rows: HostBatch,
  areas: tuple[float, float] = EVERY,
  objects: str = 'boxes',
  overlaps: np.ndarray = OVERLAPS,
) -> float:
  classes = by_class(rows, areas, overlaps)
  if not classes:
    raise InputError(f'average precision is undefined: the split has no {objects}')
  return float(np.mean(list(classes.values())))


def _at_recalls(recall: np.ndarray, precision: np.ndarray) -> float:
  index = np.searchsorted(recall, RECALLS, side='left')
  return float(np.mean(np.append(precision, 0.0)[index]))


def _truths(rows: HostBatch) -> dict[int, dict[int, Truth]]:
  """Class -> image -> its boxes."""
  boxes, weights = true_boxes(rows), rows['box_weights']
  areas = rows['box_area'].astype(np.float64) if 'box_area' in rows else area(boxes)
  crowd = rows['box_crowd'] > 0 if 'box_crowd' in rows else np.zeros(weights.shape, bool)
  result: dict[int, dict[int, Truth]] = {}
  for i, labels in enumerate(rows['box_label']):
    for label in np.unique(labels[weights[i] > 0]):
      mine = (labels == label) & (weights[i] > 0)
      truth = Truth(boxes[i, mine], areas[i, mine], crowd[i, mine])
      result.setdefault(int(label), {})[i] = truth
  return result


def _founds(rows: HostBatch) -> dict[int, dict[int, Found]]:
  """Class -> image -> its detections."""
  result: dict[int, dict[int, Found]] = {}
  for i, (labels, scores) in enumerate(zip(rows['prediction'], rows['score'], strict=True)):
    order = np.argsort(-scores, kind='stable')
    order = order[scores[order] > 0]
    for label in np.unique(labels[order]):
      mine = order[labels[order] == label][:MAX_DETECTIONS]
      boxes = rows['box'][i, mine].astype(np.float64)
      result.setdefault(int(label), {})[i] = Found(boxes, scores[mine].astype(np.float64))
  return result
