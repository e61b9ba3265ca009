"""Attributions without gradients: occlusion, and Shapley values by sampled permutations.

Both replace groups of features by a baseline. Groups are masks, bool [G, ...], that broadcast to
the input of one example: windows of an image, columns of a table, tokens.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core import streams
from bmx.core.errors import InputError
from bmx.core.types import Array
from bmx.interpret.subject import Score


class Sampled(NamedTuple):
  """Estimated Shapley values.

  Attributes:
    values: float32 [B, G]; their sum is the score less that of the mean over the backgrounds.
    error: float32 [B, G], standard error of the values.
    base: float32 [B], mean score of the backgrounds.
  """

  values: Array
  error: Array
  base: Array


def windows(shape: Sequence[int], size: Sequence[int], stride: Sequence[int]) -> np.ndarray:
  """Returns windows over the leading dimensions of an example as masks, bool [G, *shape or 1].

  Every element is in a window; the border cuts the last one.

  Args:
    shape: of an example, (I, J, C) or (T, D).
    size: of a window, in the first dimensions of `shape`; it spans the others.
    stride: from a window to the next.

  Raises:
    InputError: a window that is empty or larger than the example; a stride that leaves gaps.
  """
  starts = []
  for n, width, step in zip(shape, size, stride, strict=False):
    if not 1 <= step <= width <= n:
      raise InputError(
        f'window={width}, stride={step}: expected 1 <= stride <= window <= {n}, the size of the '
        'input'
      )
    starts.append(np.arange(0, n - width + step, step))
  grid = np.stack(np.meshgrid(*starts, indexing='ij'), -1).reshape(-1, len(starts))
  masks = np.ones((len(grid), *shape[: len(size)]), bool)
  for axis, width in enumerate(size):
    at = np.arange(shape[axis])
    inside = (at >= grid[:, axis, None]) & (at < grid[:, axis, None] + width)
    masks &= inside.reshape(len(grid), *(-1 if i == axis else 1 for i in range(len(size))))
  return masks.reshape(*masks.shape, *[1] * (len(shape) - len(size)))


def occlusion(score: Score, x: Array, baseline: Array, masks: Array) -> Array:
  """Returns how much the score falls where each group is replaced: float32 [B, G].

  Source: Zeiler & Fergus 2014.

  Args:
    score: of each example.
    x: input [B, ...].
    baseline: broadcasts to x.
    masks: bool [G, ...], broadcasts to the input of one example.
  """
  whole, base = score(x), jnp.broadcast_to(jnp.asarray(baseline, x.dtype), x.shape)
  return jax.lax.map(lambda mask: whole - score(jnp.where(mask[None], base, x)), masks).T


def spread(values: Array, masks: Array) -> Array:
  """Returns the mean over the groups that an element is in, [B, ...] like the masks; 0 in none.

  Args:
    values: [B, G].
    masks: bool [G, ...].
  """
  total = jnp.tensordot(values, masks.astype(values.dtype), 1)
  return total / jnp.maximum(masks.sum(0), 1)[None]


def permutations(
  groups: int, backgrounds: int, rounds: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
  """Draws the orders in which features appear.

  Orders come in pairs, one the reverse of the other, which cancels much of the variance (Mitchell
  et al. 2022). Backgrounds take turns: `rounds` a multiple of twice their number weights all
  alike.

  Args:
    groups: G.
    backgrounds: M.
    rounds: R, even.
    seed: of the draws.

  Returns:
    Orders int32 [R, G], and the background of each int32 [R].
  """
  random = streams.generator(seed, streams.EXPLAIN)
  orders = np.array([random.permutation(groups) for _ in range(rounds // 2)], np.int32)
  both = np.stack([orders, orders[:, ::-1]], 1).reshape(-1, groups)
  return both, (np.arange(len(both), dtype=np.int32) // 2) % backgrounds


def shapley(
  score: Score, x: Array, background: Array, masks: Array, orders: Array, chosen: Array
) -> Sampled:
  """Estimates Shapley values: mean gains of the score as features appear one after another.

  A feature that has not appeared has its value in a background example (the interventional value
  function). Source: Strumbelj & Kononenko 2014.

  Args:
    score: of each example.
    x: input [B, ...].
    background: [M, ...].
    masks: bool [G, ...], disjoint groups that broadcast to the input of one example.
    orders: int [R, G], see `permutations`.
    chosen: int [R], the background of each order.
  """
  background, masks = jnp.asarray(background, x.dtype), jnp.asarray(masks)

  def one_order(total: tuple[Array, ...], drawn: tuple[Array, Array]) -> tuple[Any, None]:
    order, at = drawn
    start = jnp.broadcast_to(background[at][None], x.shape)
    base = score(start)

    def appear(carry: tuple[Array, Array], group: Array) -> tuple[tuple[Array, Array], Array]:
      now, before = carry
      now = jnp.where(masks[group][None], x, now)
      after = score(now)
      return (now, after), after - before

    _, gains = jax.lax.scan(appear, (start, base), order)
    gains = jnp.zeros_like(gains).at[order].set(gains).T
    sums, squares, bases = total
    return (sums + gains, squares + gains**2, bases + base), None

  zeros = jnp.zeros((len(x), len(masks)), jnp.float32)
  total = zeros, zeros, jnp.zeros(len(x), jnp.float32)
  (sums, squares, bases), _ = jax.lax.scan(one_order, total, (orders, chosen))
  n = len(orders)
  values = sums / n
  variance = jnp.maximum(squares / n - values**2, 0) / max(n - 1, 1)
  return Sampled(values, jnp.sqrt(variance), bases / n)
