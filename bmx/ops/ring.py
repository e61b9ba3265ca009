"""Context parallelism: exact attention over a sequence that is cut over the mesh axis 'seq'.

Each device keeps its queries; keys and values pass around the ring (Liu et al. 2023), and a
running softmax joins the contributions of the steps. Positions and segments decide which keys a
query attends to; they are sent with the tokens, so the tokens may lie in any order: in zig-zag
order, where shard i holds chunks i and 2n - 1 - i, causal work is equal on all devices (Brandon et
al. 2023).

B batch, T local length, K key heads, G query heads of each, H head size, c tokens of a block.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.errors import InputError
from bmx.ops.masks import MASK_VALUE

AXIS = 'seq'
BLOCK = 1024  # tokens: scores of BLOCK × BLOCK are the largest array


def zigzag(length: int, shards: int) -> np.ndarray:
  """Returns the order of tokens in which causal work is equal: int64 [T].

  >>> zigzag(8, 2).tolist()
  [0, 1, 6, 7, 2, 3, 4, 5]
  """
  if length % (2 * shards):
    raise InputError(
      f'a sequence of {length} is not divisible into the {2 * shards} chunks that '
      f'mesh.seq={shards} deals out; change --config.length or --config.mesh.seq'
    )
  chunks = np.arange(length).reshape(2 * shards, -1)
  return np.concatenate([chunks[:shards], chunks[::-1][:shards]], axis=1).reshape(-1)


def ring(q, k, v, positions, segment_ids, causal: bool, window: int) -> jax.Array:
  """Computes one device's part, inside a shard_map that is manual over 'seq'.

  q [B, T, N, H], k and v [B, T, K, H], positions and segment_ids int [B, T] -> [B, T, N, H].
  """
  batch, length, heads, size = q.shape
  block = next(c for c in range(min(BLOCK, length), 0, -1) if length % c == 0)
  q = (q * size**-0.5).reshape(batch, length, k.shape[2], -1, size)
  out: Any = _ring(q, k, v, positions, segment_ids, (block, causal, window))
  return out.reshape(batch, length, heads, size)


def _cut(x: jax.Array, block: int) -> jax.Array:
  """Splits [B, T, ...] into [T / c, B, c, ...]."""
  return jnp.moveaxis(x.reshape(x.shape[0], -1, block, *x.shape[2:]), 1, 0)


def _join(x: jax.Array) -> jax.Array:
  """Inverse of `_cut`: [T / c, B, c, ...] -> [B, T, ...]."""
  return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])


def _pass_on(x: jax.Array) -> jax.Array:
  """Sends arrays to the next device of the ring."""
  n = jax.lax.axis_size(AXIS)
  return jax.lax.ppermute(x, AXIS, [(i, (i + 1) % n) for i in range(n)])


def _everywhere(positions, segments):
  """Gathers positions and segments of all shards, int [n, 2, B, T]; small, they are sent once."""
  return jax.lax.all_gather(jnp.stack([positions, segments]), AXIS)


def _here(marks, kv, step):
  """Returns the keys on this device after `step` steps: (k, v, positions, segments).

  The barrier keeps the compiler from computing the masks of all steps before the loop, which would
  take the memory that the ring saves.
  """
  owner = (jax.lax.axis_index(AXIS) - step) % jax.lax.axis_size(AXIS)
  mark, kv = jax.lax.optimization_barrier((marks[owner], kv))
  return (*kv, *mark)


def _scores(q, k, at, rule):
  """Computes scores float32 [B, K, G, c, s]; MASK_VALUE for keys that a query may not attend to.

  Args:
    q: [B, c, K, G, H].
    k: [B, s, K, H].
    at: (query and key positions, query and key segments).
    rule: the mask.
  """
  _, causal, window = rule
  qp, kp, qs, ks = at
  scores = jnp.einsum('bqkgh,bskh->bkgqs', q, k, preferred_element_type=jnp.float32)
  ahead = qp[:, :, None] - kp[:, None, :]
  visible = qs[:, :, None] == ks[:, None, :]
  if causal:
    visible &= ahead >= 0
  if window:
    visible &= ahead < window
  return jnp.where(visible[:, None, None], scores, MASK_VALUE)


def _any_visible(qp, kp, rule):
  """Returns whether a block of queries attends to a block of keys, by positions alone."""
  _, causal, window = rule
  seen = jnp.bool_(True)
  if causal:
    seen &= qp.max() >= kp.min()
  if window:
    seen &= qp.min() - kp.max() < window
  return seen


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _ring(q, k, v, positions, segments, rule) -> Any:
  return _forward(q, k, v, positions, segments, rule)[0]


def _forward(q, k, v, positions, segments, rule):
  block = rule[0]
  queries = jax.tree.map(lambda x: _cut(x, block), (q, positions, segments))

  def block_update(sums, query, keys):
    """Adds one block of queries against one of keys to (out, largest score, weight)."""
    (qi, qp, qs), (ki, vi, kp, ks) = query, keys
    out, largest, weight = sums
    scores = _scores(qi, ki, (qp, kp, qs, ks), rule)
    top = jnp.maximum(largest, scores.max(-1))
    # A row that has seen nothing yet keeps a weight of 0, also where all its scores are MASK_VALUE.
    p = jnp.where(scores <= MASK_VALUE, 0.0, jnp.exp(scores - top[..., None]))
    old = jnp.exp(largest - top)
    add = jnp.einsum(
      'bkgqs,bskh->bkgqh', p.astype(vi.dtype), vi, preferred_element_type=jnp.float32
    )
    return out * old[..., None] + add, top, weight * old + p.sum(-1)

  marks = _everywhere(positions, segments)

  def ring_step(carry, number):
    kv, sums = carry
    blocks = jax.tree.map(lambda x: _cut(x, block), _here(marks, kv, number))

    def of_query(_, item):
      query, sums = item

      def of_key(sums, one):
        seen = _any_visible(query[1], one[2], rule)
        return jax.lax.cond(seen, lambda s: block_update(s, query, one), lambda s: s, sums), None

      return None, jax.lax.scan(of_key, sums, blocks)[0]

    sums = jax.lax.scan(of_query, None, (queries, sums))[1]
    return (_pass_on(kv), sums), None

  n, batch, _, groups, each, size = queries[0].shape
  start = jnp.zeros((n, batch, groups, each, block, size), jnp.float32)
  sums = start, start[..., 0] + MASK_VALUE, start[..., 0]
  steps = jnp.arange(jax.lax.axis_size(AXIS))
  # Keys and values as one array: one message a step.
  (_, (out, largest, weight)), _ = jax.lax.scan(ring_step, (jnp.stack([k, v]), sums), steps)
  weight = jnp.maximum(weight, 1e-30)
  out = _join(jnp.moveaxis(out / weight[..., None], -2, 2)).astype(q.dtype)
  return out, (q, k, v, positions, segments, out, largest + jnp.log(weight))


def _backward(rule, saved, cotangent):
  q, k, v, positions, segments, out, log_weight = saved
  block = rule[0]
  inner = jnp.einsum('btkgh,btkgh->btkg', out, cotangent, preferred_element_type=jnp.float32)
  cut = lambda x: _cut(x, block)
  queries = (*jax.tree.map(cut, (q, cotangent, inner, positions, segments)), log_weight)
  multiply = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

  def block_update(dq, dkv, query, keys):
    (qi, ci, di, qp, qs, lw), (ki, vi, kp, ks) = query, keys
    scores = _scores(qi, ki, (qp, kp, qs, ks), rule)
    p = jnp.where(scores <= MASK_VALUE, 0.0, jnp.exp(scores - lw[..., None]))
    dlogits = multiply('bqkgh,bskh->bkgqs', ci, vi) - jnp.moveaxis(di, 1, -1)[..., None]
    ds, p = (p * dlogits).astype(qi.dtype), p.astype(qi.dtype)
    dk = dkv[0] + multiply('bkgqs,bqkgh->bskh', ds, qi)
    dv = dkv[1] + multiply('bkgqs,bqkgh->bskh', p, ci)
    return dq + multiply('bkgqs,bskh->bqkgh', ds, ki), (dk, dv)

  marks = _everywhere(positions, segments)

  def ring_step(carry, number):
    kv, dkv, dq = carry
    blocks, dblocks = jax.tree.map(cut, (_here(marks, kv, number), tuple(dkv)))

    def of_key(dq, item):
      one, dkv = item

      def of_query(dkv, item):
        query, dq = item
        seen = _any_visible(query[3], one[2], rule)
        dq, dkv = jax.lax.cond(
          seen, lambda a, b: block_update(a, b, query, one), lambda a, b: (a, b), dq, dkv
        )
        return dkv, dq

      dkv, dq = jax.lax.scan(of_query, dkv, (queries, dq))
      return dq, dkv

    dq, dblocks = jax.lax.scan(of_key, dq, (blocks, dblocks))
    return (_pass_on(kv), _pass_on(jnp.stack([_join(d) for d in dblocks])), dq), None

  wide = lambda x: jnp.zeros_like(x, dtype=jnp.float32)
  kv = jnp.stack([k, v])
  steps = jnp.arange(jax.lax.axis_size(AXIS))
  (_, (dk, dv), dq), _ = jax.lax.scan(ring_step, (kv, wide(kv), wide(queries[0])), steps)
  return _join(dq).astype(q.dtype), dk.astype(k.dtype), dv.astype(v.dtype), None, None


_ring.defvjp(_forward, _backward)
