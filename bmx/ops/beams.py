"""Beam search: keeps the most likely prefixes at each step."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from bmx.core.errors import InputError
from bmx.ops.cache import RowCache
from bmx.ops.masks import MASK_VALUE


class Beams(struct.PyTreeNode):
  """K live and K ended texts of every row, best first.

  Attributes:
    cache: the decoder's own, of B·K rows.
    ids: int32 [B, K, N], live texts; -1 where no token is yet.
    score: float32 [B, K], their sums of log-probabilities.
    last: float32 [B, K, V], log-probabilities of their next token.
    ended: int32 [B, K, N], ended texts.
    ended_score: float32 [B, K], log-probability / length^length_penalty; MASK_VALUE: no text yet.
    ended_length: int32 [B, K], tokens, the end included.
    open: bool [B], a live text may still score better than the ended ones.
  """

  cache: Any
  ids: jax.Array
  score: jax.Array
  last: jax.Array
  ended: jax.Array
  ended_score: jax.Array
  ended_length: jax.Array
  open: jax.Array


class Found(NamedTuple):
  """The best text of each row.

  Attributes:
    ids: int32 [B, N], -1 behind its last token, which may be an end.
    length: int32 [B], tokens, the end included.
    score: float32 [B], log-probability / length^length_penalty.
  """

  ids: jax.Array
  length: jax.Array
  score: jax.Array


def beam_search(
  cache: Any,
  logits: jax.Array,
  extend: Callable[[jax.Array, Any], tuple[jax.Array, Any]],
  *,
  num_beams: int,
  ends: Sequence[int],
  length_penalty: float,
  free: jax.Array,
  steps: int,
) -> Found:
  """Searches the most likely text of each row, as Hugging Face's generate by default.

  Ended texts do not take the place of live ones: each step looks at the K · (1 + number of ends)
  most likely continuations, at least 2 K; those among the first K that end are kept apart by
  log-probability / length^length_penalty (Wu et al. 2016, without its constant), and the best K of
  the others continue. A row is finished once it has K ended texts and its best live one scores no
  better at its present length. What a row gets does not depend on the rows beside it.

  Args:
    cache: a `RowCache` of B rows that has read the prompts.
    logits: [B, V], of the next token.
    extend: (tokens int [B·K, 1], cache) -> (logits of the next token [B·K, V], the cache).
    num_beams: K.
    ends: token ids that end a text.
    length_penalty: exponent of the length; 0 compares log-probabilities.
    free: int [B], tokens that a row may have; the last of them ends its texts.
    steps: N, at least the largest of `free`.

  Raises:
    InputError: the cache cannot reorder its rows.
  """
  if not isinstance(cache, RowCache):
    raise InputError(
      f'{type(cache).__name__}: expected a cache with a method rows(order) for beam search; set '
      'generate.num_beams=1'
    )
  search = _Search(extend, num_beams, tuple(ends), length_penalty, free)
  batch = len(logits)
  none = jnp.full((batch, num_beams), MASK_VALUE)
  empty = jnp.full((batch, num_beams, steps), -1, jnp.int32)
  log = jax.nn.log_softmax(logits.astype(jnp.float32))
  state = Beams(
    cache=cache.rows(jnp.repeat(jnp.arange(batch), num_beams)),
    ids=empty,
    # All beams are one prefix: the first step chooses among its tokens, not among copies.
    score=none.at[:, 0].set(0.0),
    last=jnp.repeat(log[:, None], num_beams, axis=1),
    ended=empty,
    ended_score=none,
    ended_length=jnp.zeros((batch, num_beams), jnp.int32),
    open=free > 0,
  )
  step = lambda carry: (carry[0] + 1, search.step(carry[1], carry[0]))
  more = lambda carry: (carry[0] < steps) & carry[1].open.any()
  _, state = jax.lax.while_loop(more, step, (jnp.int32(0), state))
  length = state.ended_length[:, 0]
  ids = jnp.where(jnp.arange(steps)[None] < length[:, None], state.ended[:, 0], -1)
  return Found(ids, length, state.ended_score[:, 0])


class _Search(NamedTuple):
  """The arguments of `beam_search` that steps read."""

  extend: Callable[[jax.Array, Any], tuple[jax.Array, Any]]
  num_beams: int
  ends: tuple[int, ...]
  length_penalty: float
  free: jax.Array

  def step(self, state: Beams, i: jax.Array) -> Beams:
    """Adds token i to every live text; that of number `free` ends the texts of a row."""
    batch, beams, vocab_size = state.last.shape
    candidates = min(max(2, 1 + len(self.ends)), vocab_size) * beams
    total = (state.score[..., None] + state.last).reshape(batch, -1)
    score, flat = jax.lax.top_k(total, candidates)
    parent, token = jnp.divmod(flat, vocab_size)
    ids = _take(state.ids, parent).at[:, :, i].set(token)
    last = i + 1 >= self.free
    ends = jnp.isin(token, jnp.array(self.ends, jnp.int32)) | last[:, None]
    live, chosen = jax.lax.top_k(jnp.where(ends, MASK_VALUE, score), beams)
    parent, token = _take(parent, chosen), _take(token, chosen)
    cache = state.cache.rows((jnp.arange(batch)[:, None] * beams + parent).reshape(-1))
    logits, cache = self.extend(token.reshape(-1, 1), cache)
    log = jax.nn.log_softmax(logits.astype(jnp.float32)).reshape(batch, beams, vocab_size)
    ranked = ends & (jnp.arange(candidates) < beams)[None] & state.open[:, None]
    state = self._with_ended(state, ids, score, ranked, i + 1)
    best = live[:, 0] / (i + 1.0) ** self.length_penalty
    still = state.open & ~last & (best > state.ended_score.min(1))
    return state.replace(cache=cache, ids=_take(ids, chosen), score=live, last=log, open=still)

  def _with_ended(self, state: Beams, ids, score, ranked, length) -> Beams:
    """Merges the candidates that ended, `ranked` bool [B, C], into the ended texts."""
    score = jnp.where(ranked, score / (1.0 * length) ** self.length_penalty, MASK_VALUE)
    lengths = jnp.full(score.shape, length, jnp.int32)
    score = jnp.concatenate([state.ended_score, score], axis=1)
    best, kept = jax.lax.top_k(score, self.num_beams)
    return state.replace(
      ended=_take(jnp.concatenate([state.ended, ids], axis=1), kept),
      ended_score=best,
      ended_length=_take(jnp.concatenate([state.ended_length, lengths], axis=1), kept),
    )


def _take(values: jax.Array, order: jax.Array) -> jax.Array:
  """Takes the chosen items of each row: values [B, K, ...], order int [B, M] -> [B, M, ...]."""
  return jnp.take_along_axis(values, order.reshape(*order.shape, *[1] * (values.ndim - 2)), axis=1)
