"""Fused attention kernels of the vendors, in bmx's shapes: q [B, T, N, H], k and v [B, S, K, H]."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.hardware import LANES

RESULT = 'attention_result'  # name, for policies of `jax.checkpoint`, of what splash keeps
BLOCKS = (512, 256, LANES)  # of splash, in tokens: the largest that divides the length


def cudnn(q, k, v, causal: bool, window: int, pair, scale: float) -> jax.Array:
  """Computes attention by cuDNN's flash attention.

  `pair`: segments of queries [B, T] and keys [B, S], which it gets as a mask [B, 1, T, S], or None.
  """
  mask = None
  if pair is not None:
    queries, keys = pair
    mask = (queries[:, :, None] == keys[:, None, :])[:, None]
  span = (window - 1, 0) if window else None
  try:
    return jax.nn.dot_product_attention(
      q, k, v, mask=mask, scale=scale, is_causal=causal, local_window_size=span,
      implementation='cudnn',
    )  # fmt: skip
  except RuntimeError as error:
    if 'cuDNN' not in str(error):
      raise
    raise InputError(
      f"attention='cudnn': {error}; pip install 'bmx-jax[cuda12]', or set attention='xla'"
    ) from None


def splash(
  q, k, v, causal: bool, window: int, pair, scale: float, interpret: bool = False
) -> jax.Array:
  """Computes one device's part by Pallas' splash attention on the TPU.

  The part has all of the length, and its share of batch and heads. `pair`: see `cudnn`. `interpret`
  runs the kernel step by step anywhere.
  """
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels

  kernel = _splash(q.shape[2], q.shape[1], k.shape[1], causal, window, interpret)
  q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * scale, k, v))
  if pair is None:
    out = jax.vmap(kernel)(q, k, v)
  else:
    out = jax.vmap(kernel)(q, k, v, kernels.SegmentIds(*pair))
  return jnp.swapaxes(out, 1, 2)


@functools.lru_cache(maxsize=16)
def _splash(heads: int, length: int, keys: int, causal: bool, window: int, interpret: bool) -> Any:
  """Makes the kernel of a mask, once: its tables take O(T·S) time on the host."""
  from jax.experimental.pallas.ops.tpu import splash_attention as package
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  mask: Any = masks.FullMask((length, keys))
  if causal and window:
    mask = masks.LocalMask((length, length), (window - 1, 0), 0)
  elif causal:
    mask = masks.CausalMask((length, length))
  b, c = (next(b for b in BLOCKS if n % b == 0) for n in (length, keys))
  sizes = package.BlockSizes(
    block_q=b, block_kv=c, block_kv_compute=c, block_q_dkv=b, block_kv_dkv=c,
    block_kv_dkv_compute=c, block_q_dq=b, block_kv_dq=c,
  )  # fmt: skip
  with jax.ensure_compile_time_eval():
    return package.make_splash_mha(
      masks.MultiHeadMask([mask] * heads), head_shards=1, q_seq_shards=1, block_sizes=sizes,
      interpret=interpret, residual_checkpoint_name=RESULT,
    )  # fmt: skip
