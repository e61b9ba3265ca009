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
from bmx.ops.masks import MASK_VALUE
from bmx.parallel import Layout, jit
from bmx.serve.generate import padded, prefill


class Beams(struct.PyTreeNode):
  """K beams of every row, best first."""

  cache: Cache  # of B·K rows
  ids: jax.Array  # int32 [B, K, N], -1 where nothing is yet
  score: jax.Array  # float32 [B, K]: sum of log-probabilities
  length: jax.Array  # int32 [B, K]: tokens, the end included
  done: jax.Array  # bool [B, K]
  last: jax.Array  # float32 [B, K, V]: log-probabilities of the next token


class BeamSearch:
  """Compiled search with one model.

  A beam that has ended keeps its place among the `beams` best by its log-probability; at the end
  the best by log-probability / length^power (Wu et al. 2016, in its plain form) is taken.

  Args:
    model, params: see `generate.decoder`.
    ends: ids that end a text.

  Raises InputError: no beam, or more than there are tokens.
  """

  def __init__(
    self,
    model: Any,
    params: Variables,
    layout: Layout,
    beams: int,
    ends: Sequence[int] = (),
    power: float = 1.0,
  ):
    if beams < 1 or beams > model.vocab_size:
      raise InputError(
        f'generate.beams={beams}: expected 1 to the vocabulary of {model.vocab_size}'
      )
    self.model, self.params, self.layout = model, params, layout
    self.beams, self.ends, self.power = beams, tuple(ends), power
    self.programs: dict[Any, Any] = {}

  def __call__(
    self, prompts: Sequence[Sequence[int]], tokens: int
  ) -> tuple[list[list[int]], np.ndarray]:
    """-> (new ids of each prompt without the end, log-probability / length^power of each, [B]).

    All rows make as many tokens as the longest has room for.

    Raises InputError: see `generate.padded`.
    """
    ids, first = padded(prompts, self.model, self.layout)
    tokens = min(tokens, self.model.max_seq_len - max(map(len, prompts)))
    place = ids.shape, tokens
    if place not in self.programs:
      search = lambda p, ids, first: self._search(p, ids, first, tokens)
      self.programs[place] = jit(search, self.layout, out_shardings=self.layout.sharding())
    found = jax.device_get(self.programs[place](self.params, ids, first))
    made, length, score = (x[: len(prompts)] for x in found)
    kept = [row[:n].tolist() for row, n in zip(made, length, strict=True)]
    return [row[:-1] if row and row[-1] in self.ends else row for row in kept], score

  def _search(self, params, ids, first, tokens):
    batch, beams = len(ids), self.beams
    cache, logits = prefill(self.model, params, ids, first, ids.shape[1] + tokens)
    log = jax.nn.log_softmax(logits.astype(jnp.float32))
    state = Beams(
      cache.rows(jnp.repeat(jnp.arange(batch), beams)),
      jnp.full((batch, beams, tokens), -1, jnp.int32),
      # All beams are one beginning: the first step chooses among its tokens, not among copies.
      jnp.full((batch, beams), MASK_VALUE).at[:, 0].set(0.0),
      jnp.zeros((batch, beams), jnp.int32),
      jnp.zeros((batch, beams), bool),
      jnp.repeat(log[:, None], beams, axis=1),
    )
    step = lambda carry: (carry[0] + 1, self._step(params, carry[1], carry[0]))
    more = lambda carry: (carry[0] < tokens) & ~carry[1].done.all()
    _, state = jax.lax.while_loop(more, step, (jnp.int32(0), state))
    score = state.score / jnp.maximum(state.length, 1).astype(jnp.float32) ** self.power
    best = score.argmax(1)
    pick = lambda x: jnp.take_along_axis(x, best.reshape(-1, *[1] * (x.ndim - 1)), axis=1)[:, 0]
    return pick(state.ids), pick(state.length), pick(score)

  def _step(self, params, state, i):
    batch, beams, vocab = state.last.shape
    # An ended beam goes on in one way only, and costs nothing.
    stay = jnp.full(vocab, MASK_VALUE).at[0].set(0.0)
    gain = jnp.where(state.done[..., None], stay[None, None], state.last)
    total = (state.score[..., None] + gain).reshape(batch, -1)
    score, flat = jax.lax.top_k(total, beams)
    parent, token = jnp.divmod(flat, vocab)
    take = lambda x: jnp.take_along_axis(x, parent.reshape(*parent.shape, *[1] * (x.ndim - 2)), 1)
    was = take(state.done)
    token = jnp.where(was, -1, token).astype(jnp.int32)
    cache = state.cache.rows((jnp.arange(batch)[:, None] * beams + parent).reshape(-1))
    variables, tokens = {'params': params}, jnp.maximum(token, 0).reshape(-1, 1)
    hidden, cache = self.model.apply(variables, tokens, cache, method='extend')
    logits = self.model.apply(variables, hidden, method='logits')[:, 0].astype(jnp.float32)
    log = jax.nn.log_softmax(logits).reshape(batch, beams, vocab)
    ids = take(state.ids).at[:, :, i].set(token)
    done = was | jnp.isin(token, jnp.array(self.ends, jnp.int32))
    return Beams(cache, ids, score, take(state.length) + ~was, done, log)
