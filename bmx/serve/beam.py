"""Beam search: the likeliest whole text, as far as a few of the best beginnings lead to it."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from bmx.core.errors import InputError
from bmx.core.types import Variables
from bmx.ops.cache import Cache
from bmx.ops.ring import NEVER
from bmx.parallel import Layout, jit


class Beams(struct.PyTreeNode):
  """K beams of every row, best first."""

  cache: Cache  # of B·K rows
  ids: jax.Array  # int32 [B, K, N], -1 where nothing is yet
  score: jax.Array  # float32 [B, K]: sum of log-probabilities
  length: jax.Array  # int32 [B, K]: tokens, the end included
  done: jax.Array  # bool [B, K]
  last: jax.Array  # float32 [B, K, V]: log-probabilities of the next token


def beam_search(
  model: Any,
  params: Variables,
  layout: Layout,
  prompts: Sequence[Sequence[int]],
  tokens: int,
  beams: int,
  end: int = -1,
  power: float = 1.0,
) -> tuple[list[list[int]], np.ndarray]:
  """-> (new ids of each prompt without the end, log-probability / length^power of each, [B]).

  A beam that has ended keeps its place among the `beams` best by its log-probability; at the end
  the best by log-probability / length^power (Wu et al. 2016, in its plain form) is taken.

  Args:
    model, params: see `generate.decoder`. prompts: of one length, since beams are not padded.

  Raises InputError: no beam, no prompt, prompts of unequal length, a prompt that does not fit.
  """
  lengths = {len(p) for p in prompts}
  if beams < 1 or beams > model.vocab:
    raise InputError(f'generate.beams={beams}: expected 1 to the vocabulary of {model.vocab}')
  if len(lengths) != 1 or not min(lengths):
    raise InputError(f'beam search takes prompts of one length, at least 1; given {lengths}')
  if min(lengths) + tokens > model.length:
    raise InputError(
      f'a prompt of {min(lengths)} tokens and {tokens} more do not fit the {model.length} '
      'positions of the model: shorten it, or set --config.generate.tokens'
    )
  program = jit(lambda p, ids: _search(model, p, ids, tokens, beams, end, power), layout)
  ids, length, score = jax.device_get(program(params, np.array(prompts, np.int32)))
  made = [
    row[: n - (n > 0 and row[n - 1] == end)].tolist() for row, n in zip(ids, length, strict=True)
  ]
  return made, score


def _search(model, params, ids, tokens, beams, end, power):
  batch = len(ids)
  variables = {'params': params}
  cache = model.empty_cache(batch, ids.shape[1] + tokens, jnp.zeros(batch, jnp.int32))
  hidden, cache = model.apply(variables, ids, cache, method='extend')
  log = _log_probabilities(model, variables, hidden)
  spread = lambda x: jnp.repeat(x[:, None], beams, axis=1)
  state = Beams(
    cache.rows(jnp.repeat(jnp.arange(batch), beams)),
    jnp.full((batch, beams, tokens), -1, jnp.int32),
    # All beams are one beginning: the first step chooses among its tokens, not among copies.
    jnp.full((batch, beams), NEVER).at[:, 0].set(0.0),
    jnp.zeros((batch, beams), jnp.int32),
    jnp.zeros((batch, beams), bool),
    spread(log),
  )

  def step(carry):
    i, state = carry
    return i + 1, _step(model, variables, state, i, end)

  more = lambda carry: (carry[0] < tokens) & ~carry[1].done.all()
  _, state = jax.lax.while_loop(more, step, (jnp.int32(0), state))
  score = state.score / jnp.maximum(state.length, 1).astype(jnp.float32) ** power
  best = score.argmax(1)
  pick = lambda x: jnp.take_along_axis(x, best.reshape(-1, *[1] * (x.ndim - 1)), axis=1)[:, 0]
  return pick(state.ids), pick(state.length), pick(score)


def _step(model, variables, state, i, end):
  batch, beams, vocab = state.last.shape
  # An ended beam goes on in one way only, and costs nothing.
  stay = jnp.full(vocab, NEVER).at[0].set(0.0)
  gain = jnp.where(state.done[..., None], stay[None, None], state.last)
  total = (state.score[..., None] + gain).reshape(batch, -1)
  score, flat = jax.lax.top_k(total, beams)
  parent, token = jnp.divmod(flat, vocab)
  take = lambda x: jnp.take_along_axis(x, parent.reshape(*parent.shape, *[1] * (x.ndim - 2)), 1)
  was = take(state.done)
  token = jnp.where(was, -1, token).astype(jnp.int32)
  rows = (jnp.arange(batch)[:, None] * beams + parent).reshape(-1)
  tokens = jnp.maximum(token, 0).reshape(-1, 1)
  cache = state.cache.rows(rows)
  hidden, cache = model.apply(variables, tokens, cache, method='extend')
  log = _log_probabilities(model, variables, hidden).reshape(batch, beams, vocab)
  ids = take(state.ids).at[:, :, i].set(token)
  length = take(state.length) + ~was
  return Beams(cache, ids, score, length, was | (token == end), log)


def _log_probabilities(model, variables, hidden):
  logits = model.apply(variables, hidden[:, -1:], method='logits')[:, 0]
  return jax.nn.log_softmax(logits.astype(jnp.float32))
