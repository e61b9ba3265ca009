"""Attributions by gradients: saliency, integrated gradients, SmoothGrad.

Each function reads a score, input [B, ...] -> float [B], in which examples do not see each other.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.types import Array
from bmx.interpret.subject import Score

NODES = 8  # of a Gauss-Legendre rule on each part of the path


class Attribution(NamedTuple):
  """Attributions that sum to a difference of scores.

  Attributes:
    values: float32, the shape of the input.
    difference: float32 [B], score of the input less that of the baseline.
    gap: float32 [B], sum of the values less the difference: 0 where they are complete.
  """

  values: Array
  difference: Array
  gap: Array


def gradient(score: Score, x: Array) -> Array:
  """Returns the gradient of each example's score with respect to its input, like x."""
  return jax.grad(lambda x: score(x).sum())(x)


def saliency(score: Score, x: Array) -> Array:
  """Returns the absolute value of the gradient, like x. Source: Simonyan et al. 2013.

  Args:
    score: of each example.
    x: input [B, ...].
  """
  return jnp.abs(gradient(score, x))


def smooth_grad(score: Score, x: Array, key: Array, samples: int, share: float = 0.15) -> Array:
  """Returns the mean gradient at inputs with normal noise, like x. Source: Smilkov et al. 2017.

  Args:
    score: of each example.
    x: input [B, ...].
    key: of the noise.
    samples: draws.
    share: standard deviation of the noise, in units of the range of each example's input.
  """
  rest = tuple(range(1, x.ndim))
  deviation = share * (x.max(rest, keepdims=True) - x.min(rest, keepdims=True))

  def add(i: Array, total: Array) -> Array:
    noise = jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
    return total + gradient(score, x + deviation * noise)

  return jax.lax.fori_loop(0, samples, add, jnp.zeros_like(x)) / samples


def integrated_gradients(
  score: Score, x: Array, baseline: Array, parts: Array | int
) -> Attribution:
  """Integrates the gradient along the straight path from a baseline to the input.

  The path is cut into equal parts, each with a Gauss-Legendre rule of `NODES` nodes. Source:
  Sundararajan et al. 2017.

  Args:
    score: of each example.
    x: input [B, ...].
    baseline: broadcasts to x.
    parts: of the path; an array, where one program serves several numbers.
  """
  places, weights = np.polynomial.legendre.leggauss(NODES)
  places, weights = jnp.float32((places + 1) / 2), jnp.float32(weights / 2)
  baseline = jnp.broadcast_to(jnp.asarray(baseline, x.dtype), x.shape)
  way = x - baseline

  def add(i: Array, total: Array) -> Array:
    at = (i // NODES + places[i % NODES]) / parts
    return total + weights[i % NODES] * gradient(score, baseline + at * way)

  mean = jax.lax.fori_loop(0, NODES * parts, add, jnp.zeros_like(x)) / parts
  values = way * mean
  difference = score(x) - score(baseline)
  return Attribution(values, difference, values.reshape(len(x), -1).sum(1) - difference)


def completed(
  integrate: Callable[[int], Attribution], tolerance: float = 1e-3, most: int = 1024
) -> tuple[Attribution, int]:
  """Doubles the parts of the path until attributions are complete.

  Kinks of the score (ReLU, maxima) need many parts; smooth scores few.

  Args:
    integrate: parts -> `integrated_gradients` of them.
    tolerance: largest gap, in units of the difference of scores, or of 1 where that is larger.
    most: parts at which it ends, complete or not.

  Returns:
    The attributions and their number of parts.
  """
  parts = 1
  while True:
    found = integrate(parts)
    gap, difference = np.abs(np.asarray(found.gap)), np.abs(np.asarray(found.difference))
    if parts >= most or (gap <= tolerance * np.maximum(1, difference)).all():
      return found, parts
    parts *= 2
