"""Speculative decoding, greedy and exact (Leviathan et al. 2023; Chen et al. 2023).

A small model, the draft, proposes k tokens; one pass of the model over them verifies all. Tokens
that the model would have chosen itself are kept, so that each pass adds one token at least and
k + 1 at most, and the text is the one without a draft.

B rows, k proposed tokens, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import Variables, facts_of
from bmx.parallel import Layout, constrain
from bmx.serve.adapters import adapting
from bmx.serve.decode import SlotDecoder, check_decoder, next_logits
from bmx.serve.programs import Programs
from bmx.serve.rows import Request
from bmx.serve.state import Chunk, EngineState, Rows, slots_of

PASSES = 4  # most passes of the model in one call


class Draft(NamedTuple):
  """A small model that proposes tokens.

  Attributes:
    model: a decoder with `slot_cache` in its decoding form, of the vocabulary of the other model.
    variables: of it.
    tokens: k, proposed at once.
  """

  model: Any
  variables: Variables
  tokens: int = 4


class DraftedState(EngineState):
  """The arrays of an engine, and those of its draft.

  Attributes:
    draft: of the draft; its logits are of the prompt only.
  """

  draft: EngineState

  def parts(self) -> tuple[EngineState, EngineState]:
    """Returns the arrays of the model, and those of the draft."""
    return EngineState(self.cache, self.logits, self.seen), self.draft


def joined(own: EngineState, draft: EngineState) -> DraftedState:
  """Inverse of `DraftedState.parts`."""
  return DraftedState(own.cache, own.logits, own.seen, draft)


class SpeculativePrograms(Programs):
  """Programs of an engine with a draft: each prompt is read by both, decoding verifies proposals.

  Args:
    model: a decoder with `slot_cache`, in its decoding form.
    layout: mesh and rules.
    rows: B.
    shards: of the batch.
    ends: ids that end a row.
    draft: proposes tokens.
    context: tokens of a row.

  Raises:
    InputError: a draft that cannot generate this way, with another vocabulary or fewer positions.
  """

  def __init__(
    self, model: Any, layout: Layout, rows: int, shards: int, ends: Sequence[int], draft: Draft,
    context: int,
  ):  # fmt: skip
    super().__init__(model, layout, rows, shards, ends)
    check_decoder(draft.model, layout)
    if not isinstance(draft.model, SlotDecoder):
      raise InputError(f'generate.draft: {type(draft.model).__name__}: expected a decoder with '
                       '`slot_cache`, as bmx.models.gpt:GPT is')  # fmt: skip
    own, other = facts_of(model), facts_of(draft.model)
    if own.vocab_size != other.vocab_size:
      raise InputError(f'generate.draft: vocab_size={other.vocab_size}: expected {own.vocab_size}, '
                       'that of the model')  # fmt: skip
    if other.max_seq_len and other.max_seq_len < context:
      raise InputError(f'generate.draft: max_seq_len={other.max_seq_len}: expected at least '
                       f'{context}, the tokens of a text')  # fmt: skip
    if draft.tokens < 1:
      raise InputError(f'generate.draft_tokens={draft.tokens}: expected at least 1')
    self.draft, self.drafting = draft, Programs(draft.model, layout, rows, shards, ends)
    self.least = draft.tokens + 1
    self.most = PASSES * self.least

  def check(self, request: Request) -> None:
    """Raises InputError for a request that draws tokens: only greedy texts stay the same."""
    how = request.sampling
    if how.temperature:
      raise InputError(f'generate.temperature={how.temperature}: expected 0 with generate.draft')
    if how.repetition_penalty != 1:
      raise InputError(f'generate.repetition_penalty={how.repetition_penalty}: expected 1 with '
                       'generate.draft')  # fmt: skip

  @property
  def seconds(self) -> float:
    """Of compilation."""
    return self.compiling + self.drafting.compiling

  def calls(self, variables: Variables, chunks: Sequence[int], sizes: Sequence[int]) -> list[Any]:
    """Returns (function, arguments) that compile all programs."""
    found = self.reads(variables, chunks, sizes)
    found += self.drafting.reads(self.draft.variables, chunks, sizes)
    both = lambda size: joined(self.like(variables, size),
                               self.drafting.like(self.draft.variables, size))  # fmt: skip
    return [*found, *((self._decode, size, variables, both(size)) for size in sizes)]

  def empty(self, variables: Variables, size: int) -> DraftedState:
    """Returns the state without tokens."""
    return joined(super().empty(variables, size), self.drafting.empty(self.draft.variables, size))

  def prefill(self, variables: Variables, state: Any, chunk: Chunk) -> DraftedState:
    """Reads a chunk with both models; the state is donated."""
    own, other = state.parts()
    other = self.drafting.prefill(self.draft.variables, other, chunk)
    return joined(super().prefill(variables, own, chunk), other)

  def decode(
    self, variables: Variables, state: Any, rows: Rows, n: int
  ) -> tuple[DraftedState, np.ndarray, np.ndarray]:
    """Generates at most n tokens in every active row, in as few passes as agree; see `decode`."""
    rows = rows._replace(left=np.minimum(rows.left, n))
    program = self._decode(slots_of(state), variables, state)
    passes = np.int32(min(n, PASSES))
    state, new, likely = program(variables, self.draft.variables, state, rows, passes)
    return state, *jax.device_get((new, likely))

  def copy(self, state: Any, sources: np.ndarray, rows: np.ndarray) -> DraftedState:
    """Copies the caches of one row in each shard to another; the state is donated."""
    own, other = state.parts()
    return joined(super().copy(own, sources, rows), self.drafting.copy(other, sources, rows))

  def resize(self, state: Any, size: int) -> DraftedState:
    """Returns the state with caches of other slots."""
    own, other = state.parts()
    return joined(super().resize(own, size), self.drafting.resize(other, size))

  def _decode(self, size: int, variables: Variables, state: EngineState) -> Any:
    ends, draft = jnp.array(self.ends, jnp.int32), self.draft
    fn = lambda v, dv, state, rows, passes: speculate(
      (self.model, v), (draft.model, dv), state, rows, ends, passes, draft.tokens
    )
    given = variables, draft.variables, state, Rows.idle(self.rows), np.int32(1)
    return self._program(('decode', size), fn, given, donated=(2,), others=2)


Model = tuple[Any, Variables]  # a decoder and its variables


def speculate(
  model: Model,
  draft: Model,
  state: DraftedState,
  rows: Rows,
  ends: jax.Array,
  passes: jax.Array,
  k: int,
) -> tuple[DraftedState, jax.Array, jax.Array]:
  """Generates the likeliest tokens of every active row in some passes of a model.

  Args:
    model: whose tokens they are.
    draft: proposes them.
    state: of the engine.
    rows: what each row does; `left` limits the tokens of this call.
    ends: int32 [E], ids that end a row.
    passes: int32 [], at most PASSES.
    k: proposed tokens of a pass.

  Returns:
    The state; ids int32 [B, PASSES · (k + 1)], -1 behind the tokens of a row; their
    log-probabilities float32 of the same shape, under the model.
  """
  batch, limit, steps = len(rows.active), PASSES * (k + 1), jnp.arange(k + 1)[None, :]
  every = jnp.arange(batch)[:, None]
  own, other = state.parts()
  held = own.cache.at, other.cache.at

  def one(carry):
    i, active, count, own, other, new, likely = carry
    at = jnp.asarray(rows.at) + count
    real = jnp.where(active, jnp.minimum(rows.left - count, k + 1), 0)
    first = own.logits.argmax(-1).astype(jnp.int32)
    tokens, cache = propose(draft, first, other.cache.of_all(at), real, k)
    other = other.replace(cache=cache)
    cache = own.cache.of_all(at).replace(count=real)
    with adapting(rows.adapter):
      hidden, cache = model[0].apply(
        model[1], constrain(tokens, 'batch', None), cache, method='extend'
      )
      logits = model[0].apply(model[1], hidden, method='logits')
    raw = jnp.concatenate([own.logits[:, None], logits[:, :-1]], 1).astype(jnp.float32)
    is_end = jnp.isin(tokens, ends)
    agree = (raw.argmax(-1) == tokens) & (steps < real[:, None])
    before = jnp.cumsum(is_end, axis=1) - is_end  # ends before a token
    kept = (jnp.cumsum(~agree, axis=1) == 0) & (before == 0)
    size = kept.sum(1)
    where = jnp.where(kept, count[:, None] + steps, limit)
    chosen = jnp.take_along_axis(raw, tokens[:, :, None], axis=2)[:, :, 0]
    new = new.at[every, where].set(tokens, mode='drop')
    likely = likely.at[every, where].set(chosen - jax.nn.logsumexp(raw, axis=-1), mode='drop')
    last = jnp.maximum(size - 1, 0)[:, None, None]
    behind = jnp.take_along_axis(logits, last, axis=1)[:, 0].astype(own.logits.dtype)
    behind = jnp.where(active[:, None], behind, own.logits)
    count += size
    active &= (count < rows.left) & ~(kept & is_end).any(1)
    return i + 1, active, count, own.replace(cache=cache, logits=behind), other, new, likely

  more = lambda carry: (carry[0] < passes) & carry[1].any()
  new, likely = jnp.full((batch, limit), -1, jnp.int32), jnp.zeros((batch, limit), jnp.float32)
  none, start = jnp.zeros(batch, jnp.int32), jnp.asarray(rows.at)
  own, other = (x.replace(cache=x.cache.of_all(start)) for x in (own, other))
  begun = jnp.int32(0), jnp.asarray(rows.active), none, own, other, new, likely
  _, _, _, own, other, new, likely = jax.lax.while_loop(more, one, begun)
  own, other = (
    x.replace(cache=x.cache.of_all(at)) for x, at in zip((own, other), held, strict=True)
  )
  return joined(own, other), new, likely


def propose(
  draft: Model, first: jax.Array, cache: Any, real: jax.Array, k: int
) -> tuple[jax.Array, Any]:
  """Returns `first` and the k tokens behind it that a draft finds likeliest, and its cache.

  Args:
    draft: the small model.
    first: int32 [B].
    cache: of the draft, without `first`.
    real: int32 [B], tokens of each row that the cache keeps; 0 for a row that generates nothing.
    k: number of proposed tokens.

  Returns:
    Tokens int32 [B, k + 1]; the cache, which holds all of them.
  """

  def one(i, carry):
    tokens, cache = carry
    token = constrain(jax.lax.dynamic_slice_in_dim(tokens, i, 1, axis=1), 'batch', None)
    cache = cache.replace(count=(i < real).astype(jnp.int32))
    hidden, cache = draft[0].apply(draft[1], token, cache, method='extend')
    best = next_logits(*draft, hidden).argmax(-1).astype(jnp.int32)
    return jax.lax.dynamic_update_slice_in_dim(tokens, best[:, None], i + 1, axis=1), cache

  tokens = jnp.zeros((len(first), k + 2), jnp.int32).at[:, 0].set(first)
  tokens, cache = jax.lax.fori_loop(0, k + 1, one, (tokens, cache))
  return tokens[:, : k + 1], cache
