"""Generation of tokens with a decoder: prefill, then one token at a time from its cache."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from bmx.core import streams
from bmx.core.types import Variables
from bmx.parallel import Layout, constrain, jit
from bmx.serve.decode import (
  PROMPT_MULTIPLE,
  Inputs,
  next_logits,
  pad,
  prefill,
  room,
  signature,
  steps_for,
)
from bmx.serve.sample import RowSampling, Sampling, draw


class DecodeState(struct.PyTreeNode):
  """State between two decoding steps.

  Attributes:
    cache: the decoder's own.
    logits: [B, V], of the next token.
    seen: bool [B, V], the tokens that each row contains.
    done: bool [B].
    count: int32 [], tokens generated.
  """

  cache: Any
  logits: jax.Array
  seen: jax.Array
  done: jax.Array
  count: jax.Array


@dataclasses.dataclass
class GenerationStats:
  """Tokens and seconds of one or more generations."""

  prompt_tokens: int = 0
  new_tokens: int = 0
  prefill_seconds: float = 0.0
  decode_seconds: float = 0.0
  compile_seconds: float = 0.0
  slides: int = 0  # times that a text forgot its oldest tokens

  @property
  def tokens_per_second(self) -> float:
    """New tokens of all rows per second of decoding."""
    return self.new_tokens / self.decode_seconds if self.decode_seconds else 0.0


class Generator:
  """Compiled prefill and decoding of one model with one way of sampling.

  Args:
    model: a decoder, see `decode.decoder`.
    params: its variables, see `decode.decoder`.
    layout: mesh and rules.
    sampling: how tokens are drawn.
    ends: token ids that end a row.
    begin: the prompt of inputs without token prompts, a begin-of-sequence id for instance.
    multiple: prompts and caches are padded to a multiple of it, so that few programs are compiled.
  """

  def __init__(
    self,
    model: Any,
    params: Variables,
    layout: Layout,
    sampling: Sampling,
    ends: Sequence[int] = (),
    begin: Sequence[int] = (),
    multiple: int = PROMPT_MULTIPLE,
  ):
    self.model, self.params, self.layout = model, params, layout
    self.sampling, self.ends, self.begin = sampling, tuple(ends), tuple(begin)
    self.multiple = multiple
    self.programs: dict[Any, Any] = {}

  def stream(
    self,
    inputs: Inputs,
    max_new_tokens: int,
    seed: int = 0,
    stats: GenerationStats | None = None,
    chunk: int = 16,
    row: int = 0,
  ) -> Iterator[tuple[np.ndarray, Callable[[Sequence[int]], None]]]:
    """Yields the new tokens chunk by chunk.

    The draws of a row depend on (seed, its number, its inputs), not on the rows beside it. A row
    ends with the last of the model's `max_seq_len` positions.

    Args:
      inputs: see `decode.pad`.
      max_new_tokens: per row.
      seed: of the draws.
      stats: counts are added to it.
      chunk: tokens generated per call of the compiled program.
      row: number of the first row.

    Yields:
      (new ids int32 [B, n], -1 after the end of a row; a function that ends the given rows).

    Raises:
      InputError: see `decode.pad`.
    """
    stats = stats or GenerationStats()
    padded = pad(inputs, self.model, self.layout, self.begin, row, self.multiple)
    arrays, rows, batch = padded.arrays, padded.rows, len(padded.prompt_lengths)
    keys = np.asarray(
      jax.vmap(lambda i: jax.random.fold_in(draw_key(seed), i))(row + np.arange(batch))
    )
    free = room(self.model, padded.prompt_lengths, max_new_tokens)
    free[rows:] = 0
    last = int(free.max())
    slots = steps_for(free, max_new_tokens, self.multiple)
    chunk = min(chunk, slots)
    state = self._run(stats, ('prefill', slots), lambda: self._begin(slots), arrays)
    stats.prompt_tokens += int(padded.prompt_lengths[:rows].sum())
    stopped = np.zeros(batch, bool)
    for start in range(0, last, chunk):
      n = min(chunk, last - start)
      where = jax.tree.map(lambda x: x.sharding, state)
      others = keys, free, stopped, np.int32(n)
      decode = self._compiled(
        stats, ('decode', chunk), lambda w=where: self._more(w, chunk), state, *others
      )
      began = time.perf_counter()
      state, new, done = decode(self.params, state, *others)
      new, done = jax.device_get((new, done))
      stats.decode_seconds += time.perf_counter() - began
      stats.new_tokens += int((new[:rows] >= 0).sum())
      yield new[:rows, :n], lambda some: np.put(stopped, some, True)
      if (done | stopped).all():
        return

  def _run(self, stats: GenerationStats, name: Any, make: Callable[[], Any], *args: Any) -> Any:
    """Runs a program that fills a cache; its time is that of prefill."""
    program = self._compiled(stats, name, make, *args)
    began = time.perf_counter()
    state = jax.block_until_ready(program(self.params, *args))
    stats.prefill_seconds += time.perf_counter() - began
    return state

  def _compiled(
    self, stats: GenerationStats, name: Any, make: Callable[[], Any], *args: Any
  ) -> Any:
    """Returns the program of this name for arguments of these shapes."""
    name = name, signature(args)
    if name not in self.programs:
      began = time.perf_counter()
      self.programs[name] = make().lower(self.params, *args).compile()
      stats.compile_seconds += time.perf_counter() - began
    return self.programs[name]

  def _begin(self, limit: int) -> jit:
    return jit(lambda p, arrays: self._prefill(p, arrays, limit), self.layout)

  def _more(self, where: Any, chunk: int) -> jit:
    """Compiles decoding; the state keeps the sharding of prefill in every step."""
    everywhere = self.layout.sharding()
    decode = lambda *args: self._decode(*args, chunk=chunk)
    out = (where, everywhere, everywhere)
    return jit(decode, self.layout, donate_argnums=(1,), out_shardings=out)

  def _prefill(self, params, arrays, limit):
    ids, first = arrays['tokens'], arrays['first']
    batch, length = ids.shape
    cache, logits = prefill(self.model, params, arrays, length + limit)
    real = jnp.arange(length)[None, :] >= first[:, None]
    seen = jnp.zeros(logits.shape, bool)
    rows = jnp.arange(batch)[:, None]
    seen = seen.at[rows, jnp.where(real, ids, logits.shape[1])].set(True, mode='drop')
    return DecodeState(cache, logits, seen, jnp.zeros(batch, bool), jnp.int32(0))

  def _decode(self, params, state, keys, free, stopped, n, chunk):
    """Generates n (at most `chunk`) tokens of every row.

    Returns:
      (state, ids int32 [B, chunk] with -1 where a row is done, done bool [B]).
    """
    batch = len(keys)
    remember = self.sampling.repetition_penalty != 1
    ends, sampling = jnp.array(self.ends, jnp.int32), RowSampling.of([self.sampling] * batch)
    new = jnp.full((batch, chunk), -1, jnp.int32)
    state = state.replace(done=state.done | stopped | (state.count >= free))

    def step(carry):
      i, state, new = carry
      now = jax.vmap(jax.random.fold_in, (0, None))(keys, state.count)
      ids = draw(state.logits, state.seen, now, sampling)
      new = new.at[:, i].set(jnp.where(state.done, -1, ids))
      done = state.done | jnp.isin(ids, ends) | (state.count + 1 >= free)
      seen = state.seen.at[jnp.arange(batch), ids].set(True) if remember else state.seen
      tokens = constrain(ids[:, None], 'batch', None)
      hidden, cache = self.model.apply(params, tokens, state.cache, method='extend')
      logits = next_logits(self.model, params, hidden)
      return i + 1, DecodeState(cache, logits, seen, done, state.count + 1), new

    more = lambda carry: (carry[0] < n) & ~carry[1].done.all()
    _, state, new = jax.lax.while_loop(more, step, (jnp.int32(0), state, new))
    return state, new, state.done


def draw_key(seed: int) -> jax.Array:
  """Returns the key of all draws of a seed; fold in the row, then the number of the token."""
  return jax.random.fold_in(jax.random.PRNGKey(seed), streams.GENERATE)
