"""Secure aggregation, simulated: a server adds messages of clients that each look like noise.

Each pair of clients shares a mask that one adds and the other subtracts, so that masks vanish from
the sum (Bonawitz et al. 2017). Updates are whole numbers modulo 2^32, in which addition is exact.
The protocol around it is left out: agreement of keys, and the shares by which the others replace
the masks of a client that dropped out.

C clients.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bmx.core import tree
from bmx.core.types import Array, Variables

LIMIT = 2.0**31 - 128  # a float32 just below 2^31: the largest sum, in units of 2^-bits


class Messages(NamedTuple):
  """What the server receives.

  Attributes:
    values: uint32 [C, ...] of each leaf, masked; zeros of a client that sent nothing.
    saturated: float32 [], numbers that lay beyond the largest of the fixed-point format.
  """

  values: Variables
  saturated: Array


def messages(updates: Any, sent: Array, key: Array, bits: int) -> Messages:
  """Encodes and masks the updates of clients.

  Args:
    updates: floats [C, ...].
    sent: bool [C], clients whose update arrives.
    key: of the masks.
    bits: behind the binary point.
  """
  limit, saturated = LIMIT / len(sent), []

  def encode(number, x):
    scaled = jnp.round(x.astype(jnp.float32) * 2.0**bits)
    there = _along(sent, x)
    saturated.append(jnp.where(there & (jnp.abs(scaled) > limit), 1.0, 0.0).sum())
    fixed = jax.lax.bitcast_convert_type(scaled.clip(-limit, limit).astype(jnp.int32), jnp.uint32)
    masked = fixed + _masks(jax.random.fold_in(key, number), sent, x.shape[1:])
    return jnp.where(there, masked, jnp.uint32(0))

  numbers = {name: i for i, name in enumerate(tree.named(updates))}
  values = tree.map_named(lambda name, x: encode(numbers[name], x), updates)
  return Messages(values, jnp.stack(saturated).sum())


def add(values: Variables, bits: int) -> Variables:
  """Adds the messages of all clients: uint32 [C, ...] -> float32 [...]."""

  def one(x):
    total = jax.lax.bitcast_convert_type(x.sum(0, dtype=jnp.uint32), jnp.int32)
    return total.astype(jnp.float32) * 2.0**-bits

  return jax.tree.map(one, values)


def _masks(key: Array, sent: Array, shape: tuple[int, ...]) -> Array:
  """Returns the sum of the masks of each client with all others that send: uint32 [C, ...]."""
  clients = jnp.arange(len(sent))

  def pair(total, other):
    def mask(own):
      low, high = jnp.minimum(own, other), jnp.maximum(own, other)
      bits = jax.random.bits(jax.random.fold_in(jax.random.fold_in(key, low), high), shape)
      return jnp.where(own < other, bits, jnp.uint32(0) - bits)  # negation modulo 2^32

    there = _along(sent & sent[other] & (clients != other), total)
    return total + jnp.where(there, jax.vmap(mask)(clients), jnp.uint32(0)), None

  zero = jnp.zeros((len(sent), *shape), jnp.uint32)
  return jax.lax.scan(pair, zero, clients)[0]


def _along(flags: Array, x: Array) -> Array:
  return flags.reshape(-1, *[1] * (x.ndim - 1))
