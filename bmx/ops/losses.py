"""Losses of single predictions; the weighted sum is the task's business."""

import math

import jax
import jax.numpy as jnp

from bmx.ops.ring import NEVER
from bmx.parallel import constrain


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
  """-log softmax(logits)[label], in nats and float32.

  logits [..., V], labels int [...] -> [...]. `smoothing` moves that share of the target to the
  uniform distribution (Szegedy et al. 2016, section 7).
  """
  logits = logits.astype(jnp.float32)
  log_normaliser = jax.nn.logsumexp(logits, axis=-1)
  picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
  loss = log_normaliser - picked
  if not smoothing:
    return loss
  return (1 - smoothing) * loss + smoothing * (log_normaliser - logits.mean(-1))


def chunked_cross_entropy(
  hidden: jax.Array, table: jax.Array, labels: jax.Array, vocab: int, chunks: int
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy of `hidden · tableᵀ` whose logits exist for one chunk of tokens at a time, in the
  forward and, computed again, in the backward pass.

  hidden [B, T, D], table [V + pad, D] of which `vocab` rows count, labels int [B, T] -> (loss
  float32 [B, T], whether the label is the likeliest, bool [B, T]). Tokens i, i + chunks, ... make a
  chunk, so that a sharded length stays where it is. The table's gradient is summed in float32.
  """
  batch, length, width = hidden.shape
  chunks = math.gcd(chunks, length)
  wide = table.astype(jnp.float32)
  ours = jnp.arange(table.shape[0]) < vocab

  @jax.checkpoint
  def one(wide, hidden, labels):
    hidden = constrain(hidden, 'batch', 'length', 'act_embed')
    logits = jnp.einsum(
      'btd,vd->btv', hidden, wide.astype(hidden.dtype), preferred_element_type=jnp.float32
    )
    logits = constrain(logits, 'batch', 'length', 'vocab')
    if vocab < table.shape[0]:
      logits = jnp.where(ours[None, None], logits, NEVER)
    return cross_entropy(logits, labels), logits.argmax(-1) == labels

  cut = lambda x: jnp.moveaxis(x.reshape(batch, -1, chunks, *x.shape[2:]), 2, 0)
  join = lambda x: jnp.moveaxis(x, 0, 2).reshape(batch, length)
  body = lambda carry, item: (carry, one(wide, *item))
  loss, hit = jax.lax.scan(body, None, (cut(hidden), cut(labels)))[1]
  return join(loss), join(hit)


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """-log sigmoid(±logit), in nats and float32. logits [...], labels 0 or 1 [...] -> [...]."""
  logits, labels = logits.astype(jnp.float32), labels.astype(jnp.float32)
  return jax.nn.softplus(logits) - labels * logits


def squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
  """Mean over the last axis of the squared difference. [..., D], [..., D] -> [...]."""
  difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
  return jnp.square(difference).mean(-1)
