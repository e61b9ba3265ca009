"""Losses of single predictions; the weighted sum is the task's business."""

import functools
import math

import jax
import jax.numpy as jnp

from bmx.ops.ring import NEVER
from bmx.parallel import Stored, axes_of, shard_map

TABLE = Stored(('vocab', 'embed'))


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

  hidden [B, T, D], table [V + pad, D] as it is stored, of which `vocab` rows count, labels int
  [B, T] -> (loss float32 [B, T], whether the label is the likeliest, bool [B, T]).

  Each device works on its own tokens and rows of the table, sums the table's gradient over its
  chunks in float32, and only then do devices add theirs: a reduction for every chunk would be most
  of what the step sends.
  """
  axes = axes_of('vocab')
  local = functools.partial(_local_cross_entropy, vocab=vocab, chunks=chunks, axes=axes)
  token = ('batch', 'length')
  return shard_map(local, ((*token, None), TABLE, token), (token, token))(hidden, table, labels)


def _local_cross_entropy(hidden, table, labels, vocab, chunks, axes):
  """One device's tokens against its rows of the table; `axes` cut the rows."""
  batch, length = labels.shape
  chunks = math.gcd(chunks, length)
  wide, rows = TABLE.fetch(table).astype(jnp.float32), table.shape[0]
  first = jax.lax.axis_index(axes) * rows if axes else 0
  everywhere = lambda fn, x: fn(x, axes) if axes else x

  @jax.checkpoint
  def one(wide, hidden, labels):
    logits = jnp.einsum(
      'btd,vd->btv', hidden, wide.astype(hidden.dtype), preferred_element_type=jnp.float32
    )
    real = first + jnp.arange(rows) < vocab
    logits = jnp.where(real[None, None], logits, NEVER)
    top = everywhere(jax.lax.pmax, jax.lax.stop_gradient(logits.max(-1)))
    weight = everywhere(jax.lax.psum, jnp.exp(logits - top[..., None]).sum(-1))
    mine = (labels >= first) & (labels < first + rows)
    place = jnp.clip(labels - first, 0, rows - 1)[..., None]
    picked = jnp.where(mine, jnp.take_along_axis(logits, place, axis=-1)[..., 0], 0.0)
    picked = everywhere(jax.lax.psum, picked)
    return jnp.log(weight) + top - picked, picked >= top

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
