"""Segmentation: a class for each pixel.

B batch, I rows, J columns, K classes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.data import Data
from bmx.core.errors import InputError
from bmx.core.metrics import Metrics, weighted
from bmx.core.ranges import check_number
from bmx.core.types import Array, Batch, HostBatch, Metadata
from bmx.ops.checks import check_ids
from bmx.ops.losses import cross_entropy
from bmx.runtime.report import Section
from bmx.tasks import pictures, readable
from bmx.tasks.common import ModelTask, find, num_outputs

BYTE_CLASSES = 256  # predictions of so many classes are bytes
OPTIONAL = ('mask_weights', 'frame')  # labels that data may lack


@dataclasses.dataclass(frozen=True)
class Segmentation(ModelTask):
  """Cross-entropy of each pixel, the mean of an image, and Dice loss.

  Reads `image` [B, I, J, C], `mask` int [B, I, J], and `mask_weights` [B, I, J] where pixels are
  left out.

  Attributes:
    model: maps images to [B, I, J, K].
    class_weights: factor of the loss of each class, K; () is 1.
    dice: weight of the Dice loss beside the cross-entropy; 0 is without.

  Raises:
    InputError: a number outside its range.

  Source: Milletari et al. 2016, V-Net, for the Dice loss with squared probabilities.
  """

  class_weights: tuple[float, ...] = ()
  dice: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    check_number('dice', self.dice, at_least=0)
    for weight in self.class_weights:
      check_number('class_weights', weight, at_least=0)
    outputs = num_outputs(self.model)
    if self.class_weights and outputs and len(self.class_weights) != outputs:
      raise InputError(
        f'class_weights={self.class_weights}: expected {outputs} numbers, one for each class'
      )

  @property
  def labels_for_metrics(self) -> tuple[str, ...]:
    return ('mask', *OPTIONAL)

  def validate(self, metadata: Metadata) -> None:
    given, outputs = metadata.get('num_classes', 0), num_outputs(self.model)
    if outputs and given != outputs:
      raise InputError(
        f'num_outputs={outputs}: expected {given}, the number of classes of the data with the '
        'background'
      )

  def check_rows(self, rows: HostBatch, numbers: np.ndarray) -> None:
    if 'mask' in rows and num_outputs(self.model):
      weights = rows.get('mask_weights')
      check_ids('mask', rows['mask'], num_outputs(self.model), numbers, weights)

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return (find(batch, 'image'),)

  def score(self, out: Array, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    mask = find(batch, 'mask')
    if out.shape[:-1] != mask.shape:
      raise InputError(
        f'model: expected outputs of {mask.shape} pixels, those of `mask`, found {out.shape[:-1]}'
      )
    pixels = _pixels(batch)
    factors = jnp.asarray(self.class_weights or (1.0,) * out.shape[-1], jnp.float32)
    shares = pixels * factors[mask.clip(0, out.shape[-1] - 1)]
    loss = _mean(cross_entropy(out, mask), shares)
    if self.dice:
      loss += self.dice * dice_loss(out, mask, pixels)
    # An image without a pixel that counts does not count.
    weights = batch['weights'] * (shares.sum((1, 2)) > 0)
    total, count = weighted(loss, weights)
    right = _mean((out.argmax(-1) == mask).astype(jnp.float32), pixels)
    return total, count, {'pixel_accuracy': weighted(right, weights)}

  def postprocess(self, out: Array, batch: Batch) -> dict[str, Array]:
    small = out.shape[-1] <= BYTE_CLASSES
    return {'prediction': out.argmax(-1).astype(jnp.uint8 if small else jnp.int32)}

  def readable(self, rows: HostBatch, metadata: Metadata) -> list[dict[str, Any]]:
    return readable.segments(rows, metadata)

  def illustrate(self, rows: HostBatch, data: Data) -> Sequence[Section]:
    return pictures.segments(rows, data) if 'mask' in rows else []


def dice_loss(logits: Array, mask: Array, weights: Array) -> Array:
  """Computes 1 - the Dice coefficient, the mean over the classes that an image holds.

  Args:
    logits: [B, I, J, K].
    mask: int [B, I, J].
    weights: of pixels, [B, I, J].

  Returns:
    float32 [B]; 0 for an image without a pixel that counts.
  """
  probability = jax.nn.softmax(logits.astype(jnp.float32))
  truth = jax.nn.one_hot(mask, logits.shape[-1])
  total = lambda x: (x * weights[..., None]).sum((1, 2))
  there = total(truth) > 0
  shared, size = total(probability * truth), total(probability**2) + total(truth)
  loss = 1 - 2 * shared / jnp.where(there, size, 1.0)
  return jnp.where(there, loss, 0.0).sum(-1) / jnp.maximum(there.sum(-1), 1)


def _pixels(batch: Batch) -> Array:
  """The weight of each pixel, float32 [B, I, J]."""
  if 'mask_weights' in batch:
    return batch['mask_weights'].astype(jnp.float32)
  return jnp.ones(batch['mask'].shape, jnp.float32)


def _mean(values: Array, weights: Array) -> Array:
  """The weighted mean over the pixels of each image; 0 without weight."""
  total = jnp.where(weights > 0, values, 0.0) * weights
  count = weights.sum((1, 2))
  return total.sum((1, 2)) / jnp.where(count > 0, count, 1.0)
