"""Selection of the smallest numbers of sharded arrays: by bisection, without a sort."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.types import Array

INFINITY = 0x7F800000  # its bits; those of floats at or above 0 are in the order of the floats


def smallest(
  scores: Sequence[Array], count: Any, dims: Sequence[tuple[int, ...]], first: Sequence[Array] = ()
) -> list[Array]:
  """Marks exactly `count` of the smallest entries of each group; of equal ones, the first.

  A group is what `dims` sum over, in all arrays together; each step of the bisection counts entries
  where they are stored, so that shards exchange counts alone.

  Args:
    scores: at or above 0; without `dims`, the arrays have one shape.
    count: int32, of that shape or [].
    dims: of each array, the dimensions that a group extends over.
    first: bool arrays of entries that are smaller than all others; none if empty.

  Returns:
    bool arrays of the shapes of `scores`.

  Raises:
    InputError: a group of 2³¹ entries or more.
  """
  sizes = [math.prod(x.shape[d] for d in dim) for x, dim in zip(scores, dims, strict=True)]
  if sum(sizes) >= 2**31:
    raise InputError(f"scope='global': expected fewer than 2³¹ weights, found {sum(sizes)}; set "
                     "scope='layer'")  # fmt: skip
  bits = [jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32) for x in scores]
  if first:
    bits = [jnp.where(f, -1, b) for f, b in zip(first, bits, strict=True)]

  def counted(marks) -> Array:
    sums = [m.sum(dim, dtype=jnp.int32) for m, dim in zip(marks, dims, strict=True)]
    return functools.reduce(jnp.add, sums)

  def over(value, i):
    """Lays a value of each group over the entries of array i."""
    return jnp.expand_dims(value, dims[i])

  def bisected(low, high, least, marked):
    """Returns the smallest integer in (low, high] whose `marked` entries are at least `least`."""
    shape = jnp.broadcast_shapes(jnp.shape(count), counted(bits).shape)

    def halve(_, bounds):
      low, high = bounds
      middle = low + (high - low) // 2
      enough = counted(marked(middle)) >= least
      return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    bounds = jnp.full(shape, low, jnp.int32), jnp.full(shape, high, jnp.int32)
    return jax.lax.fori_loop(0, 32, halve, bounds)[1]

  at_most = lambda top: [b <= over(top, i) for i, b in enumerate(bits)]
  top = bisected(-2, INFINITY, count, at_most)
  below = [b < over(top, i) for i, b in enumerate(bits)]
  ties = [b == over(top, i) for i, b in enumerate(bits)]
  missing = count - counted(below)
  orders = [
    _order(x.shape, dim, sum(sizes[:i]))
    for i, (x, dim) in enumerate(zip(scores, dims, strict=True))
  ]
  up_to = lambda last: [
    t & (o <= over(last, i)) for i, (t, o) in enumerate(zip(ties, orders, strict=True))
  ]
  last = bisected(-1, max(sum(sizes) - 1, 0), missing, up_to)
  some = [over(missing > 0, i) for i in range(len(bits))]
  return [b | (t & s) for b, t, s in zip(below, up_to(last), some, strict=True)]


def _order(shape: tuple[int, ...], dims: tuple[int, ...], start: int) -> Array:
  """Numbers the entries of a group from `start` on: int32 of `shape`."""
  order = jnp.full(shape, start, jnp.int32)
  stride = 1
  for d in reversed(dims):
    order += stride * jax.lax.broadcasted_iota(jnp.int32, shape, d)
    stride *= shape[d]
  return order


def two_of_four(scores: Array, dim: int) -> Array:
  """Marks the two largest of every four neighbors along a dimension; of equal ones, the last.

  Args:
    scores: at or above 0, or -1 for an entry that must not be marked.
    dim: whose size four divides.
  """
  x = jnp.moveaxis(scores, dim, -1)
  four = x.reshape(*x.shape[:-1], -1, 4)
  parts = [four[..., i] for i in range(4)]

  def rank(i):
    """Counts the neighbors that are smaller than neighbor i."""
    return sum(
      (parts[j] <= parts[i] if j < i else parts[j] < parts[i]).astype(jnp.int32)
      for j in range(4)
      if j != i
    )

  kept = jnp.stack([rank(i) >= 2 for i in range(4)], -1).reshape(x.shape)
  return jnp.moveaxis(kept, -1, dim)
