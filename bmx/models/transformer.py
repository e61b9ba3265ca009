"""The transformer: Attention and FeedForward make a Block, Blocks make a Stack.

B batch, T length, D width, F feed-forward, N query heads, K key/value heads, H head size.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.models.layers import Dtype, Einsum, Norm, activation
from bmx.models.moe import Aux, MoE
from bmx.ops.attention import attend
from bmx.ops.cache import Cache, LayerCache
from bmx.ops.positions import rotary
from bmx.parallel import constrain, pipeline, stages, unbox


class Attention(nn.Module):
  """Multi-head attention with K key/value heads for N query heads (Ainslie et al. 2023).

  Attributes:
    theta: base of rotary positions; 0 is none. rope_scaling: see `positions.rotary`.
    window: a query sees this many of the nearest keys; 0 is all.
    head_dim: size of a head; 0 is width / heads.
    bias: of query, key and value. out_bias: of what they are summed up to.
  """

  heads: int
  kv_heads: int
  causal: bool = True
  theta: float = 0.0
  rope_scaling: Mapping[str, float] = dataclasses.field(default_factory=FrozenDict)
  window: int = 0
  head_dim: int = 0
  bias: bool = True
  out_bias: bool = True
  impl: str = 'xla'
  stddev: float = 0.02
  out_stddev: float = 0.02
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array | None,
    cache: LayerCache | None = None,
  ) -> tuple[jax.Array, LayerCache | None]:
    """x [B, T, D], positions int [B, T], segment_ids int [B, T] or None -> ([B, T, D], the cache
    with these tokens in it)."""
    width = x.shape[-1]
    if not self.head_dim and width % self.heads:
      raise InputError(f'width {width} is not divisible by {self.heads} heads')
    head_dim = self.head_dim or width // self.heads
    init = nn.initializers.normal(self.stddev)

    def project(heads, axis, name):
      shape, axes = (width, heads, head_dim), ('embed', axis, 'head')
      y = Einsum('btd,dnh->btnh', shape, axes, self.bias, init, dtype=self.dtype, name=name)(x)
      return constrain(y, 'batch', 'length', axis, None)

    q = project(self.heads, 'heads', 'query')
    k = project(self.kv_heads, 'kv', 'key')
    v = project(self.kv_heads, 'kv', 'value')
    if self.theta:
      q = rotary(q, positions, self.theta, self.rope_scaling)
      k = rotary(k, positions, self.theta, self.rope_scaling)
    if cache is None:
      y = attend(
        q, k, v, causal=self.causal, window=self.window, segment_ids=segment_ids,
        positions=positions, impl=self.impl,
      )  # fmt: skip
    else:
      cache = cache.write(k, v)
      y = cache.attend(q, self.window)
    shape, axes = (self.heads, head_dim, width), ('heads', 'head', 'embed')
    init = nn.initializers.normal(self.out_stddev)
    out = Einsum('btnh,nhd->btd', shape, axes, self.out_bias, init, dtype=self.dtype, name='out')
    return out(y), cache


class FeedForward(nn.Module):
  """D -> F -> D; gated, the activation of one projection multiplies another (Shazeer 2020)."""

  mlp_dim: int
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
      shape, axes = (width, self.mlp_dim), ('embed', 'mlp')
      return Einsum('btd,df->btf', shape, axes, self.bias, init, dtype=self.dtype, name=name)(x)

    y = activation(self.activation)(up('gate') if self.gated else up('up'))
    y = constrain(y * up('up') if self.gated else y, 'batch', 'length', 'mlp')
    shape, axes = (self.mlp_dim, width), ('mlp', 'embed')
    init = nn.initializers.normal(self.out_stddev)
    return Einsum('btf,fd->btd', shape, axes, self.bias, init, dtype=self.dtype, name='down')(y)


class Block(nn.Module):
  """x + attention(norm(x)), then x + feed_forward(norm(x)): pre-norm, as in GPT-2 and Llama. With
  `post_norm`, norm(x + attention(x)), then norm(x + feed_forward(x)): as in Vaswani et al. 2017 and
  BERT.

  Dropout acts on what is added to the residual stream; attention weights have none, since no fused
  kernel offers it. With `experts` the feed-forward is a mixture of them, see `moe.MoE`.
  """

  heads: int
  kv_heads: int
  mlp_dim: int
  causal: bool = True
  post_norm: bool = False
  theta: float = 0.0
  rope_scaling: Mapping[str, float] = dataclasses.field(default_factory=FrozenDict)
  window: int = 0
  head_dim: int = 0
  experts: int = 0
  top_k: int = 2
  capacity_factor: float = 1.25
  norm: str = 'layer'
  eps: float = 1e-5
  activation: str = 'gelu'
  gated: bool = False
  bias: bool = True  # of norms and the feed-forward
  qkv_bias: bool = True
  out_bias: bool = True
  dropout: float = 0.0
  impl: str = 'xla'
  out_stddev: float = 0.02
  train: bool = False
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array | None,
    cache: LayerCache | None = None,
  ) -> tuple[jax.Array, tuple[Aux, LayerCache | None]]:
    """x [B, T, D] -> ([B, T, D], (what the experts tell, {} without; the cache)), the pair that a
    scan over layers wants."""
    common = {'out_stddev': self.out_stddev, 'dtype': self.dtype}

    def norm(name):
      return Norm(self.norm, self.eps, self.bias, self.dtype, name=name)

    attention = Attention(
      self.heads, self.kv_heads, self.causal, self.theta, self.rope_scaling, self.window,
      self.head_dim, self.qkv_bias, self.out_bias, self.impl, name='attention', **common,
    )  # fmt: skip
    feed = self._feed(common)
    drop = nn.Dropout(self.dropout, deterministic=not self.train)
    attention_norm, feed_norm = norm('attention_norm'), norm('feed_forward_norm')
    before = lambda norm, x: x if self.post_norm else norm(x)
    after = lambda norm, x: norm(x) if self.post_norm else x

    x = constrain(x, 'batch', 'length', 'act_embed')
    y = constrain(before(attention_norm, x), 'batch', 'norm_length', 'act_embed')
    y, cache = attention(y, positions, segment_ids, cache)
    x = after(attention_norm, x + drop(constrain(y, 'batch', 'length', 'act_embed')))
    y = constrain(before(feed_norm, x), 'batch', 'norm_length', 'act_embed')
    y, aux = feed(y)
    x = after(feed_norm, x + drop(constrain(y, 'batch', 'length', 'act_embed')))
    return x, (aux, cache)

  def _feed(self, common: Mapping[str, Any]) -> Any:
    """[B, T, D] -> ([B, T, D], aux)."""
    if not self.experts:
      feed = FeedForward(
        self.mlp_dim, self.activation, self.gated, self.bias, name='feed_forward', **common
      )
      return lambda y: (feed(y), {})
    return MoE(
      self.mlp_dim, self.experts, self.top_k, self.capacity_factor, self.activation, self.gated,
      out_stddev=self.out_stddev, dtype=self.dtype, name='experts',
    )  # fmt: skip


STACKED, ONE = 'blocks/', 'block_'  # how a Stack names its layers, see `Stack.scan`


def layers_apart(params: Any) -> dict[str, tuple[jax.Array, int | None]]:
  """Parameters as a Stack without scan names them: 'stack/block_3/...' -> (the stacked leaf, 3);
  what is in no stack -> (the leaf, None). Nothing is copied."""
  found = {}
  for name, leaf in tree.named(params).items():
    if f'/{STACKED}' not in name:
      found[name] = leaf, None
      continue
    for i in range(leaf.shape[0]):
      found[name.replace(f'/{STACKED}', f'/{ONE}{i}/')] = leaf, i
  return found


KERNELS = ('dot_product_attention_fwd_wrapper', 'pallas_call')  # jax's cuDNN attention, and splash


def _gives_product(primitive: Any, *_: Any, **params: Any) -> bool:
  """A policy of `jax.checkpoint`: keep products with weights, which have no batch dimension, and
  what attention kernels gave. Scores of plain attention, [B, N, T, S], are not kept."""
  if primitive.name == 'dot_general':
    return not any(params['dimension_numbers'][1])
  return primitive.name in KERNELS


REMAT = {'none': None, 'dots': _gives_product, 'full': None}


class Stack(nn.Module):
  """`depth` Blocks; where the mesh has an axis 'pipe', in stages.

  Attributes:
    block: keyword arguments of `Block`.
    scan: one compiled block over stacked parameters ('blocks', a leading layer dimension) instead
      of `depth` copies ('block_0', ...). A pipeline needs it.
    remat: what the backward pass computes again instead of keeping it: 'none'; 'dots', all but
      what products with weights and fused attention gave (a ring and experts run again); 'full'
      of a block.
    microbatches: of a pipeline; 0 is twice its stages, which leaves a third of the time as bubble.

  What experts tell is sown into the collection 'aux', each the mean over layers.
  """

  depth: int
  block: Mapping[str, Any]
  scan: bool = False
  remat: str = 'none'
  microbatches: int = 0

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    train: bool = False,
    cache: Cache | None = None,
  ) -> tuple[jax.Array, Cache | None]:
    """x [B, T, D] -> ([B, T, D], the cache with these tokens in it).

    Raises InputError for a cache in a scanned or pipelined stack: `scan=False` is the same model.
    """
    if stages() > 1 and not self.scan:
      raise InputError(f'mesh.pipe={stages()} needs stacked layers: scan=True')
    if cache is not None and self.scan:
      raise InputError('a cache is kept by layers one by one: scan=False')
    if stages() > 1 and not self.is_initializing():
      x, aux = self._pipeline(x, positions, segment_ids, train)
    elif self.scan:
      x, aux = self._scan(x, positions, segment_ids, train)
    else:
      x, aux, cache = self._loop(x, positions, segment_ids, train, cache)
    for name, value in aux.items():
      self.sow('aux', name, value.sum() / self.depth)
    return x, cache

  def _loop(self, x, positions, segment_ids, train, cache):
    block, total, layers = self._block(), {}, []
    for i in range(self.depth):
      given = None if cache is None else cache.layer(i)
      one = block(**self.block, train=train, name=f'block_{i}')
      x, (aux, layer) = one(x, positions, segment_ids, given)
      total = {k: total.get(k, 0.0) + v for k, v in aux.items()}
      layers.append(layer)
    return x, total, None if cache is None else cache.advance(layers, x.shape[1])

  def _block(self) -> Any:
    if self.remat not in REMAT:
      raise InputError(f'remat {self.remat!r} is not one of {", ".join(REMAT)}')
    if self.remat == 'none':
      return Block
    return nn.remat(Block, prevent_cse=not self.scan, policy=REMAT[self.remat])

  def _scan(self, x, positions, segment_ids, train):
    scan: Any = nn.scan
    blocks = scan(
      self._block(),
      variable_axes={'params': 0},
      split_rngs={'params': True, 'dropout': True},
      in_axes=(nn.broadcast, nn.broadcast),
      length=self.depth,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )
    x, (aux, _) = blocks(**self.block, train=train, name='blocks')(x, positions, segment_ids)
    return x, aux

  def _pipeline(self, x, positions, segment_ids, train):
    params = unbox(self.get_variable('params', 'blocks'))
    noisy = train and self.block.get('dropout', 0)
    key = self.make_rng('dropout') if noisy else None
    block = Block(**self.block, train=train, parent=None)

    def apply(params, number, inputs):
      rngs = {'dropout': jax.random.fold_in(key, number)} if key is not None else {}
      x, positions, segment_ids = inputs
      x, (aux, _) = block.apply({'params': params}, x, positions, segment_ids, rngs=rngs)
      return (x, positions, segment_ids), aux

    inputs = (x, positions, segment_ids)
    (x, _, _), aux = pipeline(apply, params, inputs, self.microbatches or 2 * stages())
    return x, aux
