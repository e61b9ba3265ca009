"""The transformer: Attention and FeedForward make a Block, Blocks make a Stack.

B batch, T length, D width, F feed-forward, N query heads, K key/value heads, H head size.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.models.layers import Dtype, Einsum, Norm, activation
from bmx.ops.attention import attend
from bmx.ops.positions import rotary
from bmx.parallel import constrain


class Attention(nn.Module):
  """Multi-head attention with K key/value heads for N query heads (Ainslie et al. 2023)."""

  heads: int
  kv_heads: int
  causal: bool = True
  theta: float = 0.0  # base of rotary positions; 0 is none
  bias: bool = True
  impl: str = 'xla'
  stddev: float = 0.02
  out_stddev: float = 0.02
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, positions: jax.Array, segment_ids: jax.Array | None
  ) -> jax.Array:
    """x [B, T, D], positions int [B, T], segment_ids int [B, T] or None -> [B, T, D]."""
    width = x.shape[-1]
    if width % self.heads:
      raise InputError(f'width {width} is not divisible by {self.heads} heads')
    size = width // self.heads
    init = nn.initializers.normal(self.stddev)

    def project(heads, axis, name):
      shape, axes = (width, heads, size), ('embed', axis, 'head')
      y = Einsum('btd,dnh->btnh', shape, axes, self.bias, init, dtype=self.dtype, name=name)(x)
      return constrain(y, 'batch', 'length', axis, None)

    q = project(self.heads, 'heads', 'query')
    k = project(self.kv_heads, 'kv', 'key')
    v = project(self.kv_heads, 'kv', 'value')
    if self.theta:
      q, k = rotary(q, positions, self.theta), rotary(k, positions, self.theta)
    y = attend(q, k, v, causal=self.causal, segment_ids=segment_ids, impl=self.impl)
    shape, axes = (self.heads, size, width), ('heads', 'head', 'embed')
    init = nn.initializers.normal(self.out_stddev)
    return Einsum('btnh,nhd->btd', shape, axes, self.bias, init, dtype=self.dtype, name='out')(y)


class FeedForward(nn.Module):
  """D -> F -> D; gated, the activation of one projection multiplies another (Shazeer 2020)."""

  hidden: int
  activation: str = 'gelu'
  gated: bool = False
  bias: bool = True
  stddev: float = 0.02
  out_stddev: float = 0.02
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """x [B, T, D] -> [B, T, D]."""
    width = x.shape[-1]
    init = nn.initializers.normal(self.stddev)

    def up(name):
      shape, axes = (width, self.hidden), ('embed', 'mlp')
      return Einsum('btd,df->btf', shape, axes, self.bias, init, dtype=self.dtype, name=name)(x)

    y = activation(self.activation)(up('gate') if self.gated else up('up'))
    y = constrain(y * up('up') if self.gated else y, 'batch', 'length', 'mlp')
    shape, axes = (self.hidden, width), ('mlp', 'embed')
    init = nn.initializers.normal(self.out_stddev)
    return Einsum('btf,fd->btd', shape, axes, self.bias, init, dtype=self.dtype, name='down')(y)


class Block(nn.Module):
  """x + attention(norm(x)), then x + feed_forward(norm(x)): pre-norm, as in GPT-2 and Llama.

  Dropout acts on what is added to the residual stream; attention weights have none, since no fused
  kernel offers it.
  """

  heads: int
  kv_heads: int
  hidden: int
  causal: bool = True
  theta: float = 0.0
  norm: str = 'layer'
  epsilon: float = 1e-5
  activation: str = 'gelu'
  gated: bool = False
  bias: bool = True
  dropout: float = 0.0
  impl: str = 'xla'
  out_stddev: float = 0.02
  train: bool = False
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: jax.Array, positions: jax.Array, segment_ids: jax.Array | None
  ) -> tuple[jax.Array, None]:
    """x [B, T, D] -> ([B, T, D], None), the pair that a scan over layers wants."""
    common = {'bias': self.bias, 'out_stddev': self.out_stddev, 'dtype': self.dtype}

    def norm(name):
      return Norm(self.norm, self.epsilon, self.bias, self.dtype, name=name)

    attention = Attention(
      self.heads, self.kv_heads, self.causal, self.theta, impl=self.impl, name='attention', **common
    )
    feed = FeedForward(self.hidden, self.activation, self.gated, name='feed_forward', **common)
    drop = nn.Dropout(self.dropout, deterministic=not self.train)

    x = constrain(x, 'batch', 'length', 'act_embed')
    y = constrain(norm('attention_norm')(x), 'batch', 'norm_length', 'act_embed')
    x += drop(constrain(attention(y, positions, segment_ids), 'batch', 'length', 'act_embed'))
    y = constrain(norm('feed_forward_norm')(x), 'batch', 'norm_length', 'act_embed')
    x += drop(constrain(feed(y), 'batch', 'length', 'act_embed'))
    return x, None


class Stack(nn.Module):
  """`depth` Blocks.

  Attributes:
    block: keyword arguments of `Block`.
    scan: one compiled block over stacked parameters ('blocks', a leading layer dimension) instead
      of
      `depth` copies ('block_0', ...).
    remat: recompute a block's activations in the backward pass instead of keeping them.
  """

  depth: int
  block: Mapping[str, Any]
  scan: bool = False
  remat: bool = False

  @nn.compact
  def __call__(
    self, x: jax.Array, positions: jax.Array, segment_ids: jax.Array | None, *, train: bool
  ) -> jax.Array:
    """x [B, T, D] -> [B, T, D]."""
    block = nn.remat(Block, prevent_cse=not self.scan) if self.remat else Block
    if not self.scan:
      for i in range(self.depth):
        x, _ = block(**self.block, train=train, name=f'block_{i}')(x, positions, segment_ids)
      return x
    scan: Any = nn.scan
    blocks = scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=(nn.broadcast, nn.broadcast),
      length=self.depth,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )
    return blocks(**self.block, train=train, name='blocks')(x, positions, segment_ids)[0]
