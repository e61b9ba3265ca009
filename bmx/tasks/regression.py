"""Regression: a number, or several."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from bmx.core.data import Data
from bmx.core.errors import InputError
from bmx.core.metrics import Metrics, weighted
from bmx.core.ranges import check_number
from bmx.core.types import Array, Batch, HostBatch, Metadata
from bmx.ops.losses import squared_error
from bmx.runtime.report import Section
from bmx.tasks import illustrations, readable
from bmx.tasks.common import ModelTask, find, num_outputs


@dataclasses.dataclass(frozen=True)
class Regression(ModelTask):
  """Mean squared error. Reads `x` or `image`, and `y` float [B, D] for a model of D outputs.

  The model's outputs are (y - mean) / std: the loss is in units of std², predictions and `mae`
  (mean absolute error) are in units of y.

  Attributes:
    mean: of y over the training data.
    std: standard deviation of y over the training data.

  Raises:
    InputError: `std` is not above 0.
  """

  mean: float = 0.0
  std: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    check_number('std', self.std, above=0)

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
    target = (y - self.mean) / self.std
    total, count = weighted(squared_error(out, target), batch['weights'])
    error = jnp.abs(out - target).mean(-1) * self.std
    return total, count, {'mae': jnp.stack(weighted(error, batch['weights']))}

  def postprocess(self, out: Array, batch: Batch) -> dict[str, Array]:
    return {'prediction': out * self.std + self.mean}

  def readable(self, rows: HostBatch, metadata: Metadata) -> list[dict[str, Any]]:
    return readable.numbers(rows)

  def illustrate(self, rows: HostBatch, data: Data) -> list[Section]:
    if 'y' not in rows:
      return []
    return illustrations.numbers(rows['prediction'], rows['y'], data)
