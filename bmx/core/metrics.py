"""Metrics are sums with their counts.

They are exact under padding, accumulation, sharding and uneven hosts.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

Metrics = dict[str, jax.Array]  # each [2]: (sum, count)


def weighted(values: jax.Array, weights: jax.Array) -> jax.Array:
  """Returns (sum, count) of values under weights of their shape; a weight of 0 hides even NaN."""
  values = jnp.where(weights > 0, values, 0).astype(jnp.float32)
  weights = weights.astype(jnp.float32)
  return jnp.stack([(values * weights).sum(), weights.sum()])


def add(a: Metrics, b: Metrics) -> Metrics:
  """Adds sums and counts."""
  return jax.tree.map(jnp.add, a, b)


def means(sums: Mapping[str, np.ndarray]) -> dict[str, float]:
  """Divides sums by counts, on the host; omits metrics without a count.

  >>> means({'loss': np.array([6.0, 4.0]), 'none': np.array([0.0, 0.0])})
  {'loss': 1.5}
  """
  return {k: float(v[0] / v[1]) for k, v in sums.items() if v[1] > 0}


class Window:
  """Sums in float64 on the host, over many dispatches."""

  def __init__(self, sums: Mapping[str, list[float]] | None = None):
    self.sums = {k: np.array(v, np.float64) for k, v in (sums or {}).items()}

  def add(self, metrics: Mapping[str, np.ndarray]) -> None:
    for k, v in metrics.items():
      self.sums[k] = self.sums.get(k, 0.0) + np.asarray(v, np.float64)

  def close(self) -> dict[str, float]:
    """Returns the means and empties the window."""
    result, self.sums = means(self.sums), {}
    return result

  def json(self) -> dict[str, list[float]]:
    return {k: v.tolist() for k, v in self.sums.items()}
