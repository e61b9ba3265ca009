"""GradFns: the gradient of a task's weighted sum, and its wrappers."""

import dataclasses
import logging
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from bmx.core import streams, tree
from bmx.core.errors import InputError, did_you_mean
from bmx.core.metrics import add
from bmx.core.types import (
  Array,
  Batch,
  Coupling,
  GradFn,
  Grads,
  Noise,
  SparseRows,
  StatefulGradFn,
  Task,
  Variables,
  facts_of,
)
from bmx.ops.lookup import look_up

log = logging.getLogger('bmx')


@runtime_checkable
class Described(Protocol):
  """A GradFn that declares what a wrapper around it must know."""

  @property
  def coupling(self) -> Coupling:
    """How the examples of a batch see each other."""
    ...

  @property
  def averaged(self) -> tuple[str, ...]:
    """Collections that are updated once a step."""
    ...

  @property
  def carried(self) -> tuple[str, ...]:
    """Collections with a row for each example, see `core.types.Facts`."""
    ...

  @property
  def micro_batches(self) -> int:
    """Number of forward passes of a step."""
    ...


@dataclasses.dataclass(frozen=True)
class Gradient:
  """The innermost GradFn: the gradient of a task's weighted sum with respect to 'params'.

  Tables that the model looks up sparsely (`Facts.sparse_tables`) get gradients of their rows.
  """

  task: Task

  @property
  def coupling(self) -> Coupling:
    """That of the task."""
    return self.task.coupling

  @property
  def averaged(self) -> tuple[str, ...]:
    """Collections that are updated once a step."""
    return self.task.averaged

  @property
  def carried(self) -> tuple[str, ...]:
    """Those of the model."""
    return facts_of(self.task.model).carried

  @property
  def micro_batches(self) -> int:
    """Number of forward passes of a step."""
    return 1

  def init(self, variables: Variables) -> Variables:
    """Has no collections of its own."""
    return {}

  def __call__(self, variables: Variables, batch: Batch, noise: Noise) -> Grads:
    """Returns the gradient of the sum, with its count, metrics and new collections."""

    def loss(params, rows):
      given = {**variables, 'params': params} | rows
      result = self.task.loss(given, batch, noise, train=True)
      return result.sum, result

    params, tables = variables['params'], facts_of(self.task.model).sparse_tables
    if not tables:
      grads, result = jax.grad(loss, has_aux=True)(params, {})
      return Grads(grads, result.count, result.metrics, result.collections)
    ids, rows = self._rows(variables, batch, noise, tables)

    def rows_loss(dense, rows):
      flat = tree.named(dense) | {name: flat_params[name] for name in tables}
      return loss(tree.nested(flat), {'rows': tree.nested(rows)})

    flat_params = tree.named(params)
    dense = tree.nested({k: v for k, v in flat_params.items() if k not in tables})
    (grads, of_rows), result = jax.grad(rows_loss, (0, 1), has_aux=True)(dense, rows)
    sparse = {k: combine(ids[k], g, len(flat_params[k])) for k, g in of_rows.items()}
    whole = tree.named(grads) | sparse
    grads = tree.map_named(lambda name, _: whole[name], params)
    return Grads(grads, result.count, result.metrics, result.collections)

  def _rows(
    self, variables: Variables, batch: Batch, noise: Noise, tables: tuple[str, ...]
  ) -> tuple[dict[str, Array], dict[str, Array]]:
    """Returns (ids [n], rows [n, D]) of each table; the compiler keeps only the ids."""
    prepared = self.task.prepare(batch, noise.fold(streams.PREPARE), train=True)
    out, _ = self.task.forward(variables, prepared, noise, train=True, collect=('row_ids',))
    params = tree.named(variables['params'])
    ids = {k.removeprefix('row_ids/'): v for k, v in out.captured.items()}
    for name in tables:
      if name not in params or name not in ids:
        raise InputError(f'facts.sparse_tables={name!r}: expected the path of a Table'
                         f'{did_you_mean(name, ids)}')  # fmt: skip
    return ids, {name: look_up(params[name], ids[name]) for name in tables}


def described(grad_fn: GradFn) -> Described:
  """Returns a GradFn that declares what a wrapper around it must know.

  Raises InputError if it does not.
  """
  if not isinstance(grad_fn, Described):
    raise InputError(
      f'{type(grad_fn).__name__} does not declare coupling, averaged, carried and micro_batches: '
      'derive it from bmx.train.gradients.GradWrapper'
    )
  return grad_fn


@dataclasses.dataclass(frozen=True)
class GradWrapper:
  """A GradFn around a GradFn; what it declares is the inner one's unless a subclass defines it.

  Attributes:
    inner: the GradFn that a subclass calls.
  """

  inner: GradFn

  @property
  def coupling(self) -> Coupling:
    """How the examples of a batch see each other."""
    return described(self.inner).coupling

  @property
  def averaged(self) -> tuple[str, ...]:
    """Collections that are updated once a step."""
    return described(self.inner).averaged

  @property
  def carried(self) -> tuple[str, ...]:
    """Collections with a row for each example."""
    return described(self.inner).carried

  @property
  def micro_batches(self) -> int:
    """Number of forward passes of a step."""
    return described(self.inner).micro_batches

  def init(self, variables: Variables) -> Variables:
    """Returns the collections of the inner GradFn."""
    return self.inner.init(variables) if isinstance(self.inner, StatefulGradFn) else {}


@dataclasses.dataclass(frozen=True)
class Accumulate(GradWrapper):
  """A GradFn over `steps` micro-batches, one after another; the sum is that of the whole batch.

  Micro-batch i has rows i, i + steps, i + 2·steps, ...: a strided split, so that no row of a
  sharded batch moves. If examples share statistics (batch norm), they are those of a micro-batch;
  running statistics are updated once, with the mean of the micro-batches'. State that is carried
  from batch to batch is split as the rows are: a row stands in the same micro-batch at each step.

  Attributes:
    inner: GradFn of one micro-batch.
    steps: number of micro-batches.
    batch_size: of the whole batch.

  Raises:
    InputError: `steps` does not divide `batch_size`; a loss that compares the examples of a batch;
      an inner GradFn that does not declare whether it does.
  """

  steps: int
  batch_size: int

  def __post_init__(self):
    if self.steps < 1 or self.batch_size % self.steps:
      raise InputError(
        f'grad.steps={self.steps}: expected a divisor of batch_size={self.batch_size}'
      )
    if self.steps > 1 and self.coupling == 'loss':
      raise InputError(
        f'grad.steps={self.steps}: expected 1, or grad.call=bmx.train.gradcache:GradCache; the '
        'loss compares the examples of a batch, so micro-batches have another objective'
      )
    if self.steps > 1 and self.coupling == 'statistics':
      log.warning('accumulation: statistics of a batch are those of a micro-batch of %d examples',
                  self.batch_size // self.steps)  # fmt: skip

  @property
  def micro_batches(self) -> int:
    """Number of forward passes of a step."""
    return self.steps * super().micro_batches

  def __call__(self, variables: Variables, batch: Batch, noise: Noise) -> Grads:
    """Returns the gradient of the whole batch's sum."""
    split = lambda x: x.reshape(-1, self.steps, *x.shape[1:]).swapaxes(0, 1)
    own = {k: variables[k] for k in self.carried}
    micro = jax.tree.map(split, (batch, own))
    # The first micro-batch outside the scan gives the carry its structure and dtypes.
    head, tail = jax.tree.map(lambda x: x[0], micro), jax.tree.map(lambda x: x[1:], micro)

    def gradient(number, item, chained):
      batch, own = item
      grads = self.inner({**variables, **chained, **own}, batch, noise.fold(number))
      own = {k: grads.collections[k] for k in self.carried}
      rest = {k: v for k, v in grads.collections.items() if k not in self.carried}
      grads, rows = _apart(grads._replace(collections=rest))
      return grads, rows, own

    first, rows, own = gradient(0, head, {})

    def body(carry, item):
      # A loop of one trip is not a loop to XLA: without the barrier it computes both micro-batches
      # side by side, and holds the activations of both.
      carry, (number, item) = jax.lax.optimization_barrier((carry, item))
      chained = {k: v for k, v in carry.collections.items() if k not in self.averaged}
      new, *more = gradient(number, item, chained)
      return self._join(carry, new), more

    total, (more, others) = jax.lax.scan(body, first, (jnp.arange(1, self.steps), tail))
    rows = jax.tree.map(lambda a, b: jnp.concatenate([a, b.reshape(-1, *a.shape[1:])]), rows, more)
    own = jax.tree.map(_interleave, own, others)
    mean = {k: jax.tree.map(self._mean, v) if k in self.averaged else v
            for k, v in total.collections.items()}  # fmt: skip
    return _together(total._replace(collections=mean | own), rows, variables['params'])

  def _join(self, a: Grads, b: Grads) -> Grads:
    together = {k: jax.tree.map(jnp.add, a.collections[k], v) if k in self.averaged else v
                for k, v in b.collections.items()}  # fmt: skip
    sums = jax.tree.map(jnp.add, a.sum, b.sum)
    return Grads(sums, a.count + b.count, add(a.metrics, b.metrics), together)

  def _mean(self, total: Array) -> Array:
    return (total / self.steps).astype(total.dtype)


def divide(grads: Grads) -> Grads:
  """Divides the sum by its count once; a count of 0 leaves the sum as it is."""
  count = jnp.where(grads.count > 0, grads.count, 1.0)

  def one(g):
    if tree.is_rows(g):
      return g._replace(values=g.values / count.astype(g.values.dtype))
    return g / count.astype(g.dtype)

  return grads._replace(sum=jax.tree.map(one, grads.sum, is_leaf=tree.is_rows))


def combine(indices: Array, values: Array, rows: int) -> SparseRows:
  """Adds values of equal indices: int [n], float [n, D] -> each index of a table [V, D] once.

  Unused positions get the index V, which no update reaches.
  """
  order = jnp.argsort(indices)
  indices, values = indices[order].astype(jnp.int32), values[order]
  first = jnp.concatenate([jnp.ones(1, bool), indices[1:] != indices[:-1]])
  segment = jnp.cumsum(first) - 1
  summed = jax.ops.segment_sum(values, segment, len(indices))
  distinct = jnp.full(len(indices), rows, jnp.int32).at[segment].set(indices)
  return SparseRows(distinct, summed)


def _interleave(first: Array, others: Array) -> Array:
  """Joins what `Accumulate` has split: [b, ...] and [steps - 1, b, ...] -> [steps · b, ...]."""
  parts = jnp.concatenate([first[None], others]).swapaxes(0, 1)
  return parts.reshape(-1, *first.shape[1:])


def _apart(grads: Grads) -> tuple[Grads, dict[str, SparseRows]]:
  """Splits gradients -> (those without rows of tables, the rows by name)."""
  named = tree.named(grads.sum, is_leaf=tree.is_rows)
  rows = {k: v for k, v in named.items() if tree.is_rows(v)}
  if not rows:
    return grads, {}
  dense = tree.nested({k: v for k, v in named.items() if k not in rows})
  return grads._replace(sum=dense), rows


def _together(grads: Grads, rows: dict[str, SparseRows], params: Any) -> Grads:
  """Inverse of `_apart`, with each row once."""
  if not rows:
    return grads
  tables = tree.named(params)
  one = {k: combine(v.indices, v.values, len(tables[k])) for k, v in rows.items()}
  dense = tree.named(grads.sum)
  return grads._replace(sum=tree.map_named(lambda name, _: one.get(name, dense.get(name)), params))
