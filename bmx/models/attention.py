"""Multi-head attention.

B batch, T length, D width, N query heads, K key/value heads, H head size.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from bmx.core.errors import InputError
from bmx.models.layers import Dtype, Einsum, Norm
from bmx.ops.attention import attend, attention_weights
from bmx.ops.cache import LayerCache, Memory
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
    key_bias: whether the key has one, where `bias` holds; softmax ignores what it adds (Whisper).
    out_bias: whether the output projection has one.
    qk_norm: whether each head's query and key have an RMS norm.
    eps: added to the variance in these norms.
    scale: of the scores; 0 is 1 / √H.
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
  key_bias: bool = True
  out_bias: bool = True
  qk_norm: bool = False
  eps: float = 1e-6
  scale: float = 0.0
  impl: str = 'xla'
  stddev: float = 0.02
  out_stddev: float = 0.02

  @property
  def cross(self) -> 'AttentionConfig':
    """The same for attention to another sequence: without order, window and positions."""
    return dataclasses.replace(self, causal=False, window=0, theta=0.0)


class Attention(nn.Module):
  """Multi-head attention with K key/value heads for N query heads (Ainslie et al. 2023).

  Self-attention, or cross-attention: keys and values of a context, such as the hidden states of an
  encoder.
  """

  config: AttentionConfig
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array | None,
    cache: LayerCache | Memory | None = None,
    context: jax.Array | None = None,
    context_ids: jax.Array | None = None,
    bias: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    """Attends within x, to a cache that x is written to first, to a context, or to its memory.

    Args:
      x: [B, T, D].
      positions: int [B, T].
      segment_ids: int [B, T], or None if every row is one segment.
      cache: keys and values of earlier tokens, or of a context.
      context: [B, S, C], the sequence that x attends to instead of itself.
      context_ids: int [B, S], 0 for padding: a token attends to the context of its own segment,
        which is 1 where `segment_ids` is None. None: to all of it.
      bias: float [1, N, T, S], added to the scores.

    Returns:
      ([B, T, D], the cache with these tokens; the memory of the context, if there is one).

    Raises:
      InputError: the heads do not divide the width; an odd head size with rotary positions.
    """
    c, width = self.config, x.shape[-1]
    source = x if context is None else context
    if not c.head_dim and width % c.heads:
      raise InputError(f'width={width}: expected a multiple of heads={c.heads}, or head_dim')
    head_dim = c.head_dim or width // c.heads
    if c.theta and head_dim % 2:
      raise InputError(f'head_dim={head_dim}: expected an even number for rotary positions')
    init = nn.initializers.normal(c.stddev)

    def project(x: jax.Array, heads: int, axis: str, name: str) -> jax.Array:
      shape, axes = (x.shape[-1], heads, head_dim), ('embed', axis, 'head')
      biased = c.bias and (c.key_bias or name != 'key')
      y = Einsum('btd,dnh->btnh', shape, axes, biased, init, dtype=self.dtype, name=name)(x)
      return constrain(y, 'batch', 'length', axis, None)

    def ready(y: jax.Array, name: str) -> jax.Array:
      y = Norm('rms', c.eps, dtype=self.dtype, name=name)(y) if c.qk_norm else y
      return rotary(y, positions, c.theta, c.rope_scaling) if c.theta else y

    q = ready(project(x, c.heads, 'heads', 'query'), 'query_norm')
    if isinstance(cache, Memory):
      return self._out(cache.attend(q, c.scale), width), cache
    k = ready(project(source, c.kv_heads, 'kv', 'key'), 'key_norm')
    v = project(source, c.kv_heads, 'kv', 'value')
    if cache is not None:
      cache = cache.write(k, v)
      return self._out(cache.attend(q, c.window, c.scale, bias), width), cache
    if context_ids is None and context is not None:
      segment_ids = None
    elif context_ids is not None and segment_ids is None:
      segment_ids = jnp.ones(x.shape[:2], jnp.int32)
    given: dict[str, Any] = {
      'causal': c.causal, 'window': c.window, 'segment_ids': segment_ids, 'key_ids': context_ids,
      'bias': bias, 'scale': c.scale,
    }  # fmt: skip
    if self.is_mutable_collection(WEIGHTS) and not self.is_initializing():
      self.sow(WEIGHTS, 'weights', attention_weights(q, k, **given))
    y = attend(q, k, v, **given, positions=positions, impl=c.impl)
    return self._out(y, width), None if context is None else Memory.of(k, v, context_ids)

  def _out(self, y: jax.Array, width: int) -> jax.Array:
    """Projects the results of the heads: [B, T, N, H] -> [B, T, D]."""
    c = self.config
    shape, axes = (*y.shape[2:], width), ('heads', 'head', 'embed')
    init = nn.initializers.normal(c.out_stddev)
    out = Einsum('btnh,nhd->btd', shape, axes, c.out_bias, init, dtype=self.dtype, name='out')
    return out(y)
