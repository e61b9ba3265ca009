"""The key-value cache of a decoder: a value that is passed along, never a collection.

Prompts of unequal length are padded on the left, so that all rows write their next token into one
slot, `at`. Row b's own tokens begin at slot `first[b]`.

A decoder with cross-attention also has a memory: keys and values of its source, which no step
changes. It has one row for each source, however many beams of a source the cache has.

Keys and values are arrays [B, K, S, H] of one dtype, or stored leaves (`ops.stored`) of int8 codes
with a scale for each head and slot: a quarter of the bytes of float32. The slots of a head lie
together, so that a product reads them in place; with heads inside slots XLA copies all of them.

B rows, S slots, T new tokens, K key/value heads, N query heads, H head size.
"""

from collections.abc import Sequence
from typing import Any, Protocol, Self, runtime_checkable

import jax
import jax.numpy as jnp
from flax import struct

from bmx.ops.masks import MASK_VALUE
from bmx.ops.stored import is_stored, quantize
from bmx.parallel import constrain

Slots = Any  # keys or values of a layer: an array [B, K, S, H], or a stored leaf of int8


@runtime_checkable
class RowCache(Protocol):
  """A decoder's cache that beam search can use."""

  def rows(self, order: jax.Array) -> Self:
    """Returns the cache of the rows that int [B'] `order` names; a row may appear repeatedly.

    The rows of one source stay together: row i of the result is one of the source that row
    i // (B' / sources) of the sources is.
    """
    ...


class Memory(struct.PyTreeNode):
  """The source of a decoder as one layer of cross-attention reads it.

  Attributes:
    key: Slots of [B, K, S, H].
    value: Slots of [B, K, S, H].
    ids: int32 [B, S], 1 for a token of the source and 0 for padding; None: without padding.
  """

  key: Slots
  value: Slots
  ids: jax.Array | None

  @classmethod
  def of(cls, key: jax.Array, value: jax.Array, ids: jax.Array | None) -> 'Memory':
    """Returns the memory of key and value [B, S, K, H]."""
    return cls(key.swapaxes(1, 2), value.swapaxes(1, 2), ids)

  def like(self, slots: Slots) -> 'Memory':
    """Returns the memory in the form of the slots of a cache: its dtype, or codes."""
    one = lambda x: as_slots(x.swapaxes(1, 2), slots)
    return self.replace(key=one(self.key), value=one(self.value))

  def attend(self, q: jax.Array, scale: float = 0.0) -> jax.Array:
    """Computes softmax(scale · q kᵀ) v over the source.

    Args:
      q: [B·G, T, N, H]: G rows for each source, next to each other.
      scale: 0 is 1 / √H.

    Returns:
      [B·G, T, N, H] in q's dtype.
    """
    sources, slots = jax.tree.leaves(self.key)[0].shape[0], length_of(self.key)
    joined = q.reshape(sources, -1, *q.shape[2:])
    seen = jnp.ones((1, 1, slots), bool) if self.ids is None else (self.ids > 0)[:, None]
    return attend_slots(joined, self.key, self.value, seen, scale).reshape(q.shape)


class LayerCache(struct.PyTreeNode):
  """The cache of one layer.

  Attributes:
    key: Slots of [B, K, S, H].
    value: Slots of [B, K, S, H].
    at: int32 [], the slot of the next token.
    first: int32 [B], the slot of each row's first token.
    memory: of cross-attention; None without, or as long as the source has not been read.
  """

  key: Slots
  value: Slots
  at: jax.Array
  first: jax.Array
  memory: Memory | None = None

  def write(self, key: jax.Array, value: jax.Array) -> 'LayerCache':
    """Returns the cache with key and value [B, T, K, H] in the slots from `at`."""

    def put(slots, new):
      slots = jax.lax.dynamic_update_slice_in_dim(slots, new, self.at, axis=2)
      return constrain(slots, 'batch', 'kv', None, None)

    one = lambda slots, new: jax.tree.map(put, slots, as_slots(new, slots))
    return self.replace(key=one(self.key, key), value=one(self.value, value))

  def attend(
    self, q: jax.Array, window: int = 0, scale: float = 0.0, bias: jax.Array | None = None
  ) -> jax.Array:
    """Computes softmax(scale · q kᵀ + bias) v over the slots that a query may attend to.

    Args:
      q: [B, T, N, H]; its first token is in slot `at`.
      window: slots that a query attends to, its own included; 0 is all up to its own.
      scale: 0 is 1 / √H.
      bias: float [1, N, T, S], added to the scores.

    Returns:
      [B, T, N, H] in q's dtype.
    """
    length, slots = q.shape[1], length_of(self.key)
    slot = jnp.arange(slots)[None, :]
    distance = self.at + jnp.arange(length)[:, None] - slot
    seen = within(distance, window)[None] & (slot >= self.first[:, None])[:, None, :]
    return attend_slots(q, self.key, self.value, seen, scale, bias)

  def remember(self, memory: Memory) -> 'LayerCache':
    """Returns the cache with the memory of a source, stored as the cache stores keys."""
    return self.replace(memory=memory.like(self.key))


def within(distance: jax.Array, window: int) -> jax.Array:
  """Whether a query attends to a slot so many behind its own; window: see `LayerCache.attend`."""
  return (distance >= 0) & (distance < window) if window else distance >= 0


def length_of(slots: Slots) -> int:
  """Returns S."""
  return jax.tree.leaves(slots)[0].shape[2]


def empty_slots(batch: int, slots: int, heads: int, size: int, dtype: Any) -> Slots:
  """Returns zeros; the arguments are those of `Cache.empty`."""
  codes = constrain(jnp.zeros((batch, heads, slots, size), dtype), 'batch', 'kv', None, None)
  if jnp.dtype(dtype) != jnp.int8:
    return codes
  scale = jnp.zeros((batch, heads, slots, 1), jnp.float32)
  return {'int8': codes, 'scale': constrain(scale, 'batch', 'kv', None, None)}


def as_slots(new: jax.Array, slots: Slots) -> Slots:
  """Returns new keys or values [B, T, K, H] in the form of `slots`: of [B, K, T, H]."""
  new = new.swapaxes(1, 2)
  return quantize(new, 'int8', (3,)) if is_stored(slots) else new.astype(slots.dtype)


def attend_slots(
  q: jax.Array,
  key: Slots,
  value: Slots,
  seen: jax.Array,
  scale: float = 0.0,
  bias: jax.Array | None = None,
) -> jax.Array:
  """Computes softmax(scale · q kᵀ + bias) v over the slots that are seen.

  Args:
    q: [B, T, N, H].
    key: of [B, K, S, H].
    value: of [B, K, S, H].
    seen: bool [B, T, S].
    scale: 0 is 1 / √H.
    bias: float [1, N, T, S], added to the scores.

  Returns:
    [B, T, N, H] in q's dtype.
  """
  batch, length, heads, size = q.shape
  (key, key_scale), (value, value_scale) = _codes(key, q.dtype), _codes(value, q.dtype)
  q = (q * (scale or size**-0.5)).reshape(batch, length, key.shape[1], -1, size)
  scores = jnp.einsum('btkgh,bksh->bkgts', q, key, preferred_element_type=jnp.float32) * key_scale
  if bias is not None:
    scores += bias.astype(jnp.float32).reshape(1, key.shape[1], -1, *bias.shape[2:])
  scores = jnp.where(seen[:, None, None], scores, MASK_VALUE)
  weights = (jax.nn.softmax(scores, axis=-1) * value_scale).astype(value.dtype)
  y = jnp.einsum('bkgts,bksh->btkgh', weights, value)
  return y.reshape(batch, length, heads, size).astype(q.dtype)


def _codes(slots: Slots, dtype: Any) -> tuple[jax.Array, jax.Array | float]:
  """Returns (values [B, K, S, H] that a product reads, their scale [B, K, 1, 1, S] or 1)."""
  if not is_stored(slots):
    return slots, 1.0
  return slots['int8'].astype(dtype), slots['scale'][..., 0][:, :, None, None]


class Cache(struct.PyTreeNode):
  """The cache of all layers.

  Attributes:
    keys: Slots of [B, K, S, H], one per layer.
    values: Slots of [B, K, S, H], one per layer.
    at: int32 [], the slot of the next token.
    first: int32 [B], the slot of each row's first token.
    memory: of each layer with cross-attention, once the source has been read.
  """

  keys: tuple[Slots, ...]
  values: tuple[Slots, ...]
  at: jax.Array
  first: jax.Array
  memory: tuple[Memory, ...] = ()

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
      dtype: of keys and values; int8 stores codes with scales.
      first: int [B], the slot of each row's first token.
    """
    zeros = lambda: empty_slots(batch, slots, heads, size, dtype)
    keys, values = (tuple(zeros() for _ in range(layers)) for _ in range(2))
    return cls(keys, values, jnp.int32(0), first.astype(jnp.int32))

  def layer(self, i: int) -> LayerCache:
    """Returns the cache of layer `i`."""
    memory = self.memory[i] if self.memory else None
    return LayerCache(self.keys[i], self.values[i], self.at, self.first, memory)

  def advance(self, layers: Sequence[LayerCache], length: int) -> 'Cache':
    """Returns the cache after all layers have written `length` tokens."""
    keys, values = tuple(x.key for x in layers), tuple(x.value for x in layers)
    memory = tuple(x.memory for x in layers if x.memory is not None)
    return self.replace(keys=keys, values=values, at=self.at + length, memory=memory)

  def positions(self, length: int) -> jax.Array:
    """Returns positions of the next `length` tokens in their rows: int32 [B, T]; 0 on padding."""
    return jnp.maximum(self.at + jnp.arange(length)[None, :] - self.first[:, None], 0)

  def rows(self, order: jax.Array) -> 'Cache':
    """Returns the cache of the rows that int [B'] `order` names (see `RowCache`).

    The memory is not copied.
    """
    take = lambda arrays: jax.tree.map(lambda x: jnp.take(x, order, axis=0), arrays)
    return self.replace(
      keys=take(self.keys), values=take(self.values), first=jnp.take(self.first, order)
    )
