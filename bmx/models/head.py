"""The head of decoders over tokens: from hidden states to logits.

B batch, T length, D width, V vocabulary.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.ops.masks import MASK_VALUE
from bmx.parallel import constrain


class TextHead(nn.Module):
  """A decoder over V tokens, of which `vocab_pad` more rows are stored.

  A subclass has the fields `vocab_size`, `vocab_pad` and `tied`, and sets `embed`, the table of the
  tokens, and `head` where it is not `tied`.
  """

  def table(self: Any) -> jax.Array:
    """Returns the head's table [V + pad, D], as it is stored."""
    return (self.embed if self.tied else self.head).stored_weight()

  def scores(self: Any, hidden: jax.Array) -> jax.Array:
    """Maps hidden states [B, T, D] to [B, T, V + pad], those of the padding among them."""
    return (self.embed if self.tied else self.head).attend(hidden)

  def logits(self: Any, hidden: jax.Array) -> jax.Array:
    """Maps hidden states [B, T, D] to logits [B, T, V + pad]; the padding has no probability."""
    y = constrain(self.scores(hidden), 'batch', 'length', 'vocab')
    if not self.vocab_pad:
      return y
    real = jnp.arange(y.shape[-1]) < self.vocab_size
    return jnp.where(real[None, None], y, MASK_VALUE)


class LanguageHead(TextHead):
  """A decoder that reads tokens alone; a subclass has `hidden_states` of them."""

  def hidden_and_table(
    self: Any,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, jax.Array]:
    """Returns hidden states [B, T, D] and the head's table [V + pad, D], as it is stored.

    For losses that never hold all logits.
    """
    return self.hidden_states(tokens, positions, segment_ids, train=train), self.table()

  def __call__(
    self: Any,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Maps tokens int [B, T] to logits [B, T, V + pad]."""
    return self.logits(self.hidden_states(tokens, positions, segment_ids, train=train))
