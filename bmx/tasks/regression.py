"""Regression: a number, or several."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bmx.core.errors import InputError
from bmx.core.metrics import Metrics, weighted
from bmx.core.types import Array, Batch
from bmx.ops.losses import squared_error
from bmx.tasks.common import ModelTask, classes, find


@dataclasses.dataclass(frozen=True)
class Regression(ModelTask):
  """Mean squared error. Reads `x` or `image`, and `y` float [B, D] for a model of D outputs."""

  def check(self, info: Mapping[str, Any]) -> None:
    targets = info.get('targets', 0)
    if not targets:
      raise InputError('regression needs targets, and the data has none: it has no key y')
    if classes(self.model) not in (0, targets):
      raise InputError(f'the data has {targets} targets, the model {classes(self.model)} outputs')

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return (find(batch, 'x', 'image'),)

  def measure(self, out: Array, batch: Batch) -> Metrics:
    return {'loss': weighted(squared_error(out, find(batch, 'y')), batch['weights'])}

  def outputs(self, out: Array, batch: Batch) -> dict[str, Array]:
    return {'prediction': out}
