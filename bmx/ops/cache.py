"""The key-value cache of a decoder: a value that is passed along, never a collection.

Prompts of unequal length are padded on the left, so that all rows write their next token at one
place: slot `at`. Row b's own tokens begin at slot `first[b]`.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

from bmx.ops.masks import MASK_VALUE
from bmx.parallel import constrain


class LayerCache(struct.PyTreeNode):
  """One layer: keys and values [B, S, K, H], at int32 [], first int32 [B]."""

  key: jax.Array
  value: jax.Array
  at: jax.Array
  first: jax.Array

  def write(self, key: jax.Array, value: jax.Array) -> 'LayerCache':
    """With key and value [B, T, K, H] in the slots from `at`."""

    def put(slots, new):
      slots = jax.lax.dynamic_update_slice_in_dim(slots, new.astype(slots.dtype), self.at, axis=1)
      return constrain(slots, 'batch', None, 'kv', None)

    return self.replace(key=put(self.key, key), value=put(self.value, value))

  def attend(self, q: jax.Array, window: int = 0) -> jax.Array:
    """softmax(q kᵀ / √H) v over the slots a query may see: q [B, T, N, H], whose first token is in
    slot `at` -> [B, T, N, H] in q's dtype."""
    batch, length, heads, size = q.shape
    slots, groups = self.key.shape[1:3]
    q = (q * size**-0.5).reshape(batch, length, groups, -1, size)
    scores = jnp.einsum('btkgh,bskh->bkgts', q, self.key, preferred_element_type=jnp.float32)
    slot = jnp.arange(slots)[None, :]
    ahead = self.at + jnp.arange(length)[:, None] - slot
    seen = (ahead >= 0) & (ahead < window) if window else ahead >= 0
    seen = seen[None] & (slot >= self.first[:, None])[:, None, :]
    scores = jnp.where(seen[:, None, None], scores, MASK_VALUE)
    weights = jax.nn.softmax(scores, axis=-1).astype(self.value.dtype)
    y = jnp.einsum('bkgts,bskh->btkgh', weights, self.value)
    return y.reshape(batch, length, heads, size).astype(q.dtype)


class Cache(struct.PyTreeNode):
  """All layers: keys and values, each a tuple of [B, S, K, H]."""

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]
  at: jax.Array  # int32 []: the slot of the next token
  first: jax.Array  # int32 [B]: the slot of a row's first token

  @classmethod
  def empty(
    cls, layers: int, batch: int, slots: int, heads: int, size: int, dtype, first: jax.Array
  ) -> 'Cache':
    zeros = lambda: tuple(jnp.zeros((batch, slots, heads, size), dtype) for _ in range(layers))
    return cls(zeros(), zeros(), jnp.int32(0), first.astype(jnp.int32))

  def layer(self, i: int) -> LayerCache:
    return LayerCache(self.keys[i], self.values[i], self.at, self.first)

  def advance(self, layers: Sequence[LayerCache], length: int) -> 'Cache':
    """After `length` tokens went through all layers."""
    keys, values = tuple(x.key for x in layers), tuple(x.value for x in layers)
    return self.replace(keys=keys, values=values, at=self.at + length)

  def positions(self, length: int) -> jax.Array:
    """Of the next `length` tokens in their rows: int32 [B, T]; 0 on padding."""
    return jnp.maximum(self.at + jnp.arange(length)[None, :] - self.first[:, None], 0)

  def rows(self, order: jax.Array) -> 'Cache':
    """The rows [B'] that `order` names, for beam search."""
    take = lambda arrays: tuple(jnp.take(x, order, axis=0) for x in arrays)
    return dataclasses.replace(
      self, keys=take(self.keys), values=take(self.values), first=jnp.take(self.first, order)
    )
