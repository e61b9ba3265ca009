"""Attention: one function, `attend`, for all implementations."""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.ops.kernels import BLOCKS, cudnn, splash
from bmx.ops.masks import MASK_VALUE, AttentionMask
from bmx.ops.ring import ring
from bmx.parallel import axes_of, current, one_device, platform, shard_map

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
  key_ids: jax.Array | None = None,
  bias: jax.Array | None = None,
  positions: jax.Array | None = None,
  scale: float = 0.0,
  impl: str = 'xla',
  interpret: bool = False,
) -> jax.Array:
  """Computes softmax(scale · q kᵀ + bias) v, over the positions that each query attends to.

  N is a multiple of K (grouped-query heads): query head n reads key head n // (N / K). Scores and
  softmax are float32.

  Args:
    q: queries [B, T, N, H].
    k: keys [B, S, K, H].
    v: values [B, S, K, H].
    causal: a query attends to keys at its own index and before; T == S.
    window: with `causal`, of these the nearest `window` only, its own included; 0 is all.
    segment_ids: int [B, T]; a query attends to keys of its own segment only. Needs T == S, or
      `key_ids`.
    key_ids: int [B, S], the segments of keys of another sequence; needs `segment_ids`.
    bias: float [1, N, T, S], added to the scores; 'xla' only.
    positions: int [B, T], read by 'ring' alone: there tokens may lie in any order, and a query
      attends to keys at its own position and before. None is the order of the tokens.
    scale: of the scores; 0 is 1 / √H.
    impl: 'xla' (anywhere), 'cudnn' (GPU), 'splash' (TPU), 'ring' (a sequence cut over the mesh axis
      'seq').
    interpret: 'splash' on any device, slowly.

  Returns:
    [B, T, N, H] in q's dtype.

  Raises:
    InputError: `impl` cannot compute this (see `impossible`), heads that do not group, a window
      without `causal`, causal attention to another sequence, key heads that 'ring' or 'splash'
      finds cut otherwise than query heads.
  """
  batch, length, heads, size = q.shape
  if heads % k.shape[2]:
    raise InputError(f'heads={heads}: expected a multiple of the {k.shape[2]} key heads')
  if window < 0 or (window and not causal):
    raise InputError(f'window={window}: expected at least 1 and causal attention')
  if causal and (length != k.shape[1] or key_ids is not None):
    raise InputError('causal=True: expected queries and keys of one sequence; set causal=False')
  impl = 'xla' if _counting.get() else impl
  layout = current()
  shards = layout.mesh.shape['seq'] if layout else 1
  kind = 'tpu' if interpret else platform()
  reason = impossible(impl, kind, q.dtype.name, length, k.shape[1], size, shards)
  reason = reason or _refused(impl, key_ids is not None or length != k.shape[1], bias, scale)
  if reason:
    raise InputError(reason)
  scale = scale or size**-0.5
  mask = AttentionMask(causal, window, segment_ids, positions, key_ids)
  if impl == 'splash':
    return _splash(q, k, v, mask, scale, interpret)
  if impl == 'cudnn':
    return cudnn(q, k, v, mask.causal, mask.window, mask.pair, scale)
  return _ring(q, k, v, mask) if impl == 'ring' else _xla(q, k, v, mask, scale, bias)


def _refused(impl: str, context: bool, bias: jax.Array | None, scale: float) -> str:
  """Returns why a kernel cannot compute what cross-attention or a bias asks for; '' if it can."""
  if impl != 'xla' and bias is not None:
    return f"attention {impl!r} adds no bias to the scores; set the model's attention='xla'"
  if impl == 'ring' and (context or scale):
    return (
      "attention 'ring' neither attends to another sequence nor changes the scale of scores: "
      'expected mesh.seq=1'
    )
  return ''


# Names of dimensions: of queries, of keys and values, of integers per token.
TOKEN = ('batch', 'length')
QUERY, KEY = (*TOKEN, 'heads', None), (*TOKEN, 'kv', None)


def _splash(q, k, v, mask, scale, interpret):
  """Calls the kernel; segments are an operand only if given, as the kernel is simpler without."""
  pick = _key_heads(q.shape[2], k.shape[2])

  def kernel(q, k, v, *ids):
    k, v = pick(q, k, v)
    return splash(q, k, v, mask.causal, mask.window, ids or None, scale, interpret)

  ids = mask.pair or ()
  return shard_map(kernel, (QUERY, KEY, KEY, *[TOKEN] * len(ids)), QUERY)(q, k, v, *ids)


def _ring(q, k, v, mask):
  batch, length = q.shape[:2]
  segments, positions = mask.segment_ids, mask.positions
  if segments is None:
    segments = jnp.zeros((batch, length), jnp.int32)
  if positions is None:
    positions = jnp.broadcast_to(jnp.arange(length)[None, :], (batch, length))
  pick = _key_heads(q.shape[2], k.shape[2])
  local = lambda q, k, v, p, s: ring(q, *pick(q, k, v), p, s, mask.causal, mask.window)
  return shard_map(local, (QUERY, KEY, KEY, TOKEN, TOKEN), QUERY)(q, k, v, positions, segments)


def _key_heads(heads: int, keys: int) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """Returns a function: one device's (q, k, v) -> k and v of the heads that its query heads read.

  They are all that the device has, unless query heads are cut and key heads are not.

  Raises InputError if key heads are cut otherwise than query heads.
  """
  axes, cut = axes_of('heads'), axes_of('kv')
  if cut and cut != axes:
    raise InputError(f'rules.kv={cut}: expected {axes}, the axes of `heads`, or ()')
  if cut == axes or keys == 1:
    return lambda q, k, v: (k, v)

  def pick(q, k, v):
    local, group = q.shape[2], heads // keys
    first = jax.lax.axis_index(axes) * local
    # Neighbours in number gcd(local, group) read the same key head on every device.
    chosen = (first + jnp.arange(0, local, math.gcd(local, group))) // group
    return jnp.take(k, chosen, axis=2), jnp.take(v, chosen, axis=2)

  return pick


def _xla(q, k, v, mask, scale, bias):
  batch, length, heads, size = q.shape
  q = (q * scale).reshape(batch, length, k.shape[2], -1, size)
  if bias is not None:
    bias = bias.reshape(1, k.shape[2], -1, length, k.shape[1])
  out = _blocks(q, k, v, mask, bias) if mask.causal else _rows(q, k, v, mask.pair, bias=bias)
  return out.reshape(batch, length, heads, size)


_counting: contextvars.ContextVar[bool] = contextvars.ContextVar('counting', default=False)
_recomputing: contextvars.ContextVar[bool] = contextvars.ContextVar('recomputing', default=False)


@contextlib.contextmanager
def reference_attention(recompute: bool = False) -> Iterator[None]:
  """Context in which every `impl` is traced as 'xla', without skipping masked blocks.

  For counting FLOPs, which no kernel changes, by the usual convention (PaLM, appendix B).

  Args:
    recompute: whether results that the backward pass computes again are traced so; the convention
      does not count them.
  """
  tokens = _counting.set(True), _recomputing.set(recompute)
  try:
    yield
  finally:
    _counting.reset(tokens[0])
    _recomputing.reset(tokens[1])


def counting() -> bool:
  """Returns whether FLOPs or shapes are computed, without recomputation or kernels."""
  return _counting.get() and not _recomputing.get()


def impossible(
  impl: str, platform: str, dtype: str, length: int, keys: int, size: int, shards: int = 1
) -> str:
  """Returns why `impl` cannot compute this attention, with the nearest that can; '' if it can.

  Args:
    impl: see `attend`.
    platform: of the devices that will compute: 'cpu', 'gpu', 'tpu'.
    dtype: of q, k and v.
    length: T.
    keys: S.
    size: H.
    shards: number of parts of the sequence.
  """
  if impl not in IMPLEMENTATIONS:
    return f'attention={impl!r}: expected one of {", ".join(IMPLEMENTATIONS)}'
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
  bad = [n for n in (length, keys) if n % BLOCKS[-1]]
  if impl == 'splash' and bad:
    return f"attention 'splash' needs a length that {BLOCKS[-1]} divides, not {bad[0]}; {instead}"
  return ''


def _blocks(q, k, v, mask, bias):
  """Computes causal attention a block of queries at a time, each against the keys before its end.

  That is (ROWS + 1) / (2·ROWS) of the work. Slices of a sharded length would move data, so only on
  one device; and only of a known length: ROWS divides no symbolic one (`jax.export`).
  """
  length, window, ids = q.shape[1], mask.window, mask.segment_ids
  n = ROWS if one_device() and length % ROWS == 0 and not _counting.get() else 1
  step = length // n
  rows = []
  for start in (i * step for i in range(n)):
    low = max(0, start - window + 1) if window and n > 1 else 0
    queries, keys = slice(start, start + step), slice(low, start + step)
    pair = None if ids is None else (ids[:, queries], ids[:, keys])
    ahead = jnp.arange(start, start + step)[:, None] - jnp.arange(low, start + step)[None, :]
    mask = (ahead >= 0) & (ahead < window) if window else ahead >= 0
    part = None if bias is None else bias[..., queries, keys]
    rows.append(_rows(q[:, queries], k[:, keys], v[:, keys], pair, mask, part))
  return jnp.concatenate(rows, axis=1) if n > 1 else rows[0]


def _rows(q, k, v, pair, mask=None, bias=None):
  """Computes attention of some queries, like q.

  Args:
    q: [B, T, K, G, H].
    k: [B, S, K, H].
    v: [B, S, K, H].
    pair: segments of (queries, keys), or None.
    mask: bool [T, S].
    bias: [1, K, G, T, S].
  """
  return jnp.einsum('bkgts,bskh->btkgh', _weights(q, k, pair, mask, bias).astype(v.dtype), v)


def _weights(q, k, pair, mask, bias=None):
  """Computes the weights of the keys, float32 [B, K, G, T, S]; arguments as in `_rows`."""
  scores = jnp.einsum('btkgh,bskh->bkgts', q, k, preferred_element_type=jnp.float32)
  if bias is not None:
    scores += bias.astype(jnp.float32)
  if mask is not None:
    scores = jnp.where(mask[None, None, None], scores, MASK_VALUE)
  if pair is not None:
    queries, keys = pair
    same = queries[:, :, None] == keys[:, None, :]
    scores = jnp.where(same[:, None, None], scores, MASK_VALUE)
  return jax.nn.softmax(scores, axis=-1)


def attention_weights(
  q: jax.Array,
  k: jax.Array,
  *,
  causal: bool = False,
  window: int = 0,
  segment_ids: jax.Array | None = None,
  key_ids: jax.Array | None = None,
  bias: jax.Array | None = None,
  scale: float = 0.0,
) -> jax.Array:
  """Computes the weights of `attend` as a matrix, which no implementation keeps.

  Args:
    q: queries [B, T, N, H].
    k: keys [B, S, K, H].
    causal: see `attend`, as are the others.
    window: likewise.
    segment_ids: likewise.
    key_ids: likewise.
    bias: likewise.
    scale: likewise.

  Returns:
    float32 [B, N, T, S], rows of queries sum to 1.

  Raises:
    InputError: a cut sequence, whose tokens may lie in any order.
  """
  batch, length, heads, size = q.shape
  layout = current()
  if layout and layout.mesh.shape['seq'] > 1:
    raise InputError(
      f'mesh.seq={layout.mesh.shape["seq"]}: expected 1, as attention weights are of whole rows'
    )
  keys = k.shape[1]
  q = (q * (scale or size**-0.5)).reshape(batch, length, k.shape[2], -1, size)
  ahead = jnp.arange(length)[:, None] - jnp.arange(keys)[None, :]
  mask = (ahead >= 0) & (ahead < (window or length)) if causal else None
  pair = AttentionMask(causal, window, segment_ids, None, key_ids).pair
  bias = None if bias is None else bias.reshape(1, k.shape[2], -1, length, keys)
  return _weights(q, k, pair, mask, bias).reshape(batch, heads, length, keys)
