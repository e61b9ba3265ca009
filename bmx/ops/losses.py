"""Losses of single predictions; tasks compute the weighted sum."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bmx.ops.masks import MASK_VALUE
from bmx.parallel import Stored, axes_of, shard_map

TABLE = Stored(('vocab', 'embed'))


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
  """Computes -log softmax(logits)[label], in nats and float32.

  logits [..., V], labels int [...] -> [...]. `smoothing` moves that share of the target to the
  uniform distribution (Szegedy et al. 2016, section 7). NaN for a label that is not of the V.
  """
  logits = logits.astype(jnp.float32)
  log_normaliser = jax.nn.logsumexp(logits, axis=-1)
  labels = jnp.where(labels < 0, logits.shape[-1], labels)  # -1 is not the last class
  picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
  loss = log_normaliser - picked
  if not smoothing:
    return loss
  return (1 - smoothing) * loss + smoothing * (log_normaliser - logits.mean(-1))


def chunked_cross_entropy(
  hidden: jax.Array,
  table: jax.Array,
  labels: jax.Array,
  weights: jax.Array,
  vocab_size: int,
  chunks: int,
) -> tuple[jax.Array, jax.Array]:
  """Computes the weighted cross-entropy of `hidden · tableᵀ`, chunk by chunk.

  Logits exist for one chunk of tokens at a time, and once: a forward pass that will be
  differentiated computes the gradients beside them (Hsu et al. 2024, section 3.2). Logits are
  float32; their gradient is rounded to hidden's dtype before it meets hidden and table (float16
  loses values below 6e-8). Each device works on its own tokens and rows of the table, sums the
  table's gradient over its chunks in float32, and only then do devices add theirs: a reduction for
  every chunk would be most of the step's communication.

  Args:
    hidden: [B, T, D].
    table: [V + pad, D], as it is stored.
    labels: int [B, T].
    weights: [B, T]; 0 hides even a NaN loss. They are data, without gradient.
    vocab_size: rows of the table that count.
    chunks: of the tokens.

  Returns:
    Σ weight · loss, float32, NaN for a label outside the vocabulary; and whether the label is the
    most likely token, bool [B, T].
  """
  axes = axes_of('vocab')
  token = ('batch', 'length')

  def local(hidden, table, labels, weights):
    shard = VocabShard(vocab_size, chunks, axes)
    found: Any = _summed(shard, hidden, TABLE.fetch(table), labels, weights)
    return found[0][None, None], found[1]

  places = ((*token, None), TABLE, token, token)
  totals, hit = shard_map(local, places, (token, token))(hidden, table, labels, weights)
  return totals.sum(), hit


class VocabShard(NamedTuple):
  """The part of the vocabulary on one device.

  Attributes:
    vocab_size: rows of the table that count, on all devices.
    chunks: of the tokens; logits of one chunk exist at a time.
    axes: mesh axes that cut the rows.
  """

  vocab_size: int
  chunks: int
  axes: tuple[str, ...]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(shard, hidden, table, labels, weights):
  """Computes one device's tokens against its rows of the table -> (Σ weight · loss, hits)."""
  one = lambda carry, item: (carry, _chunk(shard, table, *item)[:2])
  loss, hit = jax.lax.scan(one, None, _cut(shard, (hidden, labels, weights)))[1]
  return loss.sum(), _join(hit)


def _summed_forward(shard, hidden, table, labels, weights):
  def one(total, item):
    loss, hit, dlogits = _chunk(shard, table, *item)
    dlogits = dlogits().astype(hidden.dtype)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    grad = product('btv,vd->btd', dlogits, table.astype(hidden.dtype)).astype(hidden.dtype)
    return total + product('btv,btd->vd', dlogits, item[0]), (loss, hit, grad)

  start = jnp.zeros(table.shape, jnp.float32)
  total, (loss, hit, grad) = jax.lax.scan(one, start, _cut(shard, (hidden, labels, weights)))
  return (loss.sum(), _join(hit)), (_join(grad), total.astype(table.dtype))


def _summed_backward(shard, kept, cotangent):
  """Computes the gradients; devices that share tokens hold parts of the sum's cotangent."""
  g = jax.lax.psum(cotangent[0], shard.axes) if shard.axes else cotangent[0]
  return *((x * g).astype(x.dtype) for x in kept), None, None


_summed.defvjp(_summed_forward, _summed_backward)


def _chunk(shard, table, hidden, labels, weights):
  """Returns weight · loss [B, t], hits [B, t], and a function for the gradient of the logits."""
  rows, axes = table.shape[0], shard.axes
  everywhere = lambda fn, x: fn(x, axes) if axes else x
  first = jax.lax.axis_index(axes) * rows if axes else 0
  ids = (first + jnp.arange(rows))[None, None]
  table = table.astype(hidden.dtype)
  logits = jnp.einsum('btd,vd->btv', hidden, table, preferred_element_type=jnp.float32)
  logits = jnp.where(ids < shard.vocab_size, logits, MASK_VALUE)
  mine = ids == labels[..., None]
  top = everywhere(jax.lax.pmax, logits.max(-1))
  weight = everywhere(jax.lax.psum, jnp.exp(logits - top[..., None]).sum(-1))
  picked = everywhere(jax.lax.psum, jnp.where(mine, logits, 0).sum(-1))
  picked = jnp.where((labels >= 0) & (labels < shard.vocab_size), picked, jnp.nan)
  normaliser = jnp.log(weight) + top
  weighs = weights > 0
  loss = jnp.where(weighs, normaliser - picked, 0) * weights

  def dlogits():
    error = jnp.exp(logits - normaliser[..., None]) - mine
    return jnp.where(weighs[..., None], error, 0) * weights[..., None]

  return loss, picked >= top, dlogits


def _cut(shard, arrays):
  """Splits [B, T, ...] into [chunks, B, T / chunks, ...]."""
  batch, length = arrays[0].shape[:2]
  chunks = math.gcd(shard.chunks, length)
  cut = lambda x: jnp.moveaxis(x.reshape(batch, -1, chunks, *x.shape[2:]), 2, 0)
  return tuple(map(cut, arrays))


def _join(x):
  """Inverse of `_cut`."""
  x = jnp.moveaxis(x, 0, 2)
  return x.reshape(x.shape[0], -1, *x.shape[3:])


def binary_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Computes -log sigmoid(±logit), float32, in nats; logits [...], labels 0 or 1 [...] -> [...]."""
  logits, labels = logits.astype(jnp.float32), labels.astype(jnp.float32)
  return jax.nn.softplus(logits) - labels * logits


def focal(
  logits: jax.Array, labels: jax.Array, gamma: float = 2.0, alpha: float = 0.25
) -> jax.Array:
  """Computes the focal loss of sigmoids, float32, in nats: easy examples count little.

  Args:
    logits: [...].
    labels: 0 or 1, [...].
    gamma: exponent of 1 - the probability of the label; 0 is cross-entropy, weighted by alpha.
    alpha: weight of label 1; label 0 has 1 - alpha.

  Source: Lin et al. 2017, equation 5.
  """
  labels = labels.astype(jnp.float32)
  wrong = jax.nn.sigmoid(jnp.where(labels > 0, -1.0, 1.0) * logits.astype(jnp.float32))
  weight = jnp.where(labels > 0, alpha, 1 - alpha)
  return weight * wrong**gamma * binary_cross_entropy(logits, labels)


def squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
  """Computes the mean squared difference over the last axis: [..., D], [..., D] -> [...]."""
  difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
  return jnp.square(difference).mean(-1)
