"""Attention, behind one door: `attend`."""

import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.parallel import one_device

NEVER = -1e30  # a score that exp() sends to 0; finite, so that a row of them has no NaN
BLOCKS = 4  # causal block rows on one device: more skip more, each costs a kernel launch
IMPLEMENTATIONS = ('xla',)


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  causal: bool = False,
  segment_ids: jax.Array | None = None,
  impl: str = 'xla',
) -> jax.Array:
  """softmax(q kᵀ / √H) v, over the positions that each query may see.

  q [B, T, N, H], k and v [B, S, K, H] with N a multiple of K (grouped-query heads: query head n
  reads key head n // (N / K)) -> [B, T, N, H] in q's dtype. Scores and softmax are float32.

  Args:
    causal: a query sees keys at its own index and before; T == S.
    segment_ids: int [B, T]; a query sees keys of its own segment only. Needs T == S.
    impl: 'xla'.

  Raises:
    InputError: unknown `impl`, or heads that do not group.
  """
  if impl not in IMPLEMENTATIONS:
    raise InputError(f'attention {impl!r} is not one of {", ".join(IMPLEMENTATIONS)}')
  batch, length, heads, size = q.shape
  groups = k.shape[2]
  if heads % groups:
    raise InputError(f'{heads} query heads do not group over {groups} key heads')
  q = (q * size**-0.5).reshape(batch, length, groups, heads // groups, size)
  out = _blocks(q, k, v, segment_ids) if causal else _rows(q, k, v, 0, False, segment_ids)
  return out.reshape(batch, length, heads, size)


def _blocks(q, k, v, segment_ids):
  """Causal attention a block of queries at a time, each against the keys it can see: (BLOCKS + 1) /
  (2·BLOCKS) of the work. Slices of a sharded length would move data, so only on one device."""
  length = q.shape[1]
  n = BLOCKS if one_device() and length % BLOCKS == 0 else 1
  step = length // n
  rows = [
    _rows(q[:, i : i + step], k[:, : i + step], v[:, : i + step], i, True, segment_ids)
    for i in range(0, length, step)
  ]
  return jnp.concatenate(rows, axis=1) if n > 1 else rows[0]


def _rows(q, k, v, start, causal, segment_ids):
  """Queries start.. against all given keys. q [B, T, K, G, H], k v [B, S, K, H] -> like q."""
  t, s = q.shape[1], k.shape[1]
  scores = jnp.einsum('btkgh,bskh->bkgts', q, k, preferred_element_type=jnp.float32)
  if causal:
    visible = (start + jnp.arange(t))[:, None] >= jnp.arange(s)[None, :]
    scores = jnp.where(visible[None, None, None], scores, NEVER)
  if segment_ids is not None:
    same = segment_ids[:, start : start + t, None] == segment_ids[:, None, :s]
    scores = jnp.where(same[:, None, None], scores, NEVER)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  return jnp.einsum('bkgts,bskh->btkgh', weights, v)
