"""The columns of a click model as one array, so that methods replace any of them alike.

B examples, N columns of numbers, F columns of categories.
"""

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.types import Array


def pack(x: Array | np.ndarray, ids: Array | np.ndarray) -> Array:
  """Joins numbers, by their bits, with categories: float [B, N], int [B, F] -> int32 [B, N + F].

  A float32 has not the digits for every number of a category.
  """
  bits = jax.lax.bitcast_convert_type(jnp.asarray(x, jnp.float32), jnp.int32)
  return jnp.concatenate([bits, jnp.asarray(ids, jnp.int32)], 1)


def unpack(packed: Array | np.ndarray, numeric: int) -> dict[str, Array]:
  """Inverse of `pack`: `x` float32 [B, N] and `ids` int32 [B, F].

  Args:
    packed: int32 [B, N + F].
    numeric: N.
  """
  bits = jnp.asarray(packed)
  x = jax.lax.bitcast_convert_type(bits[:, :numeric], jnp.float32)
  return {'x': x, 'ids': bits[:, numeric:]}


def typical(packed: np.ndarray, numeric: int) -> np.ndarray:
  """Returns the mean of each number and the most frequent category: int32 [1, N + F].

  Args:
    packed: int32 [M, N + F], of examples.
    numeric: N.
  """
  parts = {k: np.asarray(v) for k, v in unpack(packed, numeric).items()}
  common = [np.bincount(column).argmax() for column in parts['ids'].T]
  mean = parts['x'].mean(0, keepdims=True)
  return np.asarray(pack(mean, np.array(common, np.int32).reshape(1, -1)))
