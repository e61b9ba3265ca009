"""Classification: of several classes, or binary."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.data import Data
from bmx.core.errors import InputError
from bmx.core.metrics import Metrics, weighted
from bmx.core.ranges import check_number
from bmx.core.types import Array, Batch, Coupling, HostBatch, Metadata, Noise
from bmx.ops.checks import check_ids
from bmx.ops.losses import binary_cross_entropy, cross_entropy
from bmx.runtime.report import Section
from bmx.tasks import illustrations, mixing, readable
from bmx.tasks.common import ModelTask, counts, find, num_outputs


@dataclasses.dataclass(frozen=True)
class Classification(ModelTask):
  """Softmax cross-entropy over the model's outputs. Reads `image` or `x`, and `label` int [B].

  Attributes:
    smoothing: share of the target spread over all classes, in training only.
    mixup: of the distribution Beta(mixup, mixup) of shares of mixed examples; 0: off.
    cutmix: of the distribution Beta(cutmix, cutmix) of shares of exchanged parts; 0: off.

  Raises:
    InputError: `smoothing` is not a share below 1; a negative `mixup` or `cutmix`.
  """

  smoothing: float = 0.0
  mixup: float = 0.0
  cutmix: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    check_number('smoothing', self.smoothing, at_least=0, below=1)
    check_number('mixup', self.mixup, at_least=0)
    check_number('cutmix', self.cutmix, at_least=0)

  @property
  def coupling(self) -> Coupling:
    mixes = self.mixup or self.cutmix
    return 'statistics' if mixes and super().coupling == 'none' else super().coupling

  @property
  def labels_for_metrics(self) -> tuple[str, ...]:
    return ('label',)

  def validate(self, metadata: Metadata) -> None:
    _check_classes(num_outputs(self.model), metadata)

  def check_rows(self, rows: HostBatch, numbers: np.ndarray) -> None:
    if 'label' in rows and num_outputs(self.model):
      check_ids('label', rows['label'], num_outputs(self.model), numbers, rows.get('weights'))

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return (find(batch, 'image', 'x'),)

  def prepare(self, batch: Batch, noise: Noise, *, train: bool) -> Batch:
    if not train or not (self.mixup or self.cutmix):
      return batch
    key = 'image' if 'image' in batch else 'x'
    return mixing.mix(batch, key, noise, self.mixup, self.cutmix)

  def score(self, out: Array, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    label, weights = find(batch, 'label'), batch['weights']
    if mixing.SHARE not in batch:
      return self._score(out, label, weights, train)
    # A loss of soft targets is linear in them. Accuracy counts the share of the predicted label.
    share = batch[mixing.SHARE]
    own = self._score(out, label, share * weights, train)
    other = self._score(out, batch[mixing.LABEL], (1 - share) * batch[mixing.WEIGHTS], train)
    return jax.tree.map(jnp.add, own, other)

  def _score(
    self, out: Array, label: Array, weights: Array, train: bool
  ) -> tuple[Array, Array, Metrics]:
    total, count = weighted(cross_entropy(out, label, self.smoothing if train else 0.0), weights)
    return total, count, {'accuracy': counts(out.argmax(-1) == label, weights)}

  def postprocess(self, out: Array, batch: Batch) -> dict[str, Array]:
    return {'prediction': out.argmax(-1), 'probability': jax.nn.softmax(out.astype(jnp.float32))}

  def readable(self, rows: HostBatch, metadata: Metadata) -> list[dict[str, Any]]:
    return readable.classes(rows, rows['probability'], metadata)

  def illustrate(self, rows: HostBatch, data: Data) -> list[Section]:
    if 'label' not in rows:
      return []
    return illustrations.classes(rows['prediction'], rows['label'], rows['probability'], data)


@dataclasses.dataclass(frozen=True)
class BinaryClassification(ModelTask):
  """Sigmoid cross-entropy on one output. Reads `image` or `x`, and `label` 0 or 1, int [B]."""

  @property
  def labels_for_metrics(self) -> tuple[str, ...]:
    return ('label',)

  def validate(self, metadata: Metadata) -> None:
    given, outputs = metadata.get('num_classes', 0), num_outputs(self.model)
    if given and (given != 2 or outputs not in (0, 1)):
      raise InputError(
        f'num_outputs={outputs}, and the data has {given} classes: a binary task expects 2 classes '
        'and num_outputs=1'
      )
    _check_classes(2, metadata)

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return (find(batch, 'image', 'x'),)

  def score(self, out: Array, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    label, weights = find(batch, 'label'), batch['weights']
    total, count = weighted(binary_cross_entropy(out[:, 0], label), weights)
    return total, count, {'accuracy': counts((out[:, 0] > 0) == (label > 0), weights)}

  def postprocess(self, out: Array, batch: Batch) -> dict[str, Array]:
    score = jax.nn.sigmoid(out[:, 0].astype(jnp.float32))
    return {'prediction': (score > 0.5).astype(jnp.int32), 'score': score}

  def readable(self, rows: HostBatch, metadata: Metadata) -> list[dict[str, Any]]:
    return readable.classes(rows, np.stack([1 - rows['score'], rows['score']], 1), metadata)

  def illustrate(self, rows: HostBatch, data: Data) -> list[Section]:
    if 'label' not in rows:
      return []
    both = np.stack([1 - rows['score'], rows['score']], -1)
    return illustrations.classes(rows['prediction'], rows['label'], both, data)


def auc(rows: HostBatch) -> float:
  """Computes the area under the ROC curve.

  It is the probability that a positive scores above a negative; ties count half.

  Source: Mann & Whitney 1947, by ranks.

  Args:
    rows: 'score' float [N] and 'label' int [N].

  Raises:
    InputError: one class is absent.
  """
  score, positive = rows['score'], rows['label'] > 0
  if positive.all() or not positive.any():
    raise InputError('AUC needs examples of both classes; the split has only one')
  _, inverse, count = np.unique(score, return_inverse=True, return_counts=True)
  rank = (np.cumsum(count) - (count - 1) / 2)[inverse]
  n, m = positive.sum(), (~positive).sum()
  return float((rank[positive].sum() - n * (n + 1) / 2) / (n * m))


def _check_classes(expected: int, metadata: Metadata) -> None:
  """Compares the classes of the data with those of the model; 0 if the model fixes none."""
  given = metadata.get('num_classes', 0)
  if not given:
    raise InputError('the data has no labels: classification expects a data set with classes')
  if expected and expected != given:
    raise InputError(f'num_outputs={expected}: expected {given}, the number of classes of the data')
