"""Quantized weights from the second moments of a layer's inputs: GPTQ and AWQ-like scaling.

D inputs, F outputs, G groups of g inputs: D = G · g.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

DAMPING = 0.01  # share of the mean diagonal that is added to it (Frantar et al. 2023, section 3.3)
EXPONENTS = 21  # candidates of the grid from 0 to 1 (Lin et al. 2023, section 3.2)

Scale = Callable[[jax.Array], jax.Array]  # weights [g, F] -> scale of each output [F]
Round = Callable[[jax.Array, jax.Array], jax.Array]  # weights [F], scales [F] -> nearest values [F]


def gptq(
  w: jax.Array, hessian: jax.Array, scale_of: Scale, nearest: Round, group: int = 0
) -> tuple[jax.Array, jax.Array]:
  """Rounds the inputs of a layer in order, each correcting those behind it (Frantar et al. 2023).

  The sum of squared errors of the outputs, tr(Δᵀ H Δ), is lowered: once input i is rounded, its
  error moves to inputs j > i by the Cholesky factor of H⁻¹. A weight of zero stays zero, as do all
  weights of an input that is always zero.

  Args:
    w: float32 [D, F].
    hessian: float32 [D, D], the sum of x xᵀ over inputs x.
    scale_of: called with a group's weights as corrected so far.
    nearest: rounds one input's weights.
    group: g, a divisor of D; 0 is one group of all inputs, with the scale of the given weights.

  Returns:
    (rounded weights [D, F], scales [G, F]).
  """
  depth, width = w.shape
  g = group or depth
  dead = jnp.diagonal(hessian) == 0
  w = jnp.where(dead[:, None], 0, w.astype(jnp.float32))
  kept = w != 0
  factor = _factor(hessian.astype(jnp.float32), dead)

  def block(w, start):
    rows, own = (jax.lax.dynamic_slice_in_dim(x, start, g) for x in (w, kept))
    across = jax.lax.dynamic_slice_in_dim(factor, start, g)  # [g, D]
    within = jax.lax.dynamic_slice_in_dim(across, start, g, axis=1)
    scale = scale_of(rows)

    def one(rows, i):
      rounded = nearest(rows[i], scale)
      error = (rows[i] - rounded) / within[i, i]
      return jnp.where(own, rows - within[i][:, None] * error[None], 0), (rounded, error)

    _, (rounded, errors) = jax.lax.scan(one, rows, jnp.arange(g))
    return jnp.where(kept, w - across.T @ errors, 0), (rounded, scale)

  _, (rounded, scales) = jax.lax.scan(block, w, jnp.arange(0, depth, g))
  return rounded.reshape(depth, width), scales


def _factor(hessian: jax.Array, dead: jax.Array) -> jax.Array:
  """Returns the upper factor U of the damped inverse, H⁻¹ = Uᵀ U: [D, D]."""
  diagonal = jnp.diagonal(hessian)
  damped = hessian + jnp.diag(DAMPING * diagonal.mean() + jnp.where(dead, 1.0, 0.0))
  lower = jnp.linalg.cholesky(damped)
  inverse = jax.scipy.linalg.cho_solve((lower, True), jnp.eye(len(diagonal)))
  return jnp.linalg.cholesky((inverse + inverse.T) / 2).T


def output_error(difference: jax.Array, hessian: jax.Array) -> jax.Array:
  """Returns the sum of squared errors of the outputs: tr(Δᵀ H Δ) of Δ [D, F]; float32 []."""
  return jnp.einsum('df,de,ef->', difference, hessian, difference)


def input_scales(
  w: jax.Array, hessian: jax.Array, rounded: Callable[[jax.Array], jax.Array]
) -> jax.Array:
  """Searches a factor of each input that protects inputs of large magnitude (Lin et al. 2023).

  A factor is the root mean square of its input to a power a, in proportion; the a of 21 from 0 to
  1 with the least output error is taken. Weights are rounded as s · w, and divided by s where
  they are read.

  Args:
    w: float32 [D, F].
    hessian: float32 [D, D], the sum of x xᵀ over inputs x.
    rounded: weights [D, F] -> the values that storage gives back.

  Returns:
    The factors s, float32 [D], with a geometric mean of the least and largest of 1.
  """
  magnitude = jnp.sqrt(jnp.maximum(jnp.diagonal(hessian), 0))
  magnitude = jnp.maximum(magnitude, 1e-4 * jnp.maximum(magnitude.max(), 1e-30))

  def factors(exponent):
    s = magnitude**exponent
    return s / jnp.sqrt(s.max() * s.min())

  def error(exponent):
    s = factors(exponent)[:, None]
    return output_error(rounded(w * s) / s - w, hessian)

  exponents = jnp.linspace(0, 1, EXPONENTS)
  return factors(exponents[jnp.argmin(jax.lax.map(error, exponents))])
