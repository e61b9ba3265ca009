"""A key-value cache whose rows begin, grow and end on their own: the slots of a serving engine.

Row b holds `at[b]` tokens from slot 0 on. Every row of a call gets T tokens, of which the first
`count[b]` are real; the others are written behind them and overwritten later, so that a row needs
T - 1 spare slots.

B rows, S slots, T new tokens, K key/value heads, N query heads, H head size, D shards of the batch.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from bmx.ops.cache import attend_slots, within
from bmx.parallel import constrain


class SlotLayer(struct.PyTreeNode):
  """The cache of one layer.

  Attributes:
    key: [B, S, K, H].
    value: [B, S, K, H].
    at: int32 [B], the slot of each row's next token.
  """

  key: jax.Array
  value: jax.Array
  at: jax.Array

  def write(self, key: jax.Array, value: jax.Array) -> 'SlotLayer':
    """Returns the cache with key and value [B, T, K, H] in each row's slots from `at`."""

    def put(slots, new):
      one = lambda row, part, at: jax.lax.dynamic_update_slice_in_dim(row, part, at, axis=0)
      slots = jax.vmap(one)(slots, new.astype(slots.dtype), self.at)
      return constrain(slots, 'batch', None, 'kv', None)

    return self.replace(key=put(self.key, key), value=put(self.value, value))

  def attend(self, q: jax.Array, window: int = 0) -> jax.Array:
    """Computes softmax(q kᵀ / √H) v over the slots that a query may attend to.

    Args:
      q: [B, T, N, H]; the first token of row b is in slot `at[b]`.
      window: slots that a query attends to, its own included; 0 is all up to its own.

    Returns:
      [B, T, N, H] in q's dtype.
    """
    own = self.at[:, None] + jnp.arange(q.shape[1])[None, :]
    distance = own[:, :, None] - jnp.arange(self.key.shape[1])[None, None, :]
    return attend_slots(q, self.key, self.value, within(distance, window))


class SlotCache(struct.PyTreeNode):
  """The cache of all layers.

  Attributes:
    keys: one [B, S, K, H] per layer.
    values: one [B, S, K, H] per layer.
    at: int32 [B], tokens that each row holds.
    count: int32 [B], real tokens of each row in the next call.
  """

  keys: tuple[jax.Array, ...]
  values: tuple[jax.Array, ...]
  at: jax.Array
  count: jax.Array

  @classmethod
  def empty(
    cls, layers: int, batch: int, slots: int, heads: int, size: int, dtype: Any
  ) -> 'SlotCache':
    """Returns a cache without tokens; the arguments are those of `ops.cache.Cache.empty`."""

    def zeros():
      one = jnp.zeros((batch, slots, heads, size), dtype)
      return constrain(one, 'batch', None, 'kv', None)

    none = jnp.zeros(batch, jnp.int32)
    keys, values = (tuple(zeros() for _ in range(layers)) for _ in range(2))
    return cls(keys, values, none, none)

  def layer(self, i: int) -> SlotLayer:
    """Returns the cache of layer `i`."""
    return SlotLayer(self.keys[i], self.values[i], self.at)

  def advance(self, layers: Sequence[SlotLayer], length: int) -> 'SlotCache':
    """Returns the cache after all layers have written `length` tokens, `count` of them real."""
    keys, values = tuple(x.key for x in layers), tuple(x.value for x in layers)
    return self.replace(keys=keys, values=values, at=self.at + self.count)

  def positions(self, length: int) -> jax.Array:
    """Returns positions of the next `length` tokens in their rows: int32 [B, T].

    Those of tokens that are not real are 0: a table has no row for a position behind the last.
    """
    step = jnp.arange(length)[None, :]
    return jnp.where(step < self.count[:, None], self.at[:, None] + step, 0)

  def take(self, rows: jax.Array, at: jax.Array) -> 'SlotCache':
    """Returns one row of each shard, of which the first `at` tokens count.

    Args:
      rows: int32 [D], a row's number within its shard: no row leaves its device.
      at: int32 [D].
    """
    pick = lambda x: _local(_pick, len(rows), x, rows)
    keys, values = tuple(map(pick, self.keys)), tuple(map(pick, self.values))
    return self.replace(keys=keys, values=values, at=at, count=jnp.zeros_like(at))

  def put(self, rows: jax.Array, part: 'SlotCache', real: jax.Array) -> 'SlotCache':
    """Returns the cache with one row of each shard replaced.

    Args:
      rows: int32 [D], see `take`.
      part: the rows.
      real: bool [D]; a shard where it is False keeps its rows.
    """
    place = lambda x, new: _local(_place, len(rows), x, new, rows, real)
    keys, values = (tuple(map(place, *pair)) for pair in (
      (self.keys, part.keys), (self.values, part.values)))  # fmt: skip
    at = put_rows(self.at, part.at, rows, real)
    return self.replace(keys=keys, values=values, at=at)


def put_rows(x: jax.Array, new: jax.Array, rows: jax.Array, real: jax.Array) -> jax.Array:
  """Replaces one row of each shard: x [B, ...], new [D, ...], rows int32 [D], real bool [D]."""
  return _local(_place, len(rows), x, new, rows, real)


def _pick(x, row):
  return jax.lax.dynamic_index_in_dim(x, row, 0, keepdims=False)


def _place(x, new, row, real):
  old = jax.lax.dynamic_index_in_dim(x, row, 0, keepdims=False)
  return jax.lax.dynamic_update_index_in_dim(x, jnp.where(real, new, old), row, 0)


def _local(fn: Any, shards: int, x: jax.Array, *rest: jax.Array) -> jax.Array:
  """Applies a function to the rows [B / D, ...] of each shard alone, and joins them again."""
  split = x.reshape(shards, -1, *x.shape[1:])
  done = jax.vmap(fn)(split, *rest)
  kept = done.reshape(x.shape) if done.shape == split.shape else done
  return constrain(kept, *_names(x))


def _names(x: jax.Array) -> tuple[str | None, ...]:
  heads = ('kv', None) if x.ndim == 4 else (None,) * (x.ndim - 2)
  return ('batch', *(None,) * (x.ndim > 1), *heads)
