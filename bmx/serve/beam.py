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
from bmx.serve.decode import Inputs, next_logits, pad, prefill, room


class Beams(struct.PyTreeNode):
  """K beams of every row, best first.

  Attributes:
    cache: the decoder's own, of B·K rows.
    ids: int32 [B, K, N], -1 where no token is yet.
    score: float32 [B, K], sum of log-probabilities.
    length: int32 [B, K], tokens, the end included.
    done: bool [B, K].
    last: float32 [B, K, V], log-probabilities of the next token.
  """

  cache: Any
  ids: jax.Array
  score: jax.Array
  length: jax.Array
  done: jax.Array
  last: jax.Array


class BeamSearch:
  """Compiled beam search with one model.

  An ended beam keeps its rank among the `num_beams` best by its log-probability; the result is the
  beam with the best log-probability / length^length_penalty (Wu et al. 2016, without its constant).

  Args:
    model: a decoder whose cache is an `ops.cache.RowCache`, see `decode.decoder`.
    params: its weights.
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
    """Searches the best text of each row; all rows have as many tokens as the longest has room for.

    Args:
      inputs: see `decode.pad`.
      max_new_tokens: per row.

    Returns:
      (new ids of each row without the end, log-probability / length^length_penalty float32 [B]).

    Raises:
      InputError: see `decode.pad`, or the model's cache cannot reorder its rows.
    """
    padded = pad(inputs, self.model, self.layout, self.begin)
    n = int(room(self.model, padded.prompt_lengths, max_new_tokens).min())
    name = padded.signature, n
    if name not in self.programs:
      search = lambda p, arrays: self._search(p, arrays, n)
      self.programs[name] = jit(search, self.layout, out_shardings=self.layout.sharding())
    result = jax.device_get(self.programs[name](self.params, padded.arrays))
    new, length, score = (x[: padded.rows] for x in result)
    texts = [row[:count].tolist() for row, count in zip(new, length, strict=True)]
    return [ids[:-1] if ids and ids[-1] in self.ends else ids for ids in texts], score

  def _search(self, params, arrays, n):
    batch, length = arrays['tokens'].shape
    beams = self.num_beams
    cache, logits = prefill(self.model, params, arrays, length + n)
    if not isinstance(cache, RowCache):
      raise InputError(
        f'{type(cache).__name__}: expected a cache with a method rows(order) for beam search; set '
        'generate.num_beams=1'
      )
    log = jax.nn.log_softmax(logits.astype(jnp.float32))
    state = Beams(
      cache.rows(jnp.repeat(jnp.arange(batch), beams)),
      jnp.full((batch, beams, n), -1, jnp.int32),
      # All beams are one prefix: the first step chooses among its tokens, not among copies.
      jnp.full((batch, beams), MASK_VALUE).at[:, 0].set(0.0),
      jnp.zeros((batch, beams), jnp.int32),
      jnp.zeros((batch, beams), bool),
      jnp.repeat(log[:, None], beams, axis=1),
    )
    step = lambda carry: (carry[0] + 1, self._step(params, carry[1], carry[0]))
    more = lambda carry: (carry[0] < n) & ~carry[1].done.all()
    _, state = jax.lax.while_loop(more, step, (jnp.int32(0), state))
    length = jnp.maximum(state.length, 1).astype(jnp.float32)
    score = state.score / length**self.length_penalty
    best = score.argmax(1)
    pick = lambda x: jnp.take_along_axis(x, best.reshape(-1, *[1] * (x.ndim - 1)), axis=1)[:, 0]
    return pick(state.ids), pick(state.length), pick(score)

  def _step(self, params, state, i):
    batch, beams, vocab_size = state.last.shape
    # An ended beam has one continuation, at no cost.
    ended = jnp.full(vocab_size, MASK_VALUE).at[0].set(0.0)
    gain = jnp.where(state.done[..., None], ended[None, None], state.last)
    total = (state.score[..., None] + gain).reshape(batch, -1)
    score, flat = jax.lax.top_k(total, beams)
    parent, token = jnp.divmod(flat, vocab_size)
    take = lambda x: jnp.take_along_axis(x, parent.reshape(*parent.shape, *[1] * (x.ndim - 2)), 1)
    was_done = take(state.done)
    token = jnp.where(was_done, -1, token).astype(jnp.int32)
    cache = state.cache.rows((jnp.arange(batch)[:, None] * beams + parent).reshape(-1))
    tokens = jnp.maximum(token, 0).reshape(-1, 1)
    hidden, cache = self.model.apply({'params': params}, tokens, cache, method='extend')
    logits = next_logits(self.model, params, hidden).astype(jnp.float32)
    log = jax.nn.log_softmax(logits).reshape(batch, beams, vocab_size)
    ids = take(state.ids).at[:, :, i].set(token)
    done = was_done | jnp.isin(token, jnp.array(self.ends, jnp.int32))
    return Beams(cache, ids, score, take(state.length) + ~was_done, done, log)
