"""Masks of attention: which keys a query attends to, and the score of the others."""

from typing import NamedTuple

import jax

MASK_VALUE = -1e30  # a score that exp() sends to 0; finite, so that a row of them has no NaN


class AttentionMask(NamedTuple):
  """The mask arguments of `ops.attention.attend`.

  Attributes:
    causal: a query attends to keys at its own index and before.
    window: with `causal`, the number of nearest keys, its own included; 0 is all.
    segment_ids: int [B, T] or None; a query attends to keys of its own segment only.
    positions: int [B, T] or None; read by ring attention alone.
    key_ids: int [B, S] or None, the segments of keys of another sequence; None: `segment_ids`.
  """

  causal: bool
  window: int
  segment_ids: jax.Array | None
  positions: jax.Array | None
  key_ids: jax.Array | None = None

  @property
  def pair(self) -> tuple[jax.Array, jax.Array] | None:
    """Segments of (queries, keys), int [B, T] and [B, S]; None without."""
    if self.segment_ids is None:
      return None
    return self.segment_ids, self.segment_ids if self.key_ids is None else self.key_ids
