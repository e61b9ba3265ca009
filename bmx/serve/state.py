"""Arrays of an engine between two calls of the device, and the arguments of a call.

B rows, D shards of the batch, C tokens of a chunk, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from flax import struct

from bmx.ops.slots import SlotCache
from bmx.serve.sample import RowSampling


class EngineState(struct.PyTreeNode):
  """Arrays of an engine between two calls; donated to each.

  Attributes:
    cache: of all rows.
    logits: float [B, V], of each row's next token.
    seen: bool [B, V], the tokens that each row contains.
  """

  cache: SlotCache
  logits: jax.Array
  seen: jax.Array


class Chunk(NamedTuple):
  """The next tokens of one row in each shard.

  Attributes:
    tokens: int32 [D, C].
    count: int32 [D], real tokens; 0 for a shard that reads nothing.
    row: int32 [D], number of the row within its shard.
    at: int32 [D], tokens that the row holds already.
    fresh: bool [D], whether a prompt begins: `seen` is cleared.
    adapter: int32 [D], see `serve.adapters`.
  """

  tokens: Any
  count: Any
  row: Any
  at: Any
  fresh: Any
  adapter: Any


class Rows(NamedTuple):
  """What a decoding call does with each row.

  Attributes:
    active: bool [B], whether the row generates.
    at: int32 [B], tokens that it holds.
    left: int32 [B], tokens that it may still generate.
    count: int32 [B], tokens that it has generated, which number its draws.
    keys: uint32 [B, 2], of its draws.
    adapter: int32 [B], see `serve.adapters`.
    sampling: options, one of each per row.
  """

  active: Any
  at: Any
  left: Any
  count: Any
  keys: Any
  adapter: Any
  sampling: RowSampling

  @classmethod
  def idle(cls, rows: int) -> 'Rows':
    """Returns rows that generate nothing."""
    ones, zeros = np.ones(rows, np.float32), np.zeros(rows, np.int32)
    sampling = RowSampling(ones, zeros, ones, ones)
    return cls(zeros > 0, zeros, zeros, zeros, np.zeros((rows, 2), np.uint32), zeros, sampling)


def slots_of(state: EngineState) -> int:
  """Returns the slots of the cache."""
  return jax.tree.leaves(state.cache.keys)[0].shape[2]
