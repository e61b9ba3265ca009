"""Losses of pairs: each row against all others of the batch."""

import jax
import jax.numpy as jnp

from bmx.ops.losses import cross_entropy
from bmx.ops.masks import MASK_VALUE


def softmax_pairs(logits: jax.Array, hidden: jax.Array) -> jax.Array:
  """Computes -log softmax(logits[i])[i], in nats: float [B, B], bool [B, B] -> float32 [B].

  Args:
    logits: of row i and candidate j.
    hidden: candidates that do not count; the diagonal counts always.

  Source: van den Oord et al. 2018, equation 4.
  """
  own = jnp.eye(len(logits), dtype=bool)
  logits = jnp.where(hidden & ~own, MASK_VALUE, logits.astype(jnp.float32))
  return cross_entropy(logits, jnp.arange(len(logits)))


def sigmoid_pairs(logits: jax.Array, hidden: jax.Array) -> jax.Array:
  """Computes -Σ_j log sigmoid(±logits[i, j]), + on the diagonal: [B, B], [B, B] -> float32 [B].

  Args:
    logits: of row i and candidate j.
    hidden: candidates that do not count; the diagonal counts always.

  Source: Zhai et al. 2023, equation 1.
  """
  own = jnp.eye(len(logits), dtype=bool)
  logits = logits.astype(jnp.float32)
  loss = jax.nn.softplus(jnp.where(own, -logits, logits))
  return jnp.where(hidden & ~own, 0.0, loss).sum(-1)
