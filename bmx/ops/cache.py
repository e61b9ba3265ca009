"""The key-value cache of a decoder: a value that is passed along, never a collection.

Prompts of unequal length are padded on the left, so that all rows write their next token into one
slot, `at`. Row b's own tokens begin at slot `first[b]`.

B rows, S slots, T new tokens, K key/value heads, N query heads, H head size.
"""

from collections.abc import Sequence
from typing import Any, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct

from bmx.ops.masks import MASK_VALUE
from bmx.parallel import constrain


@runtime_checkable
class RowCache(Protocol):
  """A decoder's cache that beam search can use."""

  def rows(self, order: jax.Array) -> Self:
    """Returns the cache of the rows that int [B'] `order` names; a row may appear repeatedly."""
    ...


class LayerCache(struct.PyTreeNode):
  """The cache of one layer.

  Attributes:
    key: [B, S, K, H].
    value: [B, S, K, H].
    at: int32 [], the slot of the next token.
    first: int32 [B], the slot of each row's first token.
  """

  key: jax.Array
  value: jax.Array
  at: jax.Array
  first: jax.Array

  def write(self, key: jax.Array, value: jax.Array) -> 'LayerCache':
    """Returns the cache with key and value [B, T, K, H] in the slots from `at`."""

    def put(slots, new):
      slots = jax.lax.dynamic_update_slice_in_dim(slots, new.astype(slots.dtype), self.at, axis=1)
      return constrain(slots, 'batch', None, 'kv', None)

    return self.replace(key=put(self.key, key), value=put(self.value, value))

  def attend(self, q: jax.Array, window: int = 0) -> jax.Array:
    """Computes softmax(q kᵀ / √H) v over the slots that a query may attend to.

    Args:
      q: [B, T, N, H]; its first token is in slot `at`.
      window: slots that a query attends to, its own included; 0 is all up to its own.

    Returns:
      [B, T, N, H] in q's dtype.
    """
    batch, length, heads, size = q.shape
    slots, groups = self.key.shape[1:3]
    q = (q * size**-0.5).reshape(batch, length, groups, -1, size)
    scores = jnp.einsum('btkgh,bskh->bkgts', q, self.key, preferred_element_type=jnp.float32)
    slot = jnp.arange(slots)[None, :]
    distance = self.at + jnp.arange(length)[:, None] - slot
    seen = (distance >= 0) & (distance < window) if window else distance >= 0
    seen = seen[None] & (slot >= self.first[:, None])[:, None, :]
    scores = jnp.where(seen[:, None, None], scores, MASK_VALUE)
    weights = jax.nn.softmax(scores, axis=-1).astype(self.value.dtype)
    y = jnp.einsum('bkgts,bskh->btkgh', weights, self.value)
    return y.reshape(batch, length, heads, size).astype(q.dtype)


class Cache(struct.PyTreeNode):
  """The cache of all layers.

  Attributes:
    keys: one [B, S, K, H] per layer.
    values: one [B, S, K, H] per layer.
    at: int32 [], the slot of the next token.
    first: int32 [B], the slot of each row's first token.
  """

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]
  at: jax.Array
  first: jax.Array

  @classmethod
  def empty(
    cls, layers: int, batch: int, slots: int, heads: int, size: int, dtype: Any, first: jax.Array
  ) -> 'Cache':
    """Returns a cache without tokens.

    Args:
      layers: number of layers.
      batch: B.
      slots: S.
      heads: K.
      size: H.
      dtype: of keys and values.
      first: int [B], the slot of each row's first token.
    """
    zeros = lambda: tuple(jnp.zeros((batch, slots, heads, size), dtype) for _ in range(layers))
    return cls(zeros(), zeros(), jnp.int32(0), first.astype(jnp.int32))

  def layer(self, i: int) -> LayerCache:
    """Returns the cache of layer `i`."""
    return LayerCache(self.keys[i], self.values[i], self.at, self.first)

  def advance(self, layers: Sequence[LayerCache], length: int) -> 'Cache':
    """Returns the cache after all layers have written `length` tokens."""
    keys, values = tuple(x.key for x in layers), tuple(x.value for x in layers)
    return self.replace(keys=keys, values=values, at=self.at + length)

  def positions(self, length: int) -> jax.Array:
    """Returns positions of the next `length` tokens in their rows: int32 [B, T]; 0 on padding."""
    return jnp.maximum(self.at + jnp.arange(length)[None, :] - self.first[:, None], 0)

  def rows(self, order: jax.Array) -> 'Cache':
    """Returns the cache of the rows that int [B'] `order` names (see `RowCache`)."""
    take = lambda arrays: tuple(jnp.take(x, order, axis=0) for x in arrays)
    return self.replace(
      keys=take(self.keys), values=take(self.values), first=jnp.take(self.first, order)
    )
