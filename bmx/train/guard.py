"""The non-finite guard: an update that would poison the state does not happen, by selection.

Multiplying by zero is no guard (0 × NaN is NaN), and zeroing the gradient is none either (moments
and weight decay still move).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core import tree
from bmx.core.metrics import Metrics
from bmx.core.types import Variables


def norm(grads: Variables) -> jax.Array:
  """Global norm, float32 []; not finite where any gradient is not."""
  leaves = jax.tree.leaves(grads)
  return jnp.sqrt(sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in leaves))


MEMORY, WARM = 0.98, 50  # of the running mean of the norm: its decay, and updates before it counts


def guarded(
  update: Callable[..., Any],
  state: Any,
  grads: Variables,
  collections: Variables,
  metrics: Metrics,
  spike: float = 0.0,
) -> tuple[Any, Metrics]:
  """`update(state, grads, collections)` where loss and gradient norm are finite, else the old
  state.

  What was rejected enters nothing: parameters, moments, collections and averages are kept as they
  were, and the step's metrics count for nothing but 'skipped'.

  Args:
    spike: refuses a norm above this many times the running mean of accepted ones as well, once
      `WARM` updates have been accepted; 0 refuses none.
  """
  size = norm(grads)
  ok = jnp.isfinite(size) & jnp.isfinite(metrics['loss']).all()
  if spike:
    mean, seen = state.norm
    ok &= (seen < WARM) | (size <= spike * mean)
  metrics = metrics | {'grad_norm': jnp.stack([size, jnp.ones_like(size)])}
  metrics = jax.tree.map(lambda m: jnp.where(ok, m, 0.0), metrics)
  metrics['skipped'] = jnp.stack([1.0 - ok, jnp.ones_like(size)])
  refuse = lambda state, *_: state.replace(skips=state.skips + 1)
  accept = lambda state, *rest: update(state, *rest).replace(norm=_remember(state.norm, size))
  state = jax.lax.cond(ok, accept, refuse, state, grads, collections)
  return state, metrics


def _remember(norm: jax.Array, size: jax.Array) -> jax.Array:
  """A plain mean of the first 1 / (1 - MEMORY) norms, a moving average from then on."""
  mean, seen = norm
  rate = jnp.maximum(1 / (seen + 1), 1 - MEMORY)
  return jnp.stack([mean + rate * (size - mean), seen + 1])


def all_finite(state: Any) -> jax.Array:
  """Whether every float of a state is finite: bool []."""
  floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
  return jnp.stack([jnp.isfinite(x).all() for x in floats]).all()


def first_bad(grads: Variables) -> str:
  """The name of the first leaf that is not finite, '' where all are."""
  for name, leaf in tree.named(grads).items():
    if not np.isfinite(tree.fetch(leaf)).all():
      return name
  return ''
