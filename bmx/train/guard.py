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


def guarded(
  update: Callable[..., Any], state: Any, grads: Variables, collections: Variables, metrics: Metrics
) -> tuple[Any, Metrics]:
  """`update(state, grads, collections)` where loss and gradient norm are finite, else the old
  state.

  What was rejected enters nothing: parameters, moments, collections and averages are kept as they
  were, and the step's metrics count for nothing but 'skipped'.
  """
  size = norm(grads)
  ok = jnp.isfinite(size) & jnp.isfinite(metrics['loss']).all()
  metrics = metrics | {'grad_norm': jnp.stack([size, jnp.ones_like(size)])}
  metrics = jax.tree.map(lambda m: jnp.where(ok, m, 0.0), metrics)
  metrics['skipped'] = jnp.stack([1.0 - ok, jnp.ones_like(size)])
  refuse = lambda state, *_: state.replace(skips=state.skips + 1)
  state = jax.lax.cond(ok, update, refuse, state, grads, collections)
  return state, metrics


def first_bad(grads: Variables) -> str:
  """The name of the first leaf that is not finite, '' where all are."""
  for name, leaf in tree.named(grads).items():
    if not np.isfinite(tree.fetch(leaf)).all():
      return name
  return ''
