"""Bases of tasks: a task over one linen model, and a task around a task."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bmx.core import streams
from bmx.core.data import Data
from bmx.core.errors import InputError
from bmx.core.metrics import Metrics
from bmx.core.types import (
  Array,
  Batch,
  ChecksRows,
  Coupling,
  HostBatch,
  Loss,
  Metadata,
  Noise,
  Out,
  Task,
  Variables,
  facts_of,
)
from bmx.runtime.report import Illustrating, Section
from bmx.tasks import capture as capturing


class BaseTask:
  """`loss` and `predict`, which call the task's own methods, those of a wrapper included."""

  def loss(self: Any, variables: Variables, batch: Batch, noise: Noise, *, train: bool) -> Loss:
    """Returns the weighted sum of the batch, with the auxiliary losses of the model."""
    batch = self.prepare(batch, noise.fold(streams.PREPARE), train=train)
    out, collections = self.forward(variables, batch, noise, train=train)
    total, count, metrics = self.score(out.value, batch, train=train)
    metrics = {'loss': jnp.stack([total, count])} | metrics
    for name, weight in self.aux_losses.items():
      total += weight * out.aux[name] * count
    # An auxiliary value of a batch has the count of the loss.
    metrics |= {k: jnp.stack([v * count, count]) for k, v in out.aux.items()}
    return Loss(total, count, metrics, collections)

  def predict(self: Any, variables: Variables, batch: Batch, noise: Noise) -> dict[str, Array]:
    """Returns the predictions of each example, each array [B, ...]."""
    if self.decodes:
      return self.decode(self.merged_params(variables), batch)
    out, _ = self.forward(variables, batch, noise, train=False, method='logits')
    return self.postprocess(out.value, batch)

  @property
  def aux_losses(self: Any) -> Mapping[str, float]:
    """Name of an auxiliary value of `forward` -> its weight in the loss: those of the model."""
    return facts_of(self.model).aux_losses

  @property
  def decodes(self) -> bool:
    """Whether predictions are texts that `decode` generates with the plain weights."""
    return False

  def decode(self, params: Variables, batch: Batch) -> dict[str, Array]:
    """Generates the predictions of each example, each array [B, ...], where `decodes`."""
    raise NotImplementedError

  def transform(self, tx: Any, steps: int) -> Any:
    """Returns the optimizer as it is."""
    return tx


@dataclasses.dataclass(frozen=True)
class ModelTask(BaseTask):
  """A task over one model.

  A subclass defines the inputs of the model (`inputs`), the loss (`score`) and the predictions
  (`postprocess`).

  Attributes:
    model: a linen module that declares `facts`; its `__call__` takes `(*inputs, train)`.

  Raises:
    InputError: the model declares no facts.
  """

  model: nn.Module

  def __post_init__(self):
    facts_of(self.model)

  @property
  def constant(self) -> tuple[str, ...]:
    return ()

  @property
  def sources(self) -> Mapping[str, tuple[str, Task]]:
    return {}

  @property
  def averaged(self) -> tuple[str, ...]:
    return ('batch_stats',)

  @property
  def coupling(self) -> Coupling:
    return facts_of(self.model).coupling

  @property
  def labels_for_metrics(self) -> tuple[str, ...]:
    return ()

  @property
  def loss_method(self) -> str | None:
    """Method of the model whose output `score` reads; None is `__call__`."""
    return None

  def init(self, noise: Noise, batch: Batch) -> Variables:
    variables = dict(self.model.init(noise.key, *self.inputs(batch), train=False))
    variables.pop('aux', None)  # values of one call are not state
    return variables

  def prepare(self, batch: Batch, noise: Noise, *, train: bool) -> Batch:
    return batch

  def forward(
    self,
    variables: Variables,
    batch: Batch,
    noise: Noise,
    *,
    train: bool,
    method: str = 'loss',
    capture: tuple[str, ...] = (),
    collect: tuple[str, ...] = (),
    read: tuple[str, ...] = (),
    **apply: Any,
  ) -> tuple[Out, Variables]:
    given = ('params', 'rows', *self.constant, *read)
    updated = [k for k in variables if k not in given] if train else []
    out, new = self.model.apply(
      variables,
      *self.inputs(batch),
      train=train,
      rngs={'dropout': noise.key},
      mutable=['aux', *updated, *collect],
      method=self.loss_method if method == 'loss' else None,
      capture_intermediates=capturing.matching(capture) if capture else False,
      **apply,
    )
    new = dict(new)
    aux = capturing.sown(new.pop('aux', {}))
    captured = capturing.captured(new.pop('intermediates', {}))
    capturing.check_captured(capture, captured)
    for name in collect:
      captured |= {f'{name}/{k}': v for k, v in capturing.captured(new.pop(name, {})).items()}
    return Out(out, aux, captured), new

  def merged_params(self, variables: Variables) -> Variables:
    return variables['params']

  def take(self, variables: Variables, given: Variables) -> Variables:
    return {**variables, 'params': given}

  def validate(self, metadata: Metadata) -> None:
    pass

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    """Returns the positional arguments of the model."""
    raise NotImplementedError

  def score(self, out: Any, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    raise NotImplementedError

  def postprocess(self, out: Any, batch: Batch) -> dict[str, Array]:
    raise NotImplementedError


# Roles of wrappers that change how weights are stored, trained or judged -> roles inside them. Any
# other order loses one of them: adapters around a distillation would never see its teacher.
INSIDE = {
  'quantized': (),
  'adapters': ('quantized',),
  'fake': (),
  'distill': ('quantized', 'adapters', 'fake'),
}


@dataclasses.dataclass(frozen=True)
class Wrapper(BaseTask):
  """A task around a task; a subclass inherits the inner task's methods unless it defines them.

  A collection that the wrapper adds ('frozen', 'teacher') is its own: `forward` passes the inner
  task the variables without it.

  Attributes:
    inner: the task inside.
    role: key of INSIDE; '' for a wrapper that fits anywhere.

  Raises:
    InputError: the inner task has a role that this one does not work around.
  """

  inner: Task
  role: ClassVar[str] = ''

  def __post_init__(self):
    self._check_order()

  def _check_order(self) -> None:
    inner: Any = self.inner
    while isinstance(inner, Wrapper):
      if self.role and inner.role and inner.role not in INSIDE[self.role]:
        outside, inside = type(self).__name__, type(inner).__name__
        fix = (
          f'nest them the other way, {inside}({outside}(...))'
          if self.role in INSIDE[inner.role]
          else 'use one of them, write its merged weights, and start the other from these'
        )
        raise InputError(f'task={outside}({inside}(...)): expected another order; {fix}')
      inner = inner.inner

  @property
  def model(self) -> Any:
    return self.inner.model

  @property
  def constant(self) -> tuple[str, ...]:
    return self.inner.constant

  @property
  def sources(self) -> Mapping[str, tuple[str, Task]]:
    return self.inner.sources

  @property
  def averaged(self) -> tuple[str, ...]:
    return self.inner.averaged

  @property
  def coupling(self) -> Coupling:
    return self.inner.coupling

  @property
  def labels_for_metrics(self) -> tuple[str, ...]:
    return self.inner.labels_for_metrics

  @property
  def aux_losses(self) -> Mapping[str, float]:
    return self.inner.aux_losses

  @property
  def decodes(self) -> bool:
    return isinstance(self.inner, BaseTask) and self.inner.decodes

  def decode(self, params: Variables, batch: Batch) -> dict[str, Array]:
    assert isinstance(self.inner, BaseTask)
    return self.inner.decode(params, batch)

  def init(self, noise: Noise, batch: Batch) -> Variables:
    return self.inner.init(noise, batch)

  def prepare(self, batch: Batch, noise: Noise, *, train: bool) -> Batch:
    return self.inner.prepare(batch, noise, train=train)

  def forward(
    self,
    variables: Variables,
    batch: Batch,
    noise: Noise,
    *,
    train: bool,
    method: str = 'loss',
    **apply: Any,
  ) -> tuple[Out, Variables]:
    own = set(self.constant) - set(self.inner.constant)
    variables = {k: v for k, v in variables.items() if k not in own}
    return self.inner.forward(variables, batch, noise, train=train, method=method, **apply)

  def score(self, out: Any, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    return self.inner.score(out, batch, train=train)

  def postprocess(self, out: Any, batch: Batch) -> dict[str, Array]:
    return self.inner.postprocess(out, batch)

  def merged_params(self, variables: Variables) -> Variables:
    return self.inner.merged_params(variables)

  def take(self, variables: Variables, given: Variables) -> Variables:
    return self.inner.take(variables, given)

  def transform(self, tx: Any, steps: int) -> Any:
    return self.inner.transform(tx, steps)

  def validate(self, metadata: Metadata) -> None:
    self.inner.validate(metadata)

  def check_rows(self, rows: HostBatch, numbers: np.ndarray) -> None:
    if isinstance(self.inner, ChecksRows):
      self.inner.check_rows(rows, numbers)

  def illustrate(self, rows: HostBatch, data: Data) -> Sequence[Section]:
    return self.inner.illustrate(rows, data) if isinstance(self.inner, Illustrating) else ()


def innermost(task: Any) -> Any:
  """Returns the task over the model, without the wrappers around it."""
  while isinstance(task, Wrapper):
    task = task.inner
  return task


def find(batch: Mapping[str, Any], *names: str) -> Any:
  """Returns the first of the keys that the batch has.

  Raises InputError if it has none of them.
  """
  for name in names:
    if name in batch:
      return batch[name]
  raise InputError(f'batch: expected a key {" or ".join(names)}, not only {sorted(batch)}')


def num_outputs(model: nn.Module) -> int:
  """Returns the number of outputs that a model declares; 0 if they are not fixed."""
  return facts_of(model).num_outputs


def counts(hits: jax.Array, weights: jax.Array) -> jax.Array:
  """Returns (sum, count) of booleans under weights of the same shape: float32 [2]."""
  return jnp.stack([jnp.where(hits, weights, 0).sum(), weights.sum()]).astype(jnp.float32)
