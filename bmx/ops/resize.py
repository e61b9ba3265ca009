"""Resizing of grids: PyTorch's bicubic interpolation.

`jax.image.resize(..., 'cubic')` is another filter (a = -0.5, normalized at the border).
"""

import jax
import jax.numpy as jnp
import numpy as np

A = -0.75  # the parameter of the cubic kernel, as in PyTorch and OpenCV


def bicubic(x: jax.Array, rows: int, columns: int) -> jax.Array:
  """Resizes a grid [I, J, C] to [rows, columns, C].

  Equals `torch.nn.functional.interpolate(mode='bicubic', align_corners=False, antialias=False)`:
  pixels beyond the border repeat it. Source: Keys 1981.
  """
  down, across = _weights(x.shape[0], rows), _weights(x.shape[1], columns)
  return jnp.einsum('ai,bj,ijc->abc', down, across, x, precision='highest')


def _weights(size: int, new: int) -> np.ndarray:
  """Returns the share of each of `size` points in each of `new` ones: float32 [new, size]."""
  at = (np.arange(new) + 0.5) * size / new - 0.5
  base = np.floor(at).astype(int)
  weights = np.zeros((new, size))
  for offset in (-1, 0, 1, 2):
    where = np.clip(base + offset, 0, size - 1)
    np.add.at(weights, (np.arange(new), where), _cubic(np.abs(at - base - offset)))
  return weights.astype(np.float32)


def _cubic(x: np.ndarray) -> np.ndarray:
  """The cubic kernel at distances 0 <= x < 2 (Keys 1981, equation 4)."""
  near = ((A + 2) * x - (A + 3)) * x * x + 1
  far = A * (((x - 5) * x + 8) * x - 4)
  return np.where(x <= 1, near, far)
