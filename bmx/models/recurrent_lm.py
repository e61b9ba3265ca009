"""A recurrent language model, its carried state and its generation.

B batch, T length, H units of a cell, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from bmx.core.errors import InputError
from bmx.core.types import Facts
from bmx.models.head import LanguageHead
from bmx.models.layers import Dtype, Embed, check_sizes
from bmx.models.recurrent import Carries, RecurrentStack, check_axes
from bmx.parallel import named

CARRY = 'carry'  # collection of the state that training carries from batch to batch


class RecurrentCache(struct.PyTreeNode):
  """The carries of a text that is generated; see `ops.cache` for the slots of prompts.

  Attributes:
    carries: of every layer.
    at: int32 [], the slot of the next token.
    first: int32 [B], the slot of each row's first token.
  """

  carries: Carries
  at: jax.Array
  first: jax.Array

  def rows(self, order: jax.Array) -> 'RecurrentCache':
    """Returns the cache of the rows that int [B'] `order` names (see `ops.cache.RowCache`)."""
    take = lambda x: jnp.take(x, order, axis=0)
    return self.replace(carries=jax.tree.map(take, self.carries), first=take(self.first))


class RecurrentLM(LanguageHead):
  """A recurrent language model: tokens -> logits of the next token.

  With `carry` a training row continues from the state in which the last batch left it (truncated
  backpropagation through time; Williams & Peng 1990). The state is the collection 'carry', a row
  for each row of the batch: part of the TrainState, saved and sharded with it. Evaluation and
  generation start from zeros and leave it as it is.

  Attributes:
    vocab_size: tokens the model knows; `vocab_pad` more rows are stored, see `gpt.GPT`.
    width: of the embedding, and units of a cell.
    depth: number of layers.
    cell: 'lstm', 'gru' or 'rnn'.
    carry: whether the batches of training continue each other; the data must be contiguous, as
      `data.contiguous=True` makes the windows of `bmx.data.text.windows`.
    tied: the output head is the token table.
    dropout: share of units that training drops: of the embedding, between layers, before the head.
    vocab_pad: rows that the token table stores besides, so that axes divide it.
    dtype: of the computation.
  """

  vocab_size: int
  width: int = 256
  depth: int = 1
  cell: str = 'lstm'
  carry: bool = False
  tied: bool = False
  dropout: float = 0.0
  vocab_pad: int = 0
  dtype: Dtype = jnp.float32

  @property
  def facts(self) -> Facts:
    """Facts of the model. A sequence may have any length."""
    return Facts(
      vocab_size=self.vocab_size,
      padded_parameters=self.vocab_pad * self.width * (1 if self.tied else 2),
      chunked_head=True,
      carried=(CARRY,) if self.carry else (),
    )

  def setup(self):
    check_sizes(vocab_size=(self.vocab_size,), width=(self.width,), depth=(self.depth,))
    self.embed = Embed(self.vocab_size, self.width, pad=self.vocab_pad, dtype=self.dtype)
    if not self.tied:
      self.head = Embed(self.vocab_size, self.width, pad=self.vocab_pad, dtype=self.dtype)
    self.drop = nn.Dropout(self.dropout)
    self.stack = RecurrentStack(
      self.cell, self.width, self.depth, dropout=self.dropout, dtype=self.dtype
    )

  def hidden_states(
    self,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Returns the inputs of the head: tokens int [B, T] -> [B, T, H].

    Raises InputError for packed rows (`segment_ids`), whose texts would read each other, and for
    tokens in another order (`positions`).
    """
    if segment_ids is not None:
      raise InputError(
        'data: expected rows without segment_ids, as a recurrent model would read across the texts '
        'of a packed row; use bmx.data.text.windows:text'
      )
    check_axes(positions)
    state = self._carried(len(tokens)) if train or self.is_initializing() else None
    x = self.drop(self.embed(tokens), deterministic=not train)
    x, new = self.stack(x, state.value if state else None, train=train)
    if state and train:
      state.value = new
    return self.drop(x, deterministic=not train)

  @nn.compact
  def _carried(self, batch: int) -> Any:
    """Returns the variable of the carried state, [B, H] for each layer; None without `carry`."""
    if not self.carry:
      return None
    box = lambda x: named(lambda: x, ('batch', None))()
    state = self.variable(
      CARRY, 'layers', lambda: jax.tree.map(box, self.stack.zero_carries(batch))
    )
    rows = jax.tree.leaves(state.value)[0].shape[0]
    if rows != batch:
      raise InputError(
        f'the carried state has {rows} rows and a batch {batch}: expected one row for each; parts '
        'of a batch cannot be trained alone with task.model.carry=True'
      )
    return state

  def prefill(self, inputs: Mapping[str, Any], slots: int) -> tuple[jax.Array, RecurrentCache]:
    """Reads prompts into a new cache; the arguments are those of `gpt.GPT.prefill`.

    The cache has the same size whatever `slots` is.
    """
    tokens, first = inputs['tokens'], inputs['first'].astype(jnp.int32)
    cache = RecurrentCache(self.stack.zero_carries(len(tokens)), jnp.int32(0), first)
    hidden, cache = self.extend(tokens, cache)
    return hidden[:, -1:], cache

  def extend(self, tokens: jax.Array, cache: RecurrentCache) -> tuple[jax.Array, RecurrentCache]:
    """Reads the next tokens of every row, int [B, T] -> (hidden [B, T, H], the cache with them).

    Outputs at the padding before a prompt mean nothing.
    """
    length, lengths = tokens.shape[1], None
    padding = (cache.first - cache.at).clip(0, length)[:, None]
    place = jnp.arange(length)[None, :]
    if length > 1:  # a single token belongs to every row: a prompt has one at least
      lengths = length - padding[:, 0]
      tokens = jnp.take_along_axis(tokens, (place + padding) % length, axis=1)
    x, carries = self.stack(self.embed(tokens), cache.carries, lengths)
    if length > 1:
      x = jnp.take_along_axis(x, ((place - padding) % length)[..., None], axis=1)
    return x, cache.replace(carries=carries, at=cache.at + length)
