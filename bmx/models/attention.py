"""Multi-head attention.

B batch, T length, D width, N query heads, K key/value heads, H head size.
"""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from bmx.core.errors import InputError
from bmx.models.layers import Dtype, Einsum, Norm
from bmx.ops.attention import attend, attention_weights
from bmx.ops.cache import LayerCache
from bmx.ops.positions import rotary
from bmx.parallel import constrain

WEIGHTS = 'attention_weights'  # collection that weights are sown into where it is collected


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
  """The arguments of `Attention`.

  Attributes:
    heads: number of query heads.
    kv_heads: number of key/value heads, a divisor of `heads`.
    head_dim: size of a head; 0 is width / heads.
    causal: whether a query attends to its own and earlier positions only.
    theta: base of rotary positions; 0 disables them.
    rope_scaling: arguments of a kind of `ops.positions.ROPE_SCALING`; empty disables scaling.
    window: number of nearest keys that a query attends to; 0 is all.
    bias: whether query, key and value have one.
    out_bias: whether the output projection has one.
    qk_norm: whether each head's query and key have an RMS norm.
    eps: added to the variance in these norms.
    impl: implementation, see `ops.attention.attend`.
    stddev: of the initial query, key and value kernels.
    out_stddev: of the initial output kernel.
  """

  heads: int
  kv_heads: int
  head_dim: int = 0
  causal: bool = True
  theta: float = 0.0
  rope_scaling: Mapping[str, float] = dataclasses.field(default_factory=FrozenDict)
  window: int = 0
  bias: bool = True
  out_bias: bool = True
  qk_norm: bool = False
  eps: float = 1e-6
  impl: str = 'xla'
  stddev: float = 0.02
  out_stddev: float = 0.02


class Attention(nn.Module):
  """Multi-head attention with K key/value heads for N query heads (Ainslie et al. 2023)."""

  config: AttentionConfig
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array | None,
    cache: LayerCache | None = None,
  ) -> tuple[jax.Array, LayerCache | None]:
    """Attends within x, or to a cache that x is written to first.

    Args:
      x: [B, T, D].
      positions: int [B, T].
      segment_ids: int [B, T], or None if every row is one segment.
      cache: keys and values of earlier tokens.

    Returns:
      ([B, T, D], the cache with these tokens).

    Raises:
      InputError: the heads do not divide the width; an odd head size with rotary positions.
    """
    c, width = self.config, x.shape[-1]
    if not c.head_dim and width % c.heads:
      raise InputError(f'width={width}: expected a multiple of heads={c.heads}, or head_dim')
    head_dim = c.head_dim or width // c.heads
    if c.theta and head_dim % 2:
      raise InputError(f'head_dim={head_dim}: expected an even number for rotary positions')
    init = nn.initializers.normal(c.stddev)

    def project(heads: int, axis: str, name: str) -> jax.Array:
      shape, axes = (width, heads, head_dim), ('embed', axis, 'head')
      y = Einsum('btd,dnh->btnh', shape, axes, c.bias, init, dtype=self.dtype, name=name)(x)
      return constrain(y, 'batch', 'length', axis, None)

    q = project(c.heads, 'heads', 'query')
    k = project(c.kv_heads, 'kv', 'key')
    v = project(c.kv_heads, 'kv', 'value')
    if c.qk_norm:
      q = Norm('rms', c.eps, dtype=self.dtype, name='query_norm')(q)
      k = Norm('rms', c.eps, dtype=self.dtype, name='key_norm')(k)
    if c.theta:
      q = rotary(q, positions, c.theta, c.rope_scaling)
      k = rotary(k, positions, c.theta, c.rope_scaling)
    if cache is None and self.is_mutable_collection(WEIGHTS) and not self.is_initializing():
      given = {'causal': c.causal, 'window': c.window, 'segment_ids': segment_ids}
      self.sow(WEIGHTS, 'weights', attention_weights(q, k, **given))
    if cache is None:
      y = attend(
        q, k, v, causal=c.causal, window=c.window, segment_ids=segment_ids,
        positions=positions, impl=c.impl,
      )  # fmt: skip
    else:
      cache = cache.write(k, v)
      y = cache.attend(q, c.window)
    shape, axes = (c.heads, head_dim, width), ('heads', 'head', 'embed')
    init = nn.initializers.normal(c.out_stddev)
    out = Einsum('btnh,nhd->btd', shape, axes, c.out_bias, init, dtype=self.dtype, name='out')
    return out(y), cache
