"""Text from a decoder: prefill, then one token after another from a key-value cache."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from bmx.core import streams, tree
from bmx.core.errors import InputError
from bmx.core.types import Variables
from bmx.ops.cache import Cache
from bmx.parallel import Layout, constrain, jit
from bmx.serve.sample import Sampling, draw
from bmx.train.checkpoint import nested

PIECE = 512  # tokens of a prompt that are read at once: scores are [PIECE, slots], not squared
ROUND = 16  # prompts are padded to a multiple of this, so that few programs serve all


class Progress(struct.PyTreeNode):
  """What a decoding step needs of those before it."""

  cache: Cache
  logits: jax.Array  # [B, V]: scores of the next token
  seen: jax.Array  # bool [B, V]: tokens that a row has
  done: jax.Array  # bool [B]
  count: jax.Array  # int32 []: tokens made


@dataclasses.dataclass
class Report:
  """How long it took."""

  prompt_tokens: int = 0
  tokens: int = 0
  prefill_seconds: float = 0.0
  decode_seconds: float = 0.0
  compile_seconds: float = 0.0

  @property
  def rate(self) -> float:
    """Tokens a second, all rows together, behind the prompts."""
    return self.tokens / self.decode_seconds if self.decode_seconds else 0.0


def decoder(model: Any, params: Variables, layout: Layout) -> tuple[Any, Variables]:
  """The same model with layers one by one, and its weights, in the type that it computes in.

  Raises InputError for a model that is none of next tokens.
  """
  if not hasattr(model, 'extend'):
    raise InputError(f'{type(model).__name__} does not say next tokens: generation needs a decoder')
  how = {'scan': False, 'remat': False, 'attention': 'xla'}
  if getattr(model, 'experts', 0):
    how['capacity'] = 0.0  # no token may be dropped because of the rows beside it
  plain = model.clone(**how)
  cast = lambda name, x: x if 'norm' in name else x.astype(model.dtype)
  make = lambda params: tree.map_named(cast, unstacked(params))
  return plain, jit(make, layout)(params)


def unstacked(params: Variables) -> Variables:
  """'stack/blocks/...' [L, ...] as 'stack/block_0/...', 'stack/block_1/...', ..."""
  flat = {}
  for name, leaf in tree.named(params).items():
    head, blocks, rest = name.partition('/blocks/')
    if not blocks:
      flat[name] = leaf
      continue
    flat |= {f'{head}/block_{i}/{rest}': leaf[i] for i in range(leaf.shape[0])}
  return nested(flat)


class Generator:
  """Compiled prefill and decoding of one model for one way of drawing.

  Args:
    model, params: see `decoder`.
    chunk: tokens that are made before the host hears of them.
    end: id that ends a row; -1 is none.
  """

  def __init__(
    self,
    model: Any,
    params: Variables,
    layout: Layout,
    how: Sampling,
    chunk: int = 16,
    end: int = -1,
  ):
    self.model, self.params, self.layout = model, params, layout
    self.how, self.chunk, self.end = how, chunk, end
    self.programs: dict[Any, Any] = {}

  def stream(
    self, prompts: Sequence[Sequence[int]], tokens: int, seed: int = 0, report: Report | None = None
  ) -> Iterator[tuple[np.ndarray, Callable[[Sequence[int]], None]]]:
    """(new ids [B, n], -1 behind the end of a row; `stop`), chunk by chunk; `stop(rows)` ends rows.

    What a row draws depends on (seed, its number, its text), not on the rows beside it.

    Raises InputError: no prompt, an empty one, one that does not fit, ids outside the vocabulary.
    """
    report = report or Report()
    ids, first = self._padded(prompts, tokens)
    batch, real = len(ids), len(prompts)
    keys = jax.vmap(lambda i: jax.random.fold_in(_key(seed), i))(jnp.arange(batch))
    slots = ids.shape[1] + tokens
    prefill = self._compiled('prefill', self._prefill, report, self.params, ids, first, slots=slots)
    began = time.perf_counter()
    state = jax.block_until_ready(prefill(self.params, ids, first))
    report.prefill_seconds += time.perf_counter() - began
    report.prompt_tokens += sum(len(p) for p in prompts)
    state = state.replace(done=state.done | (jnp.arange(batch) >= real))
    decode = self._compiled('decode', self._decode, report, self.params, state, keys, np.int32(1))
    stopped = np.zeros(batch, bool)
    for start in range(0, tokens, self.chunk):
      n = min(self.chunk, tokens - start)
      began = time.perf_counter()
      state, made = decode(self.params, state, keys, np.int32(n))
      made, done = jax.device_get((made, state.done))
      report.decode_seconds += time.perf_counter() - began
      report.tokens += int((made[:real] >= 0).sum())
      yield made[:real, :n], lambda rows: np.put(stopped, rows, True)
      if (done | stopped)[:real].all():
        return
      if (stopped & ~done).any():
        state = state.replace(done=state.done | stopped)

  def _padded(self, prompts, tokens):
    """Prompts of one length, padded on the left -> (ids int32 [B, P], first int32 [B])."""
    if not prompts or not all(len(p) for p in prompts):
      raise InputError('there is no prompt, or an empty one: generation begins with a token')
    limit, vocab = self.model.length, self.model.vocab
    for prompt in prompts:
      if len(prompt) + tokens > limit:
        raise InputError(
          f'a prompt of {len(prompt)} tokens and {tokens} more do not fit the {limit} positions of '
          'the model: shorten it, or set --config.generate.tokens'
        )
      if min(prompt) < 0 or max(prompt) >= vocab:
        raise InputError(f'a prompt has token id {max(prompt)}, the model a vocabulary of {vocab}')
    shards = int(np.prod([self.layout.mesh.shape[a] for a in self.layout.compute['batch']]))
    rows = -(-len(prompts) // shards) * shards
    padded = [*prompts, *[prompts[0]] * (rows - len(prompts))]
    length = -(-max(map(len, padded)) // ROUND) * ROUND
    ids = np.zeros((rows, length), np.int32)
    for n, prompt in enumerate(padded):
      ids[n, length - len(prompt) :] = prompt
    return ids, np.array([length - len(p) for p in padded], np.int32)

  def _compiled(self, name, fn, report, *args, **static):
    shapes = tuple((x.shape, x.dtype.name) for x in jax.tree.leaves(args[1:]))
    place = name, shapes, tuple(static.items())
    if place not in self.programs:
      began = time.perf_counter()
      donate = (1,) if name == 'decode' else ()
      program = jit(lambda *a: fn(*a, **static), self.layout, donate_argnums=donate)
      self.programs[place] = program.lower(*args).compile()
      report.compile_seconds += time.perf_counter() - began
    return self.programs[place]

  def _prefill(self, params, ids, first, slots):
    model, variables = self.model, {'params': params}
    batch, length = ids.shape
    cache = model.empty_cache(batch, slots, first)
    hidden: Any = None
    for start in range(0, length, PIECE):
      piece = ids[:, start : start + PIECE]
      hidden, cache = model.apply(variables, piece, cache, method='extend')
    logits = model.apply(variables, hidden[:, -1:], method='logits')[:, 0]
    real = jnp.arange(length)[None, :] >= first[:, None]
    seen = jnp.zeros(logits.shape, bool)
    rows = jnp.arange(batch)[:, None]
    seen = seen.at[rows, jnp.where(real, ids, logits.shape[1])].set(True, mode='drop')
    return Progress(cache, logits, seen, jnp.zeros(batch, bool), jnp.int32(0))

  def _decode(self, params, state, keys, n):
    """n (at most `chunk`) tokens of every row -> (state, ids [B, chunk]; -1 where it is done)."""
    batch, variables = len(keys), {'params': params}
    remember = self.how.penalty != 1
    made = jnp.full((batch, self.chunk), -1, jnp.int32)

    def step(carry):
      i, state, made = carry
      now = jax.vmap(jax.random.fold_in, (0, None))(keys, state.count)
      ids = draw(state.logits, state.seen, now, self.how)
      made = made.at[:, i].set(jnp.where(state.done, -1, ids))
      done = state.done | (ids == self.end)
      seen = state.seen.at[jnp.arange(batch), ids].set(True) if remember else state.seen
      tokens = constrain(ids[:, None], 'batch', None)
      hidden, cache = self.model.apply(variables, tokens, state.cache, method='extend')
      logits = self.model.apply(variables, hidden, method='logits')[:, 0]
      return i + 1, Progress(cache, logits, seen, done, state.count + 1), made

    more = lambda carry: (carry[0] < n) & ~carry[1].done.all()
    _, state, made = jax.lax.while_loop(more, step, (jnp.int32(0), state, made))
    return state, made


def _key(seed: int) -> jax.Array:
  return jax.random.fold_in(jax.random.PRNGKey(seed), streams.GENERATE)
