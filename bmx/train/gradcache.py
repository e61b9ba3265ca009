"""The gradient of a loss that compares the examples of a batch, in micro-batches."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bmx.core import streams
from bmx.core.errors import InputError
from bmx.core.types import Batch, Coupling, Grads, Noise, Task, Variables, facts_of
from bmx.train.gradients import Gradient, GradWrapper


@dataclasses.dataclass(frozen=True)
class GradCache(GradWrapper):
  """A GradFn whose model sees micro-batches, and whose loss sees the whole batch.

  First every micro-batch passes forward, and its outputs are kept; then the loss of all outputs
  and its gradient with respect to them; then every micro-batch passes forward again, with the same
  dropout, and backward from that gradient. Activations of one micro-batch exist at a time, for
  one forward pass more. Micro-batch i has rows i, i + steps, i + 2·steps, ..., as of `Accumulate`.

  Source: Gao et al. 2021.

  Attributes:
    inner: the `Gradient` of a task whose examples are coupled by the loss alone. Arrays that its
      model returns have a row for each example, or are scalars that do not depend on examples.
    steps: number of micro-batches.
    batch_size: of the whole batch.

  Raises:
    InputError: `steps` does not divide `batch_size`; another GradFn inside; a task of another
      coupling, with auxiliary losses, or tables with gradients of rows.
  """

  steps: int
  batch_size: int

  def __post_init__(self):
    if self.steps < 1 or self.batch_size % self.steps:
      raise InputError(
        f'grad.steps={self.steps}: expected a divisor of batch_size={self.batch_size}'
      )
    if not isinstance(self.inner, Gradient):
      raise InputError(f'grad.inner={type(self.inner).__name__}: GradCache expects the plain '
                       'gradient of a task; leave other wrappers out')  # fmt: skip
    task = self.inner.task
    if task.coupling != 'loss':
      raise InputError(
        f'GradCache: expected a loss that compares the examples of a batch, and that of '
        f'{type(task).__name__} does not; use bmx.train.gradients:Accumulate'
      )
    facts = facts_of(task.model)
    if facts.coupling != 'none' or task.aux_losses:
      what = ', '.join(task.aux_losses) or 'statistics of the batch (batch norm)'
      raise InputError(f'GradCache: expected a model without {what}, which micro-batches change; '
                       "use task.model.image.norm='group', say")  # fmt: skip
    if facts.sparse_tables:
      raise InputError(f'GradCache: expected dense gradients of {", ".join(facts.sparse_tables)}; '
                       'set task.model.sparse=False')  # fmt: skip

  @property
  def coupling(self) -> Coupling:
    """That of the task: a wrapper may not split the batch."""
    return 'loss'

  @property
  def micro_batches(self) -> int:
    """Number of micro-batches, each of which passes forward twice."""
    return self.steps

  def __call__(self, variables: Variables, batch: Batch, noise: Noise) -> Grads:
    """Returns the gradient of the whole batch's sum."""
    task, params = self._task, variables['params']
    batch = task.prepare(batch, noise.fold(streams.PREPARE), train=True)
    micro = jnp.arange(self.steps), jax.tree.map(self._split, batch)

    def outputs(params: Any, item: tuple[Any, Batch]) -> tuple[Any, Variables]:
      number, rows = item
      given = {**variables, 'params': params}
      out, collections = task.forward(given, rows, noise.fold(number), train=True)
      return out.value, collections

    values, collections = jax.lax.map(lambda item: outputs(params, item), micro)
    kept = {k: v for k, v in collections.items() if jax.tree.leaves(v)}
    if kept:
      raise InputError(f'GradCache: expected a model without state, and it updates {sorted(kept)}')

    def score(whole: Any) -> tuple[Any, Any]:
      total, count, metrics = task.score(whole, batch, train=True)
      return total, (count, {'loss': jnp.stack([total, count])} | metrics)

    whole = jax.tree.map(self._join, values)
    back, (count, metrics) = jax.grad(score, has_aux=True)(whole)

    def add(total: Any, item: Any) -> tuple[Any, None]:
      # Without the barrier XLA could compute all forward passes side by side.
      total, (rows, cotangent) = jax.lax.optimization_barrier((total, item))
      _, pull = jax.vjp(lambda p: outputs(p, rows)[0], params)
      return jax.tree.map(jnp.add, total, pull(cotangent)[0]), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    total, _ = jax.lax.scan(add, zeros, (micro, jax.tree.map(self._part, back)))
    return Grads(total, count, metrics, {})

  @property
  def _task(self) -> Task:
    assert isinstance(self.inner, Gradient)
    return self.inner.task

  def _split(self, x: Any) -> Any:
    """[B, ...] -> [steps, B / steps, ...], so that no row of a sharded batch moves."""
    return x.reshape(-1, self.steps, *x.shape[1:]).swapaxes(0, 1)

  def _join(self, x: Any) -> Any:
    """Inverse of `_split`; of a scalar of each micro-batch [steps], which are equal, the first."""
    return x[0] if x.ndim == 1 else x.swapaxes(0, 1).reshape(-1, *x.shape[2:])

  def _part(self, x: Any) -> Any:
    """Gradients of `_join`: those of a scalar belong to the first micro-batch."""
    return jnp.zeros(self.steps, x.dtype).at[0].set(x) if x.ndim == 0 else self._split(x)
