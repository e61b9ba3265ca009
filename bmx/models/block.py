"""A block of a transformer: attention and a feed-forward network around a residual stream.

B batch, T length, D width, F feed-forward.
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.models.attention import Attention, AttentionConfig
from bmx.models.layers import Dtype, Einsum, Norm, activation
from bmx.models.moe import Aux, MoE, MoEConfig
from bmx.ops.cache import LayerCache
from bmx.parallel import constrain, named


@dataclasses.dataclass(frozen=True)
class MlpConfig:
  """The arguments of `FeedForward`.

  Attributes:
    mlp_dim: F, width of the hidden layer.
    activation: name in `layers.ACTIVATIONS`.
    gated: whether the activation of one projection multiplies another.
    bias: whether the projections have one.
    stddev: of the initial kernels into F.
    out_stddev: of the initial kernel out of F.
  """

  mlp_dim: int
  activation: str = 'gelu'
  gated: bool = False
  bias: bool = True
  stddev: float = 0.02
  out_stddev: float = 0.02


@dataclasses.dataclass(frozen=True)
class BlockConfig:
  """The arguments of `Block`.

  Attributes:
    attention: of the attention.
    mlp: of the feed-forward network, or of the experts.
    norm: 'layer' or 'rms'.
    eps: added to the variance in norms.
    norm_bias: whether layer norms have one.
    post_norm: whether norms follow the residual sum (Vaswani et al. 2017, BERT) or precede
      attention and feed-forward (GPT-2, Llama).
    dropout: rate, on the terms that are added to the residual stream.
    layer_scale: initial value of a factor for each channel of these terms; 0: no factors.
    cross: whether a third term, attention to a context, stands between the two (the decoder of
      Vaswani et al. 2017).
    drop_path: share of examples that skip the terms of the last block of a Stack in training; that
      of earlier blocks grows linearly from 0.
    dtype: of the computation.
  """

  attention: AttentionConfig
  mlp: MlpConfig | MoEConfig
  norm: str = 'layer'
  eps: float = 1e-5
  norm_bias: bool = True
  post_norm: bool = False
  dropout: float = 0.0
  layer_scale: float = 0.0
  cross: bool = False
  drop_path: float = 0.0
  dtype: Dtype = jnp.float32


class FeedForward(nn.Module):
  """Computes D -> F -> D; gated: one projection's activation multiplies another (Shazeer 2020)."""

  config: MlpConfig
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, T, D] to [B, T, D]."""
    c, width = self.config, x.shape[-1]
    init = nn.initializers.normal(c.stddev)

    def up(name: str) -> jax.Array:
      shape, axes = (width, c.mlp_dim), ('embed', 'mlp')
      return Einsum('btd,df->btf', shape, axes, c.bias, init, dtype=self.dtype, name=name)(x)

    y = activation(c.activation)(up('gate') if c.gated else up('up'))
    y = constrain(y * up('up') if c.gated else y, 'batch', 'length', 'mlp')
    shape, axes = (c.mlp_dim, width), ('mlp', 'embed')
    init = nn.initializers.normal(c.out_stddev)
    return Einsum('btf,fd->btd', shape, axes, c.bias, init, dtype=self.dtype, name='down')(y)


class Block(nn.Module):
  """Adds attention(norm(x)) to x, then feed_forward(norm(x)); norms last with `post_norm`.

  With `cross`, attention to a context is added between them.
  Attention weights have no dropout, since fused kernels do not offer it.
  """

  config: BlockConfig
  train: bool = False

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array | None,
    cache: LayerCache | None = None,
    drop_path: jax.Array | None = None,
    context: jax.Array | None = None,
    context_ids: jax.Array | None = None,
    bias: jax.Array | None = None,
  ) -> tuple[jax.Array, tuple[Aux, LayerCache | None]]:
    """Applies the block.

    Args:
      x: [B, T, D].
      positions: int [B, T].
      segment_ids: int [B, T], or None if every row is one segment.
      cache: keys and values of earlier tokens.
      drop_path: share of examples that skip the terms of this block, float32 []; None: 0.
      context: [B, S, C], what `cross` reads; None if the cache has its memory.
      context_ids: int [B, S], see `Attention`.
      bias: float [1, N, T, S'], added to the scores of self-attention.

    Returns:
      ([B, T, D], (auxiliary values of the experts, {} without experts; the cache)): the pair that a
      scan over layers expects.
    """
    c = self.config

    def norm(name: str) -> Norm:
      return Norm(c.norm, c.eps, c.norm_bias, c.dtype, name=name)

    attention = Attention(c.attention, c.dtype, name='attention')
    feed = self._feed()
    dropout = nn.Dropout(c.dropout, deterministic=not self.train)
    attention_norm, feed_norm = norm('attention_norm'), norm('feed_forward_norm')

    def before(norm: Norm, x: jax.Array) -> jax.Array:
      return x if c.post_norm else norm(x)

    def after(norm: Norm, x: jax.Array) -> jax.Array:
      return norm(x) if c.post_norm else x

    def add(x: jax.Array, y: jax.Array, name: str) -> jax.Array:
      y = dropout(constrain(y, 'batch', 'length', 'act_embed'))
      if c.layer_scale:
        init = named(nn.initializers.constant(c.layer_scale), ('norm',))
        y *= self.param(name, init, y.shape[-1:], jnp.float32).astype(y.dtype).reshape(1, 1, -1)
      if drop_path is not None:
        keep = jax.random.bernoulli(self.make_rng('dropout'), 1 - drop_path, (y.shape[0], 1, 1))
        y = jnp.where(keep, y / (1 - drop_path).astype(y.dtype), 0)
      return x + y

    x = constrain(x, 'batch', 'length', 'act_embed')
    y = constrain(before(attention_norm, x), 'batch', 'norm_length', 'act_embed')
    y, cache = attention(y, positions, segment_ids, cache, bias=bias)
    x = after(attention_norm, add(x, y, 'attention_scale'))
    if c.cross:
      cross_norm = norm('cross_attention_norm')
      y = constrain(before(cross_norm, x), 'batch', 'norm_length', 'act_embed')
      y, cache = self._cross(y, positions, segment_ids, cache, context, context_ids)
      x = after(cross_norm, add(x, y, 'cross_attention_scale'))
    y = constrain(before(feed_norm, x), 'batch', 'norm_length', 'act_embed')
    y, aux = feed(y)
    x = after(feed_norm, add(x, y, 'feed_forward_scale'))
    return x, (aux, cache)

  def _cross(self, x, positions, segment_ids, cache, context, context_ids):
    """Attends to the context, or to its memory in the cache: ([B, T, D], the cache with it)."""
    attention = Attention(self.config.attention.cross, self.config.dtype, name='cross_attention')
    if context is not None:
      y, memory = attention(x, positions, segment_ids, None, context, context_ids)
      return y, None if cache is None else cache.remember(memory)
    if cache is None or cache.memory is None:
      raise InputError('context=None: expected what the cross-attention of a block reads')
    return attention(x, positions, segment_ids, cache.memory)[0], cache

  def _feed(self) -> Callable[[jax.Array], tuple[jax.Array, Aux]]:
    """Returns the feed-forward function: [B, T, D] -> ([B, T, D], aux)."""
    c = self.config
    if isinstance(c.mlp, MoEConfig):
      return MoE(c.mlp, c.dtype, name='experts')
    feed = FeedForward(c.mlp, c.dtype, name='feed_forward')
    return lambda y: (feed(y), {})
