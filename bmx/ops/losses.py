"""Losses of single predictions; the weighted sum is the task's business."""

import jax
import jax.numpy as jnp


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


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """-log sigmoid(±logit), in nats and float32. logits [...], labels 0 or 1 [...] -> [...]."""
  logits, labels = logits.astype(jnp.float32), labels.astype(jnp.float32)
  return jax.nn.softplus(logits) - labels * logits


def squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
  """Mean over the last axis of the squared difference. [..., D], [..., D] -> [...]."""
  difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
  return jnp.square(difference).mean(-1)
