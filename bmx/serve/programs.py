"""The device programs of an engine: prefill of one row in each shard, decoding of all rows.

B rows, D shards of the batch, C tokens of a chunk, V vocabulary.
"""

import concurrent.futures
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.types import Variables
from bmx.ops.slots import SlotCache, put_rows, take_rows
from bmx.parallel import Layout, constrain, jit
from bmx.serve.adapters import adapting
from bmx.serve.decode import next_logits
from bmx.serve.sample import draw
from bmx.serve.state import Chunk, EngineState, Rows, slots_of

STEPS = 8  # most tokens of a decoding call


class Programs:
  """Compiled programs by the slots of the cache; each is compiled once, at its first call.

  Args:
    model: a decoder with `slot_cache`, in its decoding form.
    layout: mesh and rules.
    rows: B.
    shards: D.
    ends: ids that end a row.

  Attributes:
    least: tokens of each row that a decoding call generates at least, if it can.
    most: those that it generates at most.
    compiling: seconds of compilation.
  """

  least, most = 1, STEPS

  def __init__(self, model: Any, layout: Layout, rows: int, shards: int, ends: Sequence[int]):
    self.model, self.layout, self.rows, self.shards = model, layout, rows, shards
    self.ends, self.compiling = tuple(int(x) for x in ends), 0.0
    self._found: dict[Any, Any] = {}

  def check(self, request: Any) -> None:
    """Raises InputError for a request whose options the programs do not have."""

  @property
  def seconds(self) -> float:
    """Of compilation."""
    return self.compiling

  def compile(self, variables: Variables, chunks: Sequence[int], sizes: Sequence[int]) -> None:
    """Compiles every program: no call of an engine with these sizes compiles another."""
    calls = self.calls(variables, chunks, sizes)
    with concurrent.futures.ThreadPoolExecutor() as pool:  # compilers use one core each
      for done in [pool.submit(fn, *args) for fn, *args in calls]:
        done.result()

  def calls(self, variables: Variables, chunks: Sequence[int], sizes: Sequence[int]) -> list[Any]:
    """Returns (function, arguments) that compile all programs."""
    decodes = [(self._decode, size, variables, self.like(variables, size)) for size in sizes]
    return self.reads(variables, chunks, sizes) + decodes

  def reads(self, variables: Variables, chunks: Sequence[int], sizes: Sequence[int]) -> list[Any]:
    """Returns those of all programs but decoding."""
    found = []
    for size in sizes:
      state = self.like(variables, size)
      found += [(self._prefill, size, chunk, variables, state) for chunk in chunks]
      found += [(self._copy, size, state)]
      found += [(self._resize, size, other, state) for other in sizes if other != size]
    return found

  def empty(self, variables: Variables, size: int) -> EngineState:
    """Returns the state without tokens."""
    zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.like(variables, size))
    place = jax.tree.map(lambda x: x.sharding, self.like(variables, size))
    return jit(zeros, self.layout, out_shardings=place)()

  def prefill(self, variables: Variables, state: EngineState, chunk: Chunk) -> EngineState:
    """Reads a chunk, see `prefill_chunk`; the state is donated."""
    program = self._prefill(slots_of(state), chunk.tokens.shape[1], variables, state)
    return program(variables, state, chunk)

  def decode(
    self, variables: Variables, state: EngineState, rows: Rows, n: int
  ) -> tuple[EngineState, np.ndarray, np.ndarray]:
    """Generates tokens, see `decode`; the state is donated."""
    program = self._decode(slots_of(state), variables, state)
    state, new, likely = program(variables, state, rows, np.int32(n))
    return state, *jax.device_get((new, likely))

  def copy(self, state: EngineState, sources: np.ndarray, rows: np.ndarray) -> EngineState:
    """Copies the cache of one row in each shard to another; the state is donated."""
    return self._copy(slots_of(state), state)(state, sources, rows)

  def resize(self, state: EngineState, size: int) -> EngineState:
    """Returns the state with a cache of other slots."""
    now = slots_of(state)
    return state if now == size else self._resize(now, size, state)(state)

  def _prefill(self, size: int, chunk: int, variables: Variables, state: EngineState) -> Any:
    none = np.zeros(self.shards, np.int32)
    given = Chunk(np.zeros((self.shards, chunk), np.int32), none, none, none, none > 0, none)
    fn = lambda v, state, chunk: prefill_chunk(self.model, v, state, chunk)
    return self._program(('prefill', size, chunk), fn, (variables, state, given), donated=(1,))

  def _decode(self, size: int, variables: Variables, state: EngineState) -> Any:
    ends = jnp.array(self.ends, jnp.int32)
    fn = lambda v, state, rows, n: decode(self.model, v, state, rows, ends, n, STEPS)
    given = variables, state, Rows.idle(self.rows), np.int32(1)
    return self._program(('decode', size), fn, given, donated=(1,), others=2)

  def _copy(self, size: int, state: EngineState) -> Any:
    fn = lambda state, sources, rows: state.replace(cache=state.cache.copied(sources, rows))
    none = np.zeros(self.shards, np.int32)
    return self._program(('copy', size), fn, (state, none, none), donated=(0,))

  def _resize(self, size: int, other: int, state: EngineState) -> Any:
    fn = lambda state: state.replace(cache=state.cache.resized(other))
    return self._program(('resize', size, other), fn, (state,))

  def _program(
    self, name: Any, fn: Callable, args: Any, donated: tuple[int, ...] = (), others: int = 0
  ) -> Any:
    """Returns the program of this name, whose first result is a state placed as the given one."""
    if name not in self._found:
      began = time.perf_counter()
      state = next(x for x in args if isinstance(x, EngineState))
      place = jax.tree.map(lambda x: x.sharding, state)
      out = (place, *[self.layout.sharding()] * others) if others else place
      made = jit(fn, self.layout, donate_argnums=donated, out_shardings=out)
      self._found[name] = made.lower(*args).compile()
      self.compiling += time.perf_counter() - began
    return self._found[name]

  def like(self, variables: Variables, size: int) -> EngineState:
    """Returns shapes and placement of the state."""
    make = jit(lambda v: empty_state(self.model, v, self.rows, size), self.layout)
    name = ('state', size)
    if name not in self._found:
      place = make.lower(variables).compile().output_shardings
      shapes = jax.eval_shape(lambda v: empty_state(self.model, v, self.rows, size), variables)
      spec = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
      self._found[name] = jax.tree.map(spec, shapes, place)
    return self._found[name]


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
  """Reads tokens of one row in each shard; sets the logits behind them."""
  real, held = chunk.count > 0, state.cache.at
  tokens = constrain(chunk.tokens, 'batch', None)
  part = state.cache.of_rows(chunk.row, chunk.at, chunk.count)
  last = jnp.maximum(chunk.count - 1, 0)[:, None, None]
  with adapting(chunk.adapter):
    hidden, part = model.apply(variables, tokens, part, method='extend')
    logits = next_logits(model, variables, jnp.take_along_axis(hidden, last, axis=1))
  kept = jnp.arange(tokens.shape[1])[None, :] < chunk.count[:, None]
  rows, outside = jnp.arange(len(real))[:, None], state.seen.shape[1]
  new = jnp.zeros((len(real), outside), bool)
  new = new.at[rows, jnp.where(kept, tokens, outside)].set(True, mode='drop')
  seen = jnp.where(chunk.fresh[:, None], new, take_rows(state.seen, chunk.row) | new)
  return EngineState(
    part.of_all(held),
    put_rows(state.logits, logits.astype(state.logits.dtype), chunk.row, real),
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
    ids = draw(state.logits, state.seen, keys, rows.sampling)
    raw = state.logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(raw, ids[:, None], axis=1)[:, 0]
    likely = likely.at[:, i].set(chosen - jax.nn.logsumexp(raw, axis=-1))
    new = new.at[:, i].set(jnp.where(active, ids, -1))
    seen = state.seen.at[every, jnp.where(active, ids, raw.shape[1])].set(True, mode='drop')
    tokens = constrain(ids[:, None], 'batch', None)
    cache = state.cache.replace(count=active.astype(jnp.int32))
    with adapting(rows.adapter):
      hidden, cache = model.apply(variables, tokens, cache, method='extend')
      logits = next_logits(model, variables, hidden)
    logits = jnp.where(active[:, None], logits, state.logits)
    active &= ~jnp.isin(ids, ends) & (i + 1 < rows.left)
    return i + 1, active, EngineState(cache, logits, seen), new, likely

  more = lambda carry: (carry[0] < n) & carry[1].any()
  held, cache = state.cache.at, state.cache.of_all(jnp.asarray(rows.at))
  start = jnp.int32(0), jnp.asarray(rows.active), state.replace(cache=cache), new, likely
  _, _, state, new, likely = jax.lax.while_loop(more, step, start)
  return state.replace(cache=state.cache.of_all(held)), new, likely
