"""Regression: a number, or several."""

import dataclasses
from typing import Any

from bmx.core.errors import InputError
from bmx.core.metrics import Metrics, weighted
from bmx.core.types import Array, Batch, Metadata
from bmx.ops.losses import squared_error
from bmx.tasks.common import ModelTask, find, num_outputs


@dataclasses.dataclass(frozen=True)
class Regression(ModelTask):
  """Mean squared error. Reads `x` or `image`, and `y` float [B, D] for a model of D outputs."""

  @property
  def labels_for_metrics(self) -> tuple[str, ...]:
    return ('y',)

  def validate(self, metadata: Metadata) -> None:
    targets, outputs = metadata.get('num_targets', 0), num_outputs(self.model)
    if not targets:
      raise InputError('the data has no key y: regression expects a data set with targets')
    if outputs not in (0, targets):
      raise InputError(f'num_outputs={outputs}: expected {targets}, the number of targets')

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return (find(batch, 'x', 'image'),)

  def score(self, out: Array, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    y = find(batch, 'y')
    if out.shape != y.shape or y.ndim < 2:
      raise InputError(f'y: expected [B, D] like the outputs {out.shape}, not {y.shape}')
    total, count = weighted(squared_error(out, y), batch['weights'])
    return total, count, {}

  def postprocess(self, out: Array, batch: Batch) -> dict[str, Array]:
    return {'prediction': out}
