"""Optimizers of sparse tables: only the rows of a batch are read and written."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Array, Schedule, SparseRows
from bmx.optim.optimizers import check_moments


class LazyAdamState(NamedTuple):
  """Moments of whole tables, float32 [V, D] each, and the number of updates."""

  count: Array
  mu: Any
  nu: Any


def lazy_adam(
  learning_rate: Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
  """Adam of rows: moments of a row move only in the steps whose batch has the row.

  The bias correction counts all steps, as in TensorFlow's LazyAdam. Every update is `SparseRows`.

  Args:
    learning_rate: a schedule.
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.

  Raises:
    InputError: a number is out of range.
  """
  check_moments(b1, b2, eps)

  def init(params):
    zeros = lambda: jax.tree.map(jnp.zeros_like, params)
    return LazyAdamState(jnp.zeros((), jnp.int32), zeros(), zeros())

  def update(updates, state, params=None):
    count = state.count + 1
    rate = learning_rate(state.count)
    steps = count.astype(jnp.float32)
    correct = jnp.sqrt(1 - b2**steps) / (1 - b1**steps)
    mu, nu, new = {}, {}, {}
    for name, rows in updates.items():
      g = rows.values
      # An index beyond the table reads its last row and writes nothing.
      m = b1 * state.mu[name].at[rows.indices].get(mode='clip') + (1 - b1) * g
      v = b2 * state.nu[name].at[rows.indices].get(mode='clip') + (1 - b2) * g * g
      mu[name] = state.mu[name].at[rows.indices].set(m, mode='drop', unique_indices=False)
      nu[name] = state.nu[name].at[rows.indices].set(v, mode='drop', unique_indices=False)
      root = jnp.sqrt(v) + eps * jnp.sqrt(1 - b2**steps)
      new[name] = rows._replace(values=-rate * correct * m / root)
    return new, LazyAdamState(count, mu, nu)

  return optax.GradientTransformation(init, update)


class WithTablesState(NamedTuple):
  """State of the optimizer of all other parameters, and of that of the tables."""

  inner: Any
  rows: Any


def with_tables(
  inner: optax.GradientTransformation, rows: optax.GradientTransformation, tables: str
) -> optax.GradientTransformation:
  """One optimizer for sparse tables, another one for all other parameters.

  Clipping and decay of `inner` do not see the tables.

  Args:
    inner: of parameters with dense gradients.
    rows: of tables, a dict name -> `SparseRows`.
    tables: regex of the names of the tables.

  Raises:
    InputError: the regex matches no parameter; a gradient that is not of the kind expected; a
      transform `rows` that changes indices.
  """

  def apart(values):
    chosen = tree.named(tree.mask(values, tables, is_leaf=tree.is_rows))
    named = tree.named(values, is_leaf=tree.is_rows)
    dense = tree.nested({k: v for k, v in named.items() if not chosen[k]})
    return dense, {k: v for k, v in named.items() if chosen[k]}

  def init(params):
    dense, large = apart(params)
    return WithTablesState(inner.init(dense), rows.init(large))

  def update(updates, state, params=None):
    dense, large = apart(updates)
    kinds = [isinstance(v, SparseRows) for v in large.values()]
    others = [tree.is_rows(v) for v in tree.rows_or_leaves(dense)]
    if not all(kinds) or any(others):
      raise InputError(
        f"optimizer.tables={tables!r}: expected the tables of the model's facts.sparse_tables"
      )
    dense_params, tables_of = (None, None) if params is None else apart(params)
    new, inner_state = inner.update(dense, state.inner, dense_params)
    changed: Any = rows.update(large, state.rows, tables_of)
    moved, rows_state = changed
    # Generic transforms would compute with indices as if they were values.
    if any(moved[name].indices is not v.indices for name, v in large.items()):
      raise InputError('optimizer.rows: expected a transform of `SparseRows`, such as lazy_adam')
    flat = tree.named(new) | dict(moved)  # type: ignore
    ordered = tree.named(updates, is_leaf=tree.is_rows)
    together = tree.nested({name: flat[name] for name in ordered})
    return together, WithTablesState(inner_state, rows_state)

  return optax.GradientTransformation(init, update)
