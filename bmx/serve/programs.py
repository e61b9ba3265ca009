"""The device programs of an engine: prefill of one row in each shard, decoding of all rows.

B rows, D shards of the batch, C tokens of a chunk, V vocabulary.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from bmx.core.types import Variables
from bmx.ops.slots import SlotCache, put_rows
from bmx.parallel import constrain
from bmx.serve.decode import next_logits
from bmx.serve.sample import RowSampling, draw_rows


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
  """The next tokens of one prompt in each shard.

  Attributes:
    tokens: int32 [D, C].
    count: int32 [D], real tokens; 0 for a shard without a prompt.
    row: int32 [D], number of the row within its shard.
    source: int32 [D], the row whose first `at` tokens the prompt continues; mostly `row` itself.
    at: int32 [D], tokens that are in the cache already.
    fresh: bool [D], whether the prompt begins: `seen` is cleared.
  """

  tokens: Any
  count: Any
  row: Any
  source: Any
  at: Any
  fresh: Any


class Rows(NamedTuple):
  """What a decoding call does with each row.

  Attributes:
    active: bool [B], whether the row generates.
    left: int32 [B], tokens that it may still generate.
    count: int32 [B], tokens that it has generated, which number its draws.
    keys: uint32 [B, 2], of its draws.
    sampling: options, one of each per row.
  """

  active: Any
  left: Any
  count: Any
  keys: Any
  sampling: RowSampling


def empty_state(model: Any, variables: Variables, rows: int, slots: int) -> EngineState:
  """Returns the state without tokens."""
  cache = model.slot_cache(rows, slots)
  hidden = jax.eval_shape(lambda v: _hidden(model, v, rows, cache), variables)
  logits = jax.eval_shape(lambda v, h: next_logits(model, v, h), variables, hidden)
  zeros = constrain(jnp.zeros(logits.shape, logits.dtype), 'batch', 'vocab')
  return EngineState(cache, zeros, jnp.zeros(logits.shape, bool))


def _hidden(model: Any, variables: Variables, rows: int, cache: SlotCache) -> jax.Array:
  tokens = jnp.zeros((rows, 1), jnp.int32)
  return model.apply(variables, tokens, cache, method='extend')[0]


def prefill_chunk(
  model: Any, variables: Variables, state: EngineState, chunk: Chunk
) -> EngineState:
  """Reads one chunk of a prompt in each shard; sets the logits behind it."""
  real = chunk.count > 0
  part = state.cache.take(chunk.source, chunk.at).replace(count=chunk.count)
  tokens = constrain(chunk.tokens, 'batch', None)
  hidden, part = model.apply(variables, tokens, part, method='extend')
  last = jnp.maximum(chunk.count - 1, 0)[:, None, None]
  logits = next_logits(model, variables, jnp.take_along_axis(hidden, last, axis=1))
  kept = jnp.arange(tokens.shape[1])[None, :] < chunk.count[:, None]
  rows, outside = jnp.arange(len(real))[:, None], state.seen.shape[1]
  new = jnp.zeros((len(real), outside), bool)
  new = new.at[rows, jnp.where(kept, tokens, outside)].set(True, mode='drop')
  own = state.seen.reshape(len(real), -1, outside)
  own = jnp.take_along_axis(own, chunk.row[:, None, None], axis=1)[:, 0]
  seen = jnp.where(chunk.fresh[:, None], new, own | new)
  return EngineState(
    state.cache.put(chunk.row, part, real),
    put_rows(state.logits, logits, chunk.row, real),
    put_rows(state.seen, seen, chunk.row, real),
  )


def decode(
  model: Any,
  variables: Variables,
  state: EngineState,
  rows: Rows,
  ends: jax.Array,
  n: jax.Array,
  limit: int,
) -> tuple[EngineState, jax.Array, jax.Array]:
  """Generates n (at most `limit`) tokens in every active row, fewer once all have ended.

  Args:
    model: a decoder.
    variables: of the decoding form, see `decode.decoding_form`.
    state: of the engine.
    rows: what each row does.
    ends: int32 [E], ids that end a row.
    n: int32 [].
    limit: largest n of the program.

  Returns:
    The state; ids int32 [B, limit], -1 where a row generates nothing; their log-probabilities
    float32 [B, limit] under the model, before sampling options.
  """
  batch = len(rows.active)
  new = jnp.full((batch, limit), -1, jnp.int32)
  likely = jnp.zeros((batch, limit), jnp.float32)
  every = jnp.arange(batch)

  def step(carry):
    i, active, state, new, likely = carry
    keys = jax.vmap(jax.random.fold_in)(rows.keys, rows.count + i)
    ids = draw_rows(state.logits, state.seen, keys, rows.sampling)
    raw = state.logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(raw, ids[:, None], axis=1)[:, 0]
    likely = likely.at[:, i].set(chosen - jax.nn.logsumexp(raw, axis=-1))
    new = new.at[:, i].set(jnp.where(active, ids, -1))
    seen = state.seen.at[every, jnp.where(active, ids, raw.shape[1])].set(True, mode='drop')
    tokens = constrain(ids[:, None], 'batch', None)
    cache = state.cache.replace(count=active.astype(jnp.int32))
    hidden, cache = model.apply(variables, tokens, cache, method='extend')
    logits = next_logits(model, variables, hidden)
    logits = jnp.where(active[:, None], logits, state.logits)
    active &= ~jnp.isin(ids, ends) & (i + 1 < rows.left)
    return i + 1, active, EngineState(cache, logits, seen), new, likely

  more = lambda carry: (carry[0] < n) & carry[1].any()
  start = jnp.int32(0), jnp.asarray(rows.active), state, new, likely
  _, _, state, new, likely = jax.lax.while_loop(more, step, start)
  return state, new, likely
