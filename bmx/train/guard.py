"""The non-finite guard: selects the old state if an update would make it non-finite.

Multiplying by zero is not a substitute (0 × NaN is NaN), nor is zeroing the gradient (moments and
weight decay still move).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.metrics import Metrics
from bmx.core.types import Grads, SparseRows, Variables


def norm(grads: Variables) -> jax.Array:
  """Returns the global norm, float32 []; not finite if any gradient is not.

  Rows of a sparse table are distinct, so their norm is that of the dense gradient.
  """
  values = [g.values if isinstance(g, SparseRows) else g for g in tree.rows_or_leaves(grads)]
  return jnp.sqrt(sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in values))


DECAY, WARMUP = 0.98, 50  # of the average of the norm: its decay, and updates before it is used


def guarded(
  update: Callable[..., Any], state: Any, grads: Grads, spike: float = 0.0
) -> tuple[Any, Metrics]:
  """Returns `update(state, gradient, collections)` if everything is finite, else the old state.

  A rejected update changes neither params, optimizer state, collections nor averages, and the
  step's metrics count for nothing but 'skipped' and 'without_target' (steps whose loss counted
  nothing).

  Args:
    update: (state, divided gradient, new collections) -> state.
    state: TrainState without constant collections.
    grads: `sum` already divided by `count`; loss, gradient norm and new collections are checked.
    spike: also rejects a norm above this many times the average of accepted ones, once `WARMUP`
      updates have been accepted; 0 rejects none.
  """
  size = norm(grads.sum)
  ok = jnp.isfinite(size) & jnp.isfinite(grads.metrics['loss']).all()
  ok &= all_finite(grads.collections)
  if spike:
    mean, seen = state.grad_norm_ema
    ok &= (seen < WARMUP) | (size <= spike * mean)
  metrics = grads.metrics | {'grad_norm': jnp.stack([size, jnp.ones_like(size)])}
  metrics = jax.tree.map(lambda m: jnp.where(ok, m, 0.0), metrics)
  metrics['without_target'] = jnp.stack([1.0 * (grads.metrics['loss'][1] == 0), 1.0])
  metrics['skipped'] = jnp.stack([1.0 - ok, jnp.ones_like(size)])

  def reject(state, *_):
    return state.replace(consecutive_skips=state.consecutive_skips + 1)

  def accept(state, *rest):
    average = _averaged(state.grad_norm_ema, size)
    return update(state, *rest).replace(grad_norm_ema=average, consecutive_skips=jnp.int32(0))

  return jax.lax.cond(ok, accept, reject, state, grads.sum, grads.collections), metrics


def _averaged(average: jax.Array, size: jax.Array) -> jax.Array:
  """Returns a plain mean of the first 1 / (1 - DECAY) norms, a moving average from then on."""
  mean, seen = average
  rate = jnp.maximum(1 / (seen + 1), 1 - DECAY)
  return jnp.stack([mean + rate * (size - mean), seen + 1])


def all_finite(arrays: Any) -> jax.Array:
  """Returns whether every float of a tree is finite: bool []."""
  floats = [x for x in jax.tree.leaves(arrays) if jnp.issubdtype(x.dtype, jnp.floating)]
  if not floats:
    return jnp.bool_(True)
  return jnp.stack([jnp.isfinite(x).all() for x in floats]).all()


def first_bad(grads: Variables) -> str:
  """Returns the name of the first leaf that is not finite, '' if all are."""
  for name, leaf in tree.named(grads).items():
    if not np.isfinite(tree.fetch(leaf)).all():
      return name
  return ''


def check_finite(finite: Callable[..., Any], state: Any, origin: str) -> None:
  """Raises InputError naming the first leaf of a state that is not finite.

  Args:
    finite: compiled `all_finite`.
    state: before the first step.
    origin: of its weights, for the message.
  """
  if not bool(finite(state)):
    raise InputError(f'{origin}: expected finite weights; {first_bad(state)} is not finite')
