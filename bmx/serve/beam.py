"""Beam search: keeps the most likely prefixes at each step."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from bmx.core.errors import InputError
from bmx.core.types import Variables, facts_of
from bmx.ops.cache import RowCache
from bmx.ops.masks import MASK_VALUE
from bmx.parallel import Layout, jit
from bmx.serve.decode import Inputs, next_logits, pad, prefill, room, steps_for


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


class BeamSearch:
  """Compiled beam search with one model, as Hugging Face's generate with its default options.

  Ended texts do not take the place of live ones: each step looks at the `num_beams` · (1 + number
  of ends) most likely continuations, at least twice `num_beams`; those among the first `num_beams`
  that end are kept apart by log-probability / length^length_penalty (Wu et al. 2016, without its
  constant), and the best `num_beams` of the others continue. A row is finished once it has
  `num_beams` ended texts and its best live one scores no better at its present length.

  Args:
    model: a decoder whose cache is an `ops.cache.RowCache`, see `decode.decoder`.
    params: its variables, see `decode.decoder`.
    layout: mesh and rules.
    num_beams: K.
    ends: token ids that end a text.
    length_penalty: exponent of the length; 0 compares log-probabilities.
    begin: the prompt of inputs without token prompts, a begin-of-sequence id for instance.

  Raises:
    InputError: num_beams is below 1 or above the vocabulary size.
  """

  def __init__(
    self,
    model: Any,
    params: Variables,
    layout: Layout,
    num_beams: int,
    ends: Sequence[int] = (),
    length_penalty: float = 1.0,
    begin: Sequence[int] = (),
  ):
    vocab_size = facts_of(model).vocab_size or num_beams
    if num_beams < 1 or num_beams > vocab_size:
      raise InputError(
        f'generate.num_beams={num_beams}: expected 1 <= num_beams <= vocab_size={vocab_size}'
      )
    self.model, self.params, self.layout = model, params, layout
    self.num_beams, self.ends, self.length_penalty = num_beams, tuple(ends), length_penalty
    self.begin = tuple(begin)
    self.programs: dict[Any, Any] = {}

  def __call__(self, inputs: Inputs, max_new_tokens: int) -> tuple[list[list[int]], np.ndarray]:
    """Searches the best text of each row; a row ends with the last of the model's positions.

    Args:
      inputs: see `decode.pad`.
      max_new_tokens: per row.

    Returns:
      (new ids of each row without the end, log-probability / length^length_penalty float32 [B]).

    Raises:
      InputError: see `decode.pad`, or the model's cache cannot reorder its rows.
    """
    padded = pad(inputs, self.model, self.layout, self.begin)
    free = room(self.model, padded.prompt_lengths, max_new_tokens)
    free[padded.rows :] = 0
    n = steps_for(free, max_new_tokens)
    name = padded.signature, n
    if name not in self.programs:
      search = lambda p, arrays, free: self._search(p, arrays, free, n)
      self.programs[name] = jit(search, self.layout, out_shardings=self.layout.sharding())
    result = jax.device_get(self.programs[name](self.params, padded.arrays, free))
    new, length, score = (x[: padded.rows] for x in result)
    texts = [row[:count].tolist() for row, count in zip(new, length, strict=True)]
    return [ids[:-1] if ids and ids[-1] in self.ends else ids for ids in texts], score

  def _search(self, params, arrays, free, n):
    batch, length = arrays['tokens'].shape
    beams = self.num_beams
    cache, logits = prefill(self.model, params, arrays, length + n)
    if not isinstance(cache, RowCache):
      raise InputError(
        f'{type(cache).__name__}: expected a cache with a method rows(order) for beam search; set '
        'generate.num_beams=1'
      )
    log = jax.nn.log_softmax(logits.astype(jnp.float32))
    none = jnp.full((batch, beams), MASK_VALUE)
    empty = jnp.full((batch, beams, n), -1, jnp.int32)
    state = Beams(
      cache=cache.rows(jnp.repeat(jnp.arange(batch), beams)),
      ids=empty,
      # All beams are one prefix: the first step chooses among its tokens, not among copies.
      score=none.at[:, 0].set(0.0),
      last=jnp.repeat(log[:, None], beams, axis=1),
      ended=empty,
      ended_score=none,
      ended_length=jnp.zeros((batch, beams), jnp.int32),
      open=free > 0,
    )
    step = lambda carry: (carry[0] + 1, self._step(params, carry[1], carry[0], free))
    more = lambda carry: (carry[0] < n) & carry[1].open.any()
    _, state = jax.lax.while_loop(more, step, (jnp.int32(0), state))
    return state.ended[:, 0], state.ended_length[:, 0], state.ended_score[:, 0]

  def _step(self, params, state, i, free):
    """Adds token i to every live text; that of number `free` int32 [B] ends the texts of a row."""
    batch, beams, vocab_size = state.last.shape
    candidates = min(max(2, 1 + len(self.ends)), vocab_size) * beams
    total = (state.score[..., None] + state.last).reshape(batch, -1)
    score, flat = jax.lax.top_k(total, candidates)
    parent, token = jnp.divmod(flat, vocab_size)
    ids = _take(state.ids, parent).at[:, :, i].set(token)
    last = i + 1 >= free
    ends = jnp.isin(token, jnp.array(self.ends, jnp.int32)) | last[:, None]
    live, chosen = jax.lax.top_k(jnp.where(ends, MASK_VALUE, score), beams)
    parent, token = _take(parent, chosen), _take(token, chosen)
    cache = state.cache.rows((jnp.arange(batch)[:, None] * beams + parent).reshape(-1))
    hidden, cache = self.model.apply(params, token.reshape(-1, 1), cache, method='extend')
    logits = next_logits(self.model, params, hidden).astype(jnp.float32)
    log = jax.nn.log_softmax(logits).reshape(batch, beams, vocab_size)
    ranked = ends & (jnp.arange(candidates) < beams)[None] & state.open[:, None]
    state = self._with_ended(state, ids, score, ranked, i + 1)
    best = live[:, 0] / (i + 1.0) ** self.length_penalty
    still = state.open & ~last & (best > state.ended_score.min(1))
    return state.replace(cache=cache, ids=_take(ids, chosen), score=live, last=log, open=still)

  def _with_ended(self, state, ids, score, ranked, length):
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
