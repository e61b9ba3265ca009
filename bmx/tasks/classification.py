"""Classification: which class, or yes and no."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.errors import InputError
from bmx.core.metrics import Metrics, weighted
from bmx.core.types import Array, Batch, Rows
from bmx.ops.losses import binary_cross_entropy, cross_entropy
from bmx.tasks.common import ModelTask, classes, counts, find


@dataclasses.dataclass(frozen=True)
class Classification(ModelTask):
  """Softmax cross-entropy over the model's outputs. Reads `image` or `x`, and `label` int [B].

  Attributes:
    smoothing: share of the target given to all classes alike.
  """

  smoothing: float = 0.0

  def check(self, info: Mapping[str, Any]) -> None:
    _check_classes(classes(self.model), info)

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return (find(batch, 'image', 'x'),)

  def measure(self, out: Array, batch: Batch) -> Metrics:
    label, weights = find(batch, 'label'), batch['weights']
    loss = cross_entropy(out, label, self.smoothing)
    return {
      'loss': weighted(loss, weights),
      'accuracy': counts(out.argmax(-1) == label, weights),
    }

  def outputs(self, out: Array, batch: Batch) -> dict[str, Array]:
    return {'prediction': out.argmax(-1), 'probability': jax.nn.softmax(out.astype(jnp.float32))}


@dataclasses.dataclass(frozen=True)
class BinaryClassification(ModelTask):
  """Sigmoid cross-entropy on one output. Reads `image` or `x`, and `label` 0 or 1, int [B]."""

  def check(self, info: Mapping[str, Any]) -> None:
    given, outputs = info.get('classes', 0), classes(self.model)
    if given and (given != 2 or outputs not in (0, 1)):
      raise InputError(
        f'the data has {given} classes, the model {outputs} outputs; a binary task needs 2 classes '
        'and outputs=1'
      )
    _check_classes(2, info)

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return (find(batch, 'image', 'x'),)

  def measure(self, out: Array, batch: Batch) -> Metrics:
    label, weights = find(batch, 'label'), batch['weights']
    return {
      'loss': weighted(binary_cross_entropy(out[:, 0], label), weights),
      'accuracy': counts((out[:, 0] > 0) == (label > 0), weights),
    }

  def outputs(self, out: Array, batch: Batch) -> dict[str, Array]:
    score = jax.nn.sigmoid(out[:, 0].astype(jnp.float32))
    return {'prediction': (score > 0.5).astype(jnp.int32), 'score': score}


def auc(rows: Rows) -> float:
  """Area under the ROC curve: the chance that a positive scores above a negative, ties half.

  rows: 'score' [N] and 'label' [N]. Raises InputError where one class is absent.
  Source: Mann & Whitney 1947, by ranks.
  """
  score, positive = rows['score'], rows['label'] > 0
  if positive.all() or not positive.any():
    raise InputError('AUC needs examples of both classes; the split has only one')
  _, inverse, count = np.unique(score, return_inverse=True, return_counts=True)
  rank = (np.cumsum(count) - (count - 1) / 2)[inverse]
  n, m = positive.sum(), (~positive).sum()
  return float((rank[positive].sum() - n * (n + 1) / 2) / (n * m))


def _check_classes(expected: int, info: Mapping[str, Any]) -> None:
  """The data says how many classes it has; `expected` 0 is a model that does not say."""
  given = info.get('classes', 0)
  if not given:
    raise InputError('classification needs labels, and the data has none: use a set with classes')
  if expected and expected != given:
    raise InputError(f"the data has {given} classes, but the model's outputs are {expected}")
