"""Decoder-only language models: GPT-2 and the Llama family, by their arguments."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Facts, Variables
from bmx.models.attention import AttentionConfig
from bmx.models.block import BlockConfig, MlpConfig
from bmx.models.head import LanguageHead
from bmx.models.layers import Dtype, Embed, Norm, check_rate, check_sizes, token_positions
from bmx.models.moe import MoEConfig
from bmx.models.stack import Stack, unstacked
from bmx.ops.cache import Cache
from bmx.ops.positions import sinusoidal
from bmx.ops.slots import SlotCache
from bmx.parallel import constrain, gather, named


class GPT(LanguageHead):
  """tokens -> logits of the next token.

  Attributes:
    vocab_size: tokens the model knows. `vocab_pad` more rows are stored, so that axes divide; they
      get no probability and are not counted as parameters.
    max_seq_len: longest sequence; a longer one is an error.
    width: size of the hidden states.
    depth: number of blocks.
    heads: query heads.
    kv_heads: key/value heads; 0 is one for each query head.
    head_dim: size of a head; 0 is width / heads.
    mlp_dim: width of the feed-forward layers; 0 is 4 × width.
    positions: 'learned', 'sinusoidal' or 'rotary'.
    theta: base of the rotary frequencies.
    rope_scaling: arguments of a kind of `positions.ROPE_SCALING`; empty: none.
    norm: 'layer' or 'rms'.
    eps: added to the variance in a norm.
    activation: of the feed-forward layers: gelu, gelu_exact, relu, silu, tanh or sigmoid.
    gated: SiLU- or GELU-gated feed-forward.
    bias: of every layer.
    qkv_bias: of query, key and value, where `bias` is False.
    out_bias: of the sum of the attention heads, where `bias` is False.
    mlp_bias: of the feed-forward layers, where `bias` is False.
    qk_norm: whether each head's query and key have an RMS norm (Qwen 3).
    tied: the output head is the token table.
    dropout: share of units that training drops.
    vocab_pad: rows that the token table stores besides, so that axes divide it.
    attention: 'xla', 'cudnn', 'splash', 'ring', or 'auto', by the kind of device.
    window: positions that a query sees, the nearest and its own included; 0 is all before it.
    kv_cache: of generation: 'auto', keys and values in `dtype`; 'int8', codes with a scale for each
      head and position.
    experts: of each block, see `moe.MoE`; 0 is one feed-forward network.
    top_k: experts of a token.
    capacity_factor: tokens that an expert has place for, as a multiple of an even share.
    load_balance_coef: weight of the loss that balances the experts.
    router_z_coef: weight of the loss that keeps the router's logits small.
    scan: one compiled block over stacked parameters instead of `depth` copies, see `Stack`.
    remat: results that the backward pass computes again: 'none', 'dots' or 'full', see `Stack`.
    microbatches: of a pipeline; 0 is twice its stages.
    dtype: of the computation.
  """

  vocab_size: int
  max_seq_len: int
  width: int = 128
  depth: int = 4
  heads: int = 4
  kv_heads: int = 0
  head_dim: int = 0
  mlp_dim: int = 0
  positions: str = 'learned'
  theta: float = 10_000.0
  rope_scaling: Mapping[str, float] = dataclasses.field(default_factory=FrozenDict)
  norm: str = 'layer'
  eps: float = 1e-5
  activation: str = 'gelu'
  gated: bool = False
  bias: bool = True
  qkv_bias: bool = False
  out_bias: bool = False
  mlp_bias: bool = False
  qk_norm: bool = False
  tied: bool = True
  dropout: float = 0.0
  vocab_pad: int = 0
  attention: str = 'xla'
  window: int = 0
  kv_cache: str = 'auto'
  experts: int = 0
  top_k: int = 2
  capacity_factor: float = 1.25
  load_balance_coef: float = 0.01
  router_z_coef: float = 0.001
  scan: bool = False
  remat: str = 'none'
  microbatches: int = 0
  dtype: Dtype = jnp.float32

  def __post_init__(self):
    object.__setattr__(self, 'rope_scaling', FrozenDict(self.rope_scaling))  # modules are hashed
    super().__post_init__()

  @property
  def facts(self) -> Facts:
    """Facts of the model. The balance of experts depends on all tokens of a batch."""
    aux_losses = {'balance': self.load_balance_coef, 'router_z': self.router_z_coef}
    return Facts(
      vocab_size=self.vocab_size,
      max_seq_len=self.max_seq_len,
      coupling='statistics' if self.experts else 'none',
      aux_losses=aux_losses if self.experts else {},
      padded_parameters=self.vocab_pad * self.width * (1 if self.tied else 2),
      chunked_head=True,
    )

  def setup(self):
    if self.positions not in ('learned', 'sinusoidal', 'rotary'):
      raise InputError(
        f"positions={self.positions!r}: expected 'learned', 'sinusoidal' or 'rotary'"
      )
    if self.kv_cache not in ('auto', 'int8'):
      raise InputError(f"kv_cache={self.kv_cache!r}: expected 'auto' or 'int8'")
    check_rate(self.dropout)
    check_sizes(
      vocab_size=(self.vocab_size,),
      max_seq_len=(self.max_seq_len,),
      width=(self.width,),
      depth=(self.depth,),
    )
    pad, dtype = self.vocab_pad, self.dtype
    self.embed = Embed(self.vocab_size, self.width, pad=pad, dtype=dtype)
    if not self.tied:
      self.head = Embed(self.vocab_size, self.width, pad=pad, dtype=dtype)
    if self.positions == 'learned':
      table = named(nn.initializers.normal(0.02), ('position', 'embed'))
      self.position = self.param('position', table, (self.max_seq_len, self.width), jnp.float32)
    self.drop = nn.Dropout(self.dropout)
    self.stack = Stack(self.depth, self._block(), self.scan, self.remat, self.microbatches)
    self.norm_out = Norm(self.norm, self.eps, self.bias, dtype)

  def _block(self) -> BlockConfig:
    # Each block adds twice to the residual stream (Radford et al. 2019, section 2.3).
    out_stddev = 0.02 / (2 * self.depth) ** 0.5
    attention = AttentionConfig(
      heads=self.heads,
      kv_heads=self.kv_heads or self.heads,
      head_dim=self.head_dim,
      theta=self.theta if self.positions == 'rotary' else 0.0,
      rope_scaling=self.rope_scaling,
      window=self.window,
      bias=self.bias or self.qkv_bias,
      out_bias=self.bias or self.out_bias,
      qk_norm=self.qk_norm,
      eps=self.eps,
      impl=self.attention,
      out_stddev=out_stddev,
    )
    common = {'activation': self.activation, 'gated': self.gated, 'out_stddev': out_stddev}
    mlp_dim = self.mlp_dim or 4 * self.width
    if self.experts:
      mlp = MoEConfig(mlp_dim, self.experts, self.top_k, self.capacity_factor, **common)
    else:
      mlp = MlpConfig(mlp_dim, bias=self.bias or self.mlp_bias, **common)
    return BlockConfig(
      attention,
      mlp,
      norm=self.norm,
      eps=self.eps,
      norm_bias=self.bias or self.mlp_bias,
      dropout=self.dropout,
      dtype=self.dtype,
    )

  def hidden_states(
    self,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Returns the inputs of the head; tokens, positions, segment_ids int [B, T] -> [B, T, D]."""
    positions = token_positions(tokens, positions, self.max_seq_len)
    x = self._embed(tokens, positions, train)
    return self.norm_out(self.stack(x, positions, segment_ids, train=train)[0])

  def _embed(self, tokens, positions, train=False):
    x = self.embed(tokens)
    if self.positions == 'learned':
      table = gather(self.position.astype(x.dtype), ('position', 'embed'))
      x += jnp.take(table, positions, axis=0)
    if self.positions == 'sinusoidal':
      x += sinusoidal(positions, self.width).astype(x.dtype)
    return constrain(self.drop(x, deterministic=not train), 'batch', 'length', 'act_embed')

  def for_decoding(self, cache: str = 'auto') -> tuple['GPT', Callable[[Variables], Variables]]:
    """Returns the same model with layers one by one, and a function that gives it the weights.

    Args:
      cache: 'int8', or 'auto' for the model's `kv_cache`.

    The function takes variables: 'params', and 'quantized' where the model has stored kernels.
    Weights are cast to `dtype` except those that training keeps in float32 (norms, routers) and
    codes with their scales. An expert accepts every token: none may be dropped because of the
    rows beside it.
    """
    experts: dict[str, Any] = {'capacity_factor': 0.0} if self.experts else {}
    kv_cache = self.kv_cache if cache == 'auto' else cache
    model = self.clone(scan=False, remat='none', attention='xla', kv_cache=kv_cache, **experts)

    def cast_weight(name: str, x: jax.Array) -> jax.Array:
      kept = 'norm' in name or 'router' in name or not name.startswith('params/')
      return x if kept else x.astype(self.dtype)

    return model, lambda variables: tree.map_named(cast_weight, unstacked(variables))

  def prefill(self, inputs: Mapping[str, Any], slots: int) -> tuple[jax.Array, Cache]:
    """Reads prompts into a new cache.

    Args:
      inputs: 'tokens' int [B, P], padded on the left; 'first' int [B], the slot of each row's first
        token.
      slots: tokens that the cache holds, padding included.

    Returns:
      (hidden [B, 1, D] of the last token, the cache).
    """
    tokens = inputs['tokens']
    hidden, cache = self.extend(tokens, self.empty_cache(len(tokens), slots, inputs['first']))
    return hidden[:, -1:], cache

  def empty_cache(self, batch: int, slots: int, first: jax.Array) -> Cache:
    """Returns a cache for `extend`. first int [B]: the slots of rows' first tokens."""
    heads, size = self.kv_heads or self.heads, self.head_dim or self.width // self.heads
    dtype = jnp.int8 if self.kv_cache == 'int8' else self.dtype
    return Cache.empty(self.depth, batch, slots, heads, size, dtype, first)

  def slot_cache(self, rows: int, slots: int) -> SlotCache:
    """Returns a cache for `extend` whose rows begin and end on their own."""
    heads, size = self.kv_heads or self.heads, self.head_dim or self.width // self.heads
    dtype = jnp.int8 if self.kv_cache == 'int8' else self.dtype
    return SlotCache.empty(self.depth, rows, slots, heads, size, dtype)

  def extend(self, tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
    """Reads the next tokens of every row, int [B, T] -> (hidden [B, T, D], the cache with them)."""
    positions = cache.positions(tokens.shape[1])
    x, new = self.stack(self._embed(tokens, positions), positions, cache=cache)
    return self.norm_out(x), new
