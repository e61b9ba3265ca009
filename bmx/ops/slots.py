"""A key-value cache whose rows begin, grow and end on their own: the slots of a serving engine.

Row b holds `at[b]` tokens from slot 0 on. Every row of a call gets T tokens, of which the first
`count[b]` are real; the others are written nowhere. A call may be for one row of each shard alone.

B rows, D shards of the batch, R rows of a call (B or D), S slots, T new tokens, K key/value heads,
N query heads, H head size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from bmx.ops.cache import Slots, as_slots, attend_slots, empty_slots, length_of, within
from bmx.parallel import constrain


class SlotLayer(struct.PyTreeNode):
  """The cache of one layer.

  Attributes:
    key: Slots of [B, K, S, H], see `ops.cache`.
    value: likewise.
    at: int32 [R], the slot of each row's next token.
    count: int32 [R], real tokens of each row.
    rows: int32 [D], the one row of each shard that a call is for; None: all rows.
  """

  key: Slots
  value: Slots
  at: jax.Array
  count: jax.Array
  rows: jax.Array | None = None

  def write(self, key: jax.Array, value: jax.Array) -> 'SlotLayer':
    """Returns the cache with key and value [R, T, K, H] in each row's slots from `at`."""
    step = jnp.arange(key.shape[1])[None, :]
    slot = jnp.where(step < self.count[:, None], self.at[:, None] + step, length_of(self.key))

    def put(slots, new):
      if self.rows is None:
        write = lambda row, part, at: row.at[:, at].set(part, mode='drop')
        return constrain(jax.vmap(write)(slots, new, slot), 'batch', 'kv', None, None)
      write = lambda x, part, at, row: x.at[row, :, at].set(part.swapaxes(0, 1), mode='drop')
      return _in_shards(write, len(self.rows), slots, new, slot, self.rows)

    one = lambda slots, new: jax.tree.map(put, slots, as_slots(new, slots))
    return self.replace(key=one(self.key, key), value=one(self.value, value))

  def attend(
    self, q: jax.Array, window: int = 0, scale: float = 0.0, bias: jax.Array | None = None
  ) -> jax.Array:
    """Computes softmax(scale · q kᵀ + bias) v over the slots that a query may attend to.

    Args:
      q: [R, T, N, H]; the first token of row r is in slot `at[r]`.
      window: slots that a query attends to, its own included; 0 is all up to its own.
      scale: 0 is 1 / √H.
      bias: float [1, N, T, S], added to the scores.

    Returns:
      [R, T, N, H] in q's dtype.
    """
    own = self.at[:, None] + jnp.arange(q.shape[1])[None, :]
    distance = own[:, :, None] - jnp.arange(length_of(self.key))[None, None, :]
    key, value, rows = self.key, self.value, self.rows
    if rows is not None:
      key, value = jax.tree.map(lambda x: take_rows(x, rows), (key, value))
    return attend_slots(q, key, value, within(distance, window), scale, bias)


class SlotCache(struct.PyTreeNode):
  """The cache of all layers.

  Attributes:
    keys: Slots of [B, K, S, H], one per layer.
    values: likewise.
    at: int32 [R], tokens that each row of the next call holds.
    count: int32 [R], real tokens of each row in the next call.
    rows: see `SlotLayer`.
  """

  keys: tuple[Slots, ...]
  values: tuple[Slots, ...]
  at: jax.Array
  count: jax.Array
  rows: jax.Array | None = None

  @classmethod
  def empty(
    cls, layers: int, batch: int, slots: int, heads: int, size: int, dtype: Any
  ) -> 'SlotCache':
    """Returns a cache without tokens; the arguments are those of `ops.cache.Cache.empty`."""
    zeros = lambda: empty_slots(batch, slots, heads, size, dtype)
    none = jnp.zeros(batch, jnp.int32)
    keys, values = (tuple(zeros() for _ in range(layers)) for _ in range(2))
    return cls(keys, values, none, none)

  def layer(self, i: int) -> SlotLayer:
    """Returns the cache of layer `i`."""
    return SlotLayer(self.keys[i], self.values[i], self.at, self.count, self.rows)

  def advance(self, layers: Sequence[SlotLayer], length: int) -> 'SlotCache':
    """Returns the cache after all layers have written `length` tokens, `count` of them real."""
    keys, values = tuple(x.key for x in layers), tuple(x.value for x in layers)
    return self.replace(keys=keys, values=values, at=self.at + self.count)

  def positions(self, length: int) -> jax.Array:
    """Returns positions of the next `length` tokens in their rows: int32 [R, T].

    Those of tokens that are not real are 0: a table has no row for a position behind the last.
    """
    step = jnp.arange(length)[None, :]
    return jnp.where(step < self.count[:, None], self.at[:, None] + step, 0)

  def of_rows(self, rows: jax.Array, at: jax.Array, count: jax.Array) -> 'SlotCache':
    """Returns the cache for a call that is for one row of each shard alone.

    Args:
      rows: int32 [D], a row's number within its shard: no row leaves its device.
      at: int32 [D], tokens that the rows hold.
      count: int32 [D], real tokens of the call; 0 leaves a shard as it is.
    """
    return self.replace(rows=rows, at=at, count=count)

  def of_all(self, at: jax.Array) -> 'SlotCache':
    """Returns the cache for calls that are for all rows, which hold int32 [B] tokens."""
    return self.replace(rows=None, at=at, count=jnp.zeros_like(at))

  def copied(self, sources: jax.Array, rows: jax.Array) -> 'SlotCache':
    """Returns the cache with one row of each shard, int32 [D], replaced by another's content."""

    def copy(x):
      move = lambda part, source, row: part.at[row].set(part[source])
      return _in_shards(move, len(rows), x, sources, rows)

    return self._mapped(copy)

  def resized(self, slots: int) -> 'SlotCache':
    """Returns the cache with so many slots: the first ones, or empty ones behind them."""

    def resize(x):
      kept = x[:, :, :slots]
      missing = slots - kept.shape[2]
      return constrain(jnp.pad(kept, ((0, 0), (0, 0), (0, missing), (0, 0))),
                       'batch', 'kv', None, None)  # fmt: skip

    return self._mapped(resize)

  def _mapped(self, fn: Callable[[jax.Array], jax.Array]) -> 'SlotCache':
    keys, values = jax.tree.map(fn, (self.keys, self.values))
    return self.replace(keys=keys, values=values)


def take_rows(x: jax.Array, rows: jax.Array) -> jax.Array:
  """Returns one row of each shard: x [B, ...], rows int32 [D] -> [D, ...]."""
  split = _split(x, len(rows))
  taken = jax.vmap(lambda part, row: part[row])(split, rows)
  return constrain(taken, *_names(x))


def put_rows(x: jax.Array, new: jax.Array, rows: jax.Array, real: jax.Array) -> jax.Array:
  """Replaces one row of each shard: x [B, ...], new [D, ...], rows int32 [D], real bool [D]."""
  put = lambda part, new, row, real: part.at[row].set(jnp.where(real, new, part[row]))
  return _in_shards(put, len(rows), x, new, rows, real)


def _split(x: jax.Array, shards: int) -> jax.Array:
  return x.reshape(shards, -1, *x.shape[1:])


def _in_shards(
  fn: Callable[..., jax.Array], shards: int, x: jax.Array, *rest: jax.Array
) -> jax.Array:
  """Applies a function to the rows [B / D, ...] of each shard alone, and joins them again."""
  done = jax.vmap(fn)(_split(x, shards), *rest)
  return constrain(done.reshape(x.shape), *_names(x))


def _names(x: jax.Array) -> tuple[str | None, ...]:
  heads = ('kv', None, None) if x.ndim == 4 else (None,) * (x.ndim - 1)
  return ('batch', *heads)
