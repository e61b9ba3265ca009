"""Detection of objects: boxes with classes, by an anchor-free detector.

B batch, P points, M boxes of an image, K classes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.data import Data
from bmx.core.errors import InputError
from bmx.core.metrics import Metrics, weighted
from bmx.core.ranges import check_number
from bmx.core.types import Array, Batch, HostBatch, Metadata
from bmx.models.detector import Detections, Points, points
from bmx.ops.boxes import area, giou, iou, non_maximum_suppression
from bmx.ops.checks import check_ids
from bmx.ops.losses import binary_cross_entropy, focal
from bmx.runtime.report import Section
from bmx.tasks import pictures, readable
from bmx.tasks.common import ModelTask, find, num_outputs

OPTIONAL = ('box_crowd', 'box_area', 'frame')  # labels that data may lack


@runtime_checkable
class HasStrides(Protocol):
  """A model that predicts a box at each point of its maps."""

  @property
  def strides(self) -> tuple[int, ...]: ...


@dataclasses.dataclass(frozen=True)
class Detection(ModelTask):
  """Focal loss of classes, GIoU loss of boxes, and cross-entropy of their overlap.

  Reads `image` [B, I, J, C], `boxes` float [B, M, 4] as (top, left, bottom, right) in pixels,
  `box_label` int [B, M] and `box_weights` [B, M], 0 where there is not a box. Where data have them,
  also `box_crowd` [B, M], 1 for a region of many objects, whose points count nothing; and `frame`
  [B, 4], the scale of rows and columns that the image was resized by, and the height and width of
  the original, in whose pixels predictions are. The sums of an image are divided by its own number
  of points with a box, so that examples do not depend on their batch.

  A point belongs to the smallest box whose center is at most `radius` strides away, in rows and in
  columns. The score of a prediction is the root of its probability times the overlap that the model
  expects of its box.

  Attributes:
    model: a `bmx.models.detector:Detector`, or a model with its `strides` and outputs.
    gamma: exponent of the focal loss.
    alpha: its weight of points with a box.
    radius: rows and columns around the center of a box whose points learn it, in strides; from 0.5
      on, each box has a point.
    candidates: predictions of the highest scores that enter non-maximum suppression.
    detections: boxes that are predicted for each image, at most.
    overlap: intersection over union above which the worse of two boxes of a class is dropped.
    min_score: boxes of lower scores are not predicted.

  Raises:
    InputError: a number outside its range; a model that is not a detector.

  Source: Tian et al. 2019, FCOS, with the expected overlap in place of centerness (Wu et al. 2020,
  IoU-aware detector), whose points may lie outside of thin boxes.
  """

  gamma: float = 2.0
  alpha: float = 0.25
  radius: float = 1.0
  candidates: int = 300
  detections: int = 100
  overlap: float = 0.6
  min_score: float = 0.05

  def __post_init__(self):
    super().__post_init__()
    check_number('gamma', self.gamma, at_least=0)
    check_number('alpha', self.alpha, above=0, below=1)
    check_number('radius', self.radius, at_least=0.5)
    check_number('candidates', self.candidates, at_least=1)
    check_number('detections', self.detections, at_least=1)
    check_number('overlap', self.overlap, at_least=0, at_most=1)
    check_number('min_score', self.min_score, above=0, below=1)
    if not isinstance(self.model, HasStrides):
      raise InputError(
        f'task.model={type(self.model).__name__}: expected a detector, such as '
        'bmx.models.detector:Detector'
      )

  @property
  def labels_for_metrics(self) -> tuple[str, ...]:
    return ('boxes', 'box_label', 'box_weights', *OPTIONAL)

  def validate(self, metadata: Metadata) -> None:
    given, outputs = metadata.get('num_classes', 0), num_outputs(self.model)
    if given != outputs:
      raise InputError(
        f'num_outputs={outputs}: expected {given}, the number of classes of the data'
      )

  def check_rows(self, rows: HostBatch, numbers: np.ndarray) -> None:
    if 'boxes' not in rows:
      return
    weights = rows['box_weights']
    check_ids('box_label', rows['box_label'], num_outputs(self.model), numbers, weights)
    sides = rows['boxes'][..., 2:] - rows['boxes'][..., :2]
    bad = (weights > 0) & ~(sides > 0).all(-1)
    if bad.any():
      row, i = np.argwhere(bad)[0]
      raise InputError(
        f'boxes={rows["boxes"][row, i].tolist()} of example {numbers[row]}: expected '
        '(top, left, bottom, right) with top < bottom and left < right'
      )

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return (find(batch, 'image'),)

  def score(self, out: Detections, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    grid = self._points(batch)
    targets = assign(grid, find(batch, 'boxes'), batch['box_label'], batch['box_weights'],
                     batch.get('box_crowd'), self.radius)  # fmt: skip
    label = jnp.where(targets.weights > 0, targets.label, -1)  # -1 is of no class
    classes = jax.nn.one_hot(label, out.logits.shape[-1])
    focals = focal(out.logits, classes, self.gamma, self.alpha).sum(-1)
    boxes = boxes_of(grid, out.places)
    shared = jax.lax.stop_gradient(iou(boxes, targets.boxes))
    quality = binary_cross_entropy(out.quality, shared)
    found = jnp.maximum(targets.weights.sum(-1), 1.0)
    mean = lambda values: (targets.weights * values).sum(-1) / found
    parts = {
      'class_loss': jnp.where(targets.ignored, 0.0, focals).sum(-1) / found,
      'box_loss': mean(1 - giou(boxes, targets.boxes)),
      'quality_loss': mean(quality),
    }
    metrics = {name: weighted(part, batch['weights']) for name, part in parts.items()}
    total = jnp.stack(list(metrics.values())).sum(0)[0]
    return total, metrics['class_loss'][1], metrics

  def postprocess(self, out: Detections, batch: Batch) -> dict[str, Array]:
    height, width = batch['image'].shape[1:3]
    probability = jnp.sqrt(jax.nn.sigmoid(out.logits) * jax.nn.sigmoid(out.quality)[..., None])
    flat = probability.reshape(len(probability), -1)
    scores, index = jax.lax.top_k(flat, min(self.candidates, flat.shape[1]))
    point, label = jnp.divmod(index, probability.shape[-1])
    boxes = jnp.clip(
      boxes_of(self._points(batch), out.places),
      0.0,
      jnp.array([[[height, width, height, width]]], jnp.float32),
    )
    boxes = jnp.take_along_axis(boxes, point[..., None], 1)
    scores = jnp.where((scores >= self.min_score) & (area(boxes) > 0), scores, 0.0)
    chosen, kept = non_maximum_suppression(boxes, scores, label, self.detections, self.overlap)
    boxes = jnp.take_along_axis(boxes, chosen[..., None], 1)
    label = jnp.where(kept > 0, jnp.take_along_axis(label, chosen, 1), -1)
    return {'box': original(boxes, batch), 'score': kept, 'prediction': label}

  def readable(self, rows: HostBatch, metadata: Metadata) -> list[dict[str, Any]]:
    return readable.objects(rows, metadata)

  def illustrate(self, rows: HostBatch, data: Data) -> Sequence[Section]:
    return pictures.detections(rows, data) if 'boxes' in rows else []

  def _points(self, batch: Batch) -> Points:
    assert isinstance(self.model, HasStrides)
    return points(batch['image'].shape[1:3], self.model.strides)


class Targets(NamedTuple):
  """What each point should predict.

  Attributes:
    label: class, int [B, P].
    boxes: [B, P, 4]; of the points without one, a box of area 1.
    weights: of the box; 0 for a point without one, [B, P].
    ignored: points that count nothing, bool [B, P].
  """

  label: Array
  boxes: Array
  weights: Array
  ignored: Array


def assign(
  grid: Points, boxes: Array, label: Array, weights: Array, crowd: Array | None, radius: float
) -> Targets:
  """Assigns a box to each point: the smallest of those whose center is near.

  Args:
    grid: the points.
    boxes: [B, M, 4].
    label: int [B, M].
    weights: [B, M], 0 where there is not a box.
    crowd: [B, M], 1 for regions of many objects; None without any.
    radius: rows or columns from the center, in strides.
  """
  boxes = boxes.astype(jnp.float32)
  single = weights > 0 if crowd is None else (weights > 0) & (crowd == 0)
  center = jnp.asarray(grid.center).reshape(1, -1, 1, 2)
  column = lambda values: jnp.asarray(values).reshape(1, -1, 1)
  off = jnp.abs(center - (boxes[:, None, :, :2] + boxes[:, None, :, 2:]) / 2).max(-1)
  longer = (boxes[..., 2:] - boxes[..., :2]).max(-1)[:, None]
  mine = single[:, None] & (off <= radius * column(grid.stride))
  mine &= (longer > column(grid.least)) & (longer <= column(grid.most))
  best = jnp.where(mine, area(boxes)[:, None], jnp.inf).argmin(-1)
  found = mine.any(-1)
  take = lambda x: jnp.take_along_axis(x, best, 1)
  chosen = jnp.take_along_axis(boxes, best[..., None], 1)
  unit = jnp.array([[[0.0, 0.0, 1.0, 1.0]]])
  chosen = jnp.where(found[..., None], chosen, unit)
  ignored = jnp.zeros_like(found)
  if crowd is not None:
    region = (weights > 0) & (crowd > 0)
    sides = center - boxes[:, None, :, :2], boxes[:, None, :, 2:] - center
    inside = (jnp.minimum(*sides) > 0).all(-1)
    ignored = (region[:, None] & inside).any(-1) & ~found
  return Targets(take(label), chosen, jnp.where(found, take(weights), 0.0), ignored)


def boxes_of(grid: Points, places: Array) -> Array:
  """Returns the boxes [B, P, 4] of the places [B, P, 4] of a detector."""
  center = jnp.asarray(grid.center)[None] + places[..., :2]
  return jnp.concatenate([center - places[..., 2:] / 2, center + places[..., 2:] / 2], -1)


def original(boxes: Array, batch: Batch) -> Array:
  """Returns boxes [B, N, 4] of images as given, in pixels of their originals, see `frame`."""
  if 'frame' not in batch:
    return boxes
  scale, size = batch['frame'][:, None, :2], batch['frame'][:, None, 2:]
  twice = lambda x: jnp.concatenate([x, x], -1)
  return jnp.clip(boxes / twice(scale), 0.0, twice(size))
