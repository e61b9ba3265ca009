"""Tokens from a decoder: prefill, then one after another from a key-value cache."""

import dataclasses
import math
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
from bmx.models.stack import layers_apart
from bmx.ops.cache import Cache
from bmx.parallel import Layout, constrain, jit
from bmx.serve.sample import Sampling, draw

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

  Raises InputError for a model that is none of next tokens, or a mesh that generation cannot use.
  """
  if not hasattr(model, 'extend'):
    raise InputError(f'{type(model).__name__} does not say next tokens: generation needs a decoder')
  cut = [axis for axis in ('pipe', 'seq') if layout.mesh.shape[axis] > 1]
  if cut or jax.process_count() > 1:
    what = f'--config.mesh.{cut[0]}=1' if cut else 'one process'
    raise InputError(f'generation needs {what}: it runs on data, fsdp and model axes of one host')
  how = {'scan': False, 'remat': 'none', 'attention': 'xla'}
  if getattr(model, 'experts', 0):
    how['capacity_factor'] = 0.0  # no token may be dropped because of the rows beside it
  plain = model.clone(**how)
  exact = lambda name: 'norm' in name or 'router' in name  # float32 in training too
  cast = lambda name, x: x if exact(name) else x.astype(model.dtype)
  make = lambda params: tree.map_named(cast, unstacked(params))
  return plain, jit(make, layout)(params)


def unstacked(params: Variables) -> Variables:
  """'stack/blocks/...' [L, ...] as 'stack/block_0/...', 'stack/block_1/...', ..."""
  apart = layers_apart(params)
  return tree.nested({k: leaf if i is None else leaf[i] for k, (leaf, i) in apart.items()})


def padded(
  prompts: Sequence[Sequence[int]], model: Any, layout: Layout
) -> tuple[np.ndarray, np.ndarray]:
  """Prompts of one length, padded on the left, and as many rows as the mesh divides -> (ids int32
  [B, P], the slot of each row's first token int32 [B]).

  Raises InputError: no prompt, an empty one, one that leaves no room, ids outside the vocabulary.
  """
  if not prompts:
    raise InputError('there is no prompt: generation begins with a token')
  limit, vocab = model.max_seq_len, model.vocab_size
  for number, prompt in enumerate(prompts, 1):
    if not len(prompt):
      raise InputError(f'prompt {number} is empty: generation begins with a token')
    if len(prompt) >= limit:
      raise InputError(
        f'prompt {number} has {len(prompt)} tokens, which leaves no room in the {limit} positions '
        'of the model'
      )
    if min(prompt) < 0 or max(prompt) >= vocab:
      raise InputError(
        f'prompt {number} has token id {max(prompt)}, the model a vocabulary of {vocab}'
      )
  shards = math.prod(layout.mesh.shape[a] for a in layout.compute['batch'])
  rows = -(-len(prompts) // shards) * shards
  filled = [*prompts, *[prompts[0]] * (rows - len(prompts))]
  length = -(-max(map(len, filled)) // ROUND) * ROUND
  ids = np.zeros((rows, length), np.int32)
  for n, prompt in enumerate(filled):
    ids[n, length - len(prompt) :] = prompt
  return ids, np.array([length - len(p) for p in filled], np.int32)


def prefill(model: Any, params: Variables, ids: jax.Array, first: jax.Array, slots: int):
  """Reads prompts -> (the cache, scores of the next token [B, V])."""
  variables = {'params': params}
  cache, hidden = model.empty_cache(len(ids), slots, first), None
  for start in range(0, ids.shape[1], PIECE):
    piece = ids[:, start : start + PIECE]
    hidden, cache = model.apply(variables, piece, cache, method='extend')
  assert hidden is not None
  return cache, model.apply(variables, hidden[:, -1:], method='logits')[:, 0]


class Generator:
  """Compiled prefill and decoding of one model for one way of drawing.

  Args:
    model, params: see `decoder`.
    ends: ids that end a row.
  """

  def __init__(
    self, model: Any, params: Variables, layout: Layout, how: Sampling, ends: Sequence[int] = ()
  ):
    self.model, self.params, self.layout = model, params, layout
    self.how, self.ends = how, tuple(ends)
    self.programs: dict[Any, Any] = {}

  def stream(
    self,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    seed: int = 0,
    report: Report | None = None,
    chunk: int = 16,
    row: int = 0,
  ) -> Iterator[tuple[np.ndarray, Callable[[Sequence[int]], None]]]:
    """(new ids [B, n], -1 behind the end of a row; `stop`), chunk by chunk; `stop(rows)` ends rows.

    What a row draws depends on (seed, its number, its text), not on the rows beside it. A row ends
    with the model's positions, too.

    Args:
      chunk: tokens that are made before the host hears of them.
      row: number of the first prompt.

    Raises InputError: see `padded`.
    """
    report, chunk = report or Report(), min(chunk, tokens)
    ids, first = padded(prompts, self.model, self.layout)
    (batch, length), real = ids.shape, len(prompts)
    keys = np.asarray(jax.vmap(lambda i: jax.random.fold_in(_key(seed), i))(row + np.arange(batch)))
    room = np.minimum(self.model.max_seq_len - (length - first), tokens).astype(np.int32)
    room[real:] = 0
    begin = self._compiled(('prefill', ids.shape, tokens), report, lambda: self._begin(tokens), ids,
                           first)  # fmt: skip
    began = time.perf_counter()
    state = jax.block_until_ready(begin(self.params, ids, first))
    report.prefill_seconds += time.perf_counter() - began
    report.prompt_tokens += sum(len(p) for p in prompts)
    inputs = keys, room, np.zeros(batch, bool), np.int32(1)
    at = jax.tree.map(lambda x: x.sharding, state)
    place = 'decode', ids.shape, tokens, chunk
    decode = self._compiled(place, report, lambda: self._more(at, chunk), state, *inputs)
    stopped = np.zeros(batch, bool)
    for start in range(0, tokens, chunk):
      n = min(chunk, tokens - start)
      began = time.perf_counter()
      state, made, done = decode(self.params, state, keys, room, stopped, np.int32(n))
      made, done = jax.device_get((made, done))
      report.decode_seconds += time.perf_counter() - began
      report.tokens += int((made[:real] >= 0).sum())
      yield made[:real, :n], lambda rows: np.put(stopped, rows, True)
      if (done | stopped)[:real].all():
        return

  def _compiled(self, place: Any, report: Report, make: Callable[[], Any], *args: Any) -> Any:
    if place not in self.programs:
      began = time.perf_counter()
      self.programs[place] = make().lower(self.params, *args).compile()
      report.compile_seconds += time.perf_counter() - began
    return self.programs[place]

  def _begin(self, tokens: int) -> jit:
    return jit(lambda p, ids, first: self._prefill(p, ids, first, tokens), self.layout)

  def _more(self, at: Any, chunk: int) -> jit:
    """A state stays where prefill has put it, step after step."""
    everywhere = self.layout.sharding()
    decode = lambda *args: self._decode(*args, chunk=chunk)
    out = (at, everywhere, everywhere)
    return jit(decode, self.layout, donate_argnums=(1,), out_shardings=out)

  def _prefill(self, params, ids, first, tokens):
    batch, length = ids.shape
    cache, logits = prefill(self.model, params, ids, first, length + tokens)
    real = jnp.arange(length)[None, :] >= first[:, None]
    seen = jnp.zeros(logits.shape, bool)
    rows = jnp.arange(batch)[:, None]
    seen = seen.at[rows, jnp.where(real, ids, logits.shape[1])].set(True, mode='drop')
    return Progress(cache, logits, seen, jnp.zeros(batch, bool), jnp.int32(0))

  def _decode(self, params, state, keys, room, stopped, n, chunk):
    """n (at most `chunk`) tokens of every row -> (state, ids [B, chunk], -1 where a row is done;
    which are done)."""
    batch, variables = len(keys), {'params': params}
    remember, ends = self.how.penalty != 1, jnp.array(self.ends, jnp.int32)
    made = jnp.full((batch, chunk), -1, jnp.int32)
    state = state.replace(done=state.done | stopped | (state.count >= room))

    def step(carry):
      i, state, made = carry
      now = jax.vmap(jax.random.fold_in, (0, None))(keys, state.count)
      ids = draw(state.logits, state.seen, now, self.how)
      made = made.at[:, i].set(jnp.where(state.done, -1, ids))
      done = state.done | jnp.isin(ids, ends) | (state.count + 1 >= room)
      seen = state.seen.at[jnp.arange(batch), ids].set(True) if remember else state.seen
      tokens = constrain(ids[:, None], 'batch', None)
      hidden, cache = self.model.apply(variables, tokens, state.cache, method='extend')
      logits = self.model.apply(variables, hidden, method='logits')[:, 0]
      return i + 1, Progress(cache, logits, seen, done, state.count + 1), made

    more = lambda carry: (carry[0] < n) & ~carry[1].done.all()
    _, state, made = jax.lax.while_loop(more, step, (jnp.int32(0), state, made))
    return state, made, state.done


def _key(seed: int) -> jax.Array:
  return jax.random.fold_in(jax.random.PRNGKey(seed), streams.GENERATE)
