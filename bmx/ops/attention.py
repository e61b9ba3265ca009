"""Attention, behind one door: `attend`."""

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.ops.kernels import BLOCKS, cudnn, splash
from bmx.ops.ring import NEVER, ring
from bmx.parallel import current, one_device, shard_map

ROWS = 4  # causal block rows on one device: more skip more, each costs a kernel launch
IMPLEMENTATIONS = ('xla', 'cudnn', 'splash', 'ring')


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  causal: bool = False,
  window: int = 0,
  segment_ids: jax.Array | None = None,
  positions: jax.Array | None = None,
  impl: str = 'xla',
  interpret: bool = False,
) -> jax.Array:
  """softmax(q kᵀ / √H) v, over the positions that each query may see.

  q [B, T, N, H], k and v [B, S, K, H] with N a multiple of K (grouped-query heads: query head n
  reads key head n // (N / K)) -> [B, T, N, H] in q's dtype. Scores and softmax are float32.

  Args:
    causal: a query sees keys at its own index and before; T == S.
    window: with `causal`, of these the nearest `window` only, its own included; 0 is all.
    segment_ids: int [B, T]; a query sees keys of its own segment only. Needs T == S.
    positions: int [B, T], read by 'ring' alone: there tokens may lie in any order, and a query sees
      keys at its own position and before. None is the order in which they lie.
    impl: 'xla' (anywhere), 'cudnn' (GPU), 'splash' (TPU), 'ring' (a sequence cut over the mesh axis
      'seq').
    interpret: 'splash' on any device, slowly.

  Raises:
    InputError: what `impossible` says, heads that do not group, a window without `causal`.
  """
  batch, length, heads, size = q.shape
  if heads % k.shape[2]:
    raise InputError(f'{heads} query heads do not group over {k.shape[2]} key heads')
  if window < 0 or (window and not causal):
    raise InputError(f'attention window={window}: a window is at least 1, and causal')
  impl = 'xla' if _counting.get() else impl
  layout = current()
  shards = layout.mesh.shape['seq'] if layout else 1
  platform = 'tpu' if interpret else _platform()
  reason = impossible(impl, platform, q.dtype.name, length, k.shape[1], size, shards)
  if reason:
    raise InputError(reason)
  if impl == 'cudnn':
    return cudnn(q, k, v, causal, window, segment_ids)
  if impl == 'xla':
    q = (q * size**-0.5).reshape(batch, length, k.shape[2], -1, size)
    rule = functools.partial(_visible, causal=causal, window=window)
    out = _blocks(q, k, v, segment_ids, rule, window) if causal else _rows(q, k, v, segment_ids)
    return out.reshape(batch, length, heads, size)
  at_q, at_kv, at_ids = ('batch', 'length', 'heads', None), ('batch', 'length', 'kv', None), (
    'batch', 'length')  # fmt: skip
  if impl == 'splash' and segment_ids is None:
    kernel = lambda q, k, v: splash(q, k, v, causal, window, None, interpret)
    return shard_map(kernel, (at_q, at_kv, at_kv), at_q)(q, k, v)
  if segment_ids is None:
    segment_ids = jnp.zeros((batch, length), jnp.int32)
  if impl == 'splash':
    kernel = lambda q, k, v, ids: splash(q, k, v, causal, window, ids, interpret)
    return shard_map(kernel, (at_q, at_kv, at_kv, at_ids), at_q)(q, k, v, segment_ids)
  if positions is None:
    positions = jnp.broadcast_to(jnp.arange(length)[None, :], (batch, length))
  local = lambda q, k, v, p, s: ring(q, k, v, p, s, causal, window)
  places = (at_q, at_kv, at_kv, at_ids, at_ids)
  return shard_map(local, places, at_q)(q, k, v, positions, segment_ids)


_counting: contextvars.ContextVar[bool] = contextvars.ContextVar('counting', default=False)


@contextlib.contextmanager
def as_xla() -> Iterator[None]:
  """Inside, every `impl` is traced as 'xla': for counting FLOPs, which no kernel changes."""
  token = _counting.set(True)
  try:
    yield
  finally:
    _counting.reset(token)


def impossible(
  impl: str, platform: str, dtype: str, length: int, keys: int, size: int, shards: int = 1
) -> str:
  """Why `impl` cannot compute this attention, with the nearest that can; '' where it can.

  Args:
    platform: of the devices that will compute: 'cpu', 'gpu', 'tpu'.
    length, keys, size: T, S and H. shards: of the sequence.
  """
  if impl not in IMPLEMENTATIONS:
    return f'attention {impl!r} is not one of {", ".join(IMPLEMENTATIONS)}'
  instead = "set the model's attention='ring'" if shards > 1 else "set the model's attention='xla'"
  if (impl == 'ring') != (shards > 1):
    return f'attention {impl!r} with mesh.seq={shards}: the ring is for a cut sequence; {instead}'
  if impl == 'ring' and length % shards:
    return f'a sequence of {length} is not divisible by mesh.seq={shards}'
  if impl == 'cudnn' and platform not in ('gpu', 'cuda'):
    return f"attention 'cudnn' needs a GPU, and this is for {platform}; {instead}"
  if impl == 'cudnn' and dtype not in ('bfloat16', 'float16'):
    return f"attention 'cudnn' computes in 16 bits, not {dtype}; use bfloat16, or {instead}"
  if impl == 'cudnn' and (size % 8 or size > 128):
    return f"attention 'cudnn' needs heads of a multiple of 8 up to 128, not {size}; {instead}"
  if impl == 'splash' and platform != 'tpu':
    return f"attention 'splash' needs a TPU, and this is for {platform}; {instead}"
  if impl == 'splash' and (length != keys or length % BLOCKS[-1]):
    return f"attention 'splash' needs a length that {BLOCKS[-1]} divides, not {length}; {instead}"
  return ''


def _platform() -> str:
  """Of the devices that the program in the making is for."""
  layout = current()
  return layout.mesh.devices.flat[0].platform if layout else jax.default_backend()


def _visible(queries, keys, causal, window):
  """Indices [T] and [S] -> bool [T, S]."""
  ahead = queries[:, None] - keys[None, :]
  return (ahead >= 0) & (ahead < window) if window else ahead >= 0


def _blocks(q, k, v, segment_ids, rule, window):
  """Causal attention a block of queries at a time, each against the keys it can see: (ROWS + 1) /
  (2·ROWS) of the work. Slices of a sharded length would move data, so only on one device."""
  length = q.shape[1]
  n = ROWS if one_device() and length % ROWS == 0 else 1
  step = length // n
  rows = []
  for start in range(0, length, step):
    low, high = max(0, start - window + 1) if window and n > 1 else 0, start + step
    span, seen = slice(start, high), slice(low, high)
    ids = None if segment_ids is None else (segment_ids[:, span], segment_ids[:, seen])
    mask = rule(jnp.arange(start, high), jnp.arange(low, high))
    rows.append(_rows(q[:, span], k[:, seen], v[:, seen], ids, mask))
  return jnp.concatenate(rows, axis=1) if n > 1 else rows[0]


def _rows(q, k, v, segment_ids, mask=None):
  """q [B, T, K, G, H], k v [B, S, K, H], segment ids of all or of (queries, keys), mask bool [T, S]
  -> like q."""
  scores = jnp.einsum('btkgh,bskh->bkgts', q, k, preferred_element_type=jnp.float32)
  if mask is not None:
    scores = jnp.where(mask[None, None, None], scores, NEVER)
  if segment_ids is not None:
    queries, keys = segment_ids if isinstance(segment_ids, tuple) else (segment_ids, segment_ids)
    same = queries[:, :, None] == keys[:, None, :]
    scores = jnp.where(same[:, None, None], scores, NEVER)
  weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
  return jnp.einsum('bkgts,bskh->btkgh', weights, v)
