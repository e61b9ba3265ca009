"""A transformer over embedded tokens, and the text decoder of an encoder-decoder.

B batch, T length, S length of the context, D width, N heads, V vocabulary.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.models.attention import AttentionConfig
from bmx.models.block import BlockConfig, MlpConfig
from bmx.models.head import TextHead
from bmx.models.layers import Dtype, Embed, Norm, check_rate, check_sizes, token_positions
from bmx.models.stack import Stack
from bmx.ops.cache import Cache, length_of
from bmx.ops.masks import MASK_VALUE
from bmx.ops.positions import relative_buckets, sinusoidal
from bmx.parallel import constrain, gather, named

POSITIONS = ('learned', 'sinusoidal', 'sinusoidal_halves', 'rotary', 'relative', 'none')


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """The arguments of `Transformer`.

  Attributes:
    width: size of the hidden states.
    depth: number of blocks.
    heads: query heads.
    kv_heads: key/value heads; 0 is one for each query head.
    head_dim: size of a head; 0 is width / heads.
    mlp_dim: width of the feed-forward layers; 0 is 4 × width.
    max_seq_len: longest sequence; 0: no limit, without learned positions.
    causal: whether a token attends to itself and earlier tokens only.
    cross: whether the blocks have cross-attention.
    positions: 'learned'; 'sinusoidal', sines and cosines in turns, or 'sinusoidal_halves', one half
      of each; 'rotary'; 'relative', a bias of the scores by distance; 'none'.
    first_position: the row of a learned table that a sequence begins with (2 in BART).
    theta: base of the rotary frequencies.
    relative_buckets: distances that 'relative' distinguishes.
    relative_distance: tokens beyond which all distances are one.
    norm: 'layer' or 'rms'.
    eps: added to the variance in a norm.
    post_norm: whether norms follow the residual sum, or precede attention and feed-forward.
    embed_norm: whether a norm follows the embeddings (BART).
    norm_out: whether a norm follows the last block.
    activation: of the feed-forward layers, a name in `layers.ACTIVATIONS`.
    gated: whether the activation of one projection multiplies another.
    bias: whether projections and layer norms have one.
    key_bias: whether the keys of attention have one, where `bias` holds.
    scale: of the scores of attention; 0 is 1 / √(size of a head).
    dropout: share of units that training drops.
    attention: implementation, see `ops.attention.attend`.
    scan: one compiled block over stacked parameters, see `Stack`.
    remat: see `Stack`.
    dtype: of the computation.
  """

  width: int
  depth: int
  heads: int
  kv_heads: int = 0
  head_dim: int = 0
  mlp_dim: int = 0
  max_seq_len: int = 0
  causal: bool = False
  cross: bool = False
  positions: str = 'sinusoidal'
  first_position: int = 0
  theta: float = 10_000.0
  relative_buckets: int = 32
  relative_distance: int = 128
  norm: str = 'layer'
  eps: float = 1e-5
  post_norm: bool = False
  embed_norm: bool = False
  norm_out: bool = True
  activation: str = 'relu'
  gated: bool = False
  bias: bool = True
  key_bias: bool = True
  scale: float = 0.0
  dropout: float = 0.0
  attention: str = 'xla'
  scan: bool = False
  remat: str = 'none'
  dtype: Dtype = jnp.float32

  @property
  def block(self) -> BlockConfig:
    """The arguments of its blocks."""
    terms = 3 if self.cross else 2  # of a block, added to the residual stream
    out_stddev = 0.02 / (terms * self.depth) ** 0.5
    attention = AttentionConfig(
      heads=self.heads,
      kv_heads=self.kv_heads or self.heads,
      head_dim=self.head_dim,
      causal=self.causal,
      theta=self.theta if self.positions == 'rotary' else 0.0,
      bias=self.bias,
      key_bias=self.key_bias,
      out_bias=self.bias,
      scale=self.scale,
      impl=self.attention,
      out_stddev=out_stddev,
    )
    mlp = MlpConfig(
      self.mlp_dim or 4 * self.width, self.activation, self.gated, self.bias, out_stddev=out_stddev
    )
    return BlockConfig(
      attention, mlp, self.norm, self.eps, self.bias, self.post_norm, self.dropout,
      cross=self.cross, dtype=self.dtype,
    )  # fmt: skip

  def check(self) -> None:
    """Raises InputError if a value is out of range."""
    if self.positions not in POSITIONS:
      raise InputError(f'positions={self.positions!r}: expected one of {", ".join(POSITIONS)}')
    if self.positions == 'learned' and not self.max_seq_len:
      raise InputError("max_seq_len=0: expected the rows of the table of positions='learned'")
    if self.positions.startswith('sinusoidal') and self.width % 2:
      raise InputError(f'width={self.width}: expected an even number for sinusoidal positions')
    check_rate(self.dropout)
    check_sizes(width=(self.width,), depth=(self.depth,), heads=(self.heads,))


class Transformer(nn.Module):
  """Embedded tokens [B, T, D] -> hidden states [B, T, D].

  Attributes:
    config: its arguments.
  """

  config: TransformerConfig

  def setup(self):
    c = self.config
    c.check()
    normal = nn.initializers.normal(0.02)
    if c.positions == 'learned':
      shape = c.max_seq_len + c.first_position, c.width
      self.position = self.param('position', named(normal, ('position', 'embed')), shape)
    if c.positions == 'relative':
      shape = c.relative_buckets, c.heads
      self.relative = self.param('relative', named(normal, (None, 'heads')), shape)
    if c.embed_norm:
      self.norm = Norm(c.norm, c.eps, c.bias, c.dtype)
    self.drop = nn.Dropout(c.dropout)
    self.stack = Stack(c.depth, c.block, c.scan, c.remat)
    if c.norm_out:
      self.norm_out = Norm(c.norm, c.eps, c.bias, c.dtype)

  def transform(
    self,
    x: jax.Array,
    positions: jax.Array,
    segment_ids: jax.Array | None = None,
    *,
    cache: Cache | None = None,
    context: jax.Array | None = None,
    context_ids: jax.Array | None = None,
    train: bool = False,
  ) -> tuple[jax.Array, Cache | None]:
    """Computes hidden states.

    Args:
      x: [B, T, D], embedded tokens.
      positions: int [B, T].
      segment_ids: int [B, T], 0 for padding; None: every row is one segment.
      cache: keys and values of earlier tokens.
      context: [B, S, C], what cross-attention reads; None if the cache has its memory.
      context_ids: int [B, S], see `Attention`.
      train: whether dropout is active.

    Returns:
      ([B, T, D], the cache with these tokens and the memory of the context).
    """
    c = self.config
    if c.positions == 'learned':
      table = gather(self.position.astype(x.dtype), ('position', 'embed'))
      x += jnp.take(table, positions + c.first_position, axis=0)
    if c.positions.startswith('sinusoidal'):
      x += sinusoidal(positions, c.width, c.positions.endswith('halves')).astype(x.dtype)
    x = self.norm(x) if c.embed_norm else x
    x = constrain(self.drop(x, deterministic=not train), 'batch', 'length', 'act_embed')
    x, cache = self.stack(
      x, positions, segment_ids, train=train, cache=cache, context=context,
      context_ids=context_ids, bias=self._bias(x.shape[1], cache),
    )  # fmt: skip
    return self.norm_out(x) if c.norm_out else x, cache

  def _bias(self, length: int, cache: Cache | None) -> jax.Array | None:
    """Returns the bias of relative positions [1, N, T, S]; S: tokens, or slots of the cache."""
    c = self.config
    if c.positions != 'relative':
      return None
    start, keys = (0, length) if cache is None else (cache.at, length_of(cache.keys[0]))
    distance = jnp.arange(keys)[None, :] - (start + jnp.arange(length))[:, None]
    bucket = relative_buckets(distance, c.relative_buckets, c.relative_distance, c.causal)
    table = gather(self.relative, (None, 'heads'))
    return constrain(jnp.take(table, bucket, axis=0).transpose(2, 0, 1)[None],
                     None, 'heads', None, None)  # fmt: skip


class TextDecoder(TextHead, Transformer):
  """Tokens, and a context that an encoder made, -> logits of the next token.

  Attributes:
    vocab_size: tokens the model knows.
    vocab_pad: rows that the token table stores besides, so that axes divide it.
    tied: whether the output head is the token table.
    head_bias: whether the logits have a bias.
    embed_scale: factor of embedded tokens; √D in Vaswani et al. 2017.
    head_scale: factor of hidden states before the head; 1 / √D in T5.
    embed_stddev: of the initial table.
    suppressed: ids that generation never writes, such as padding.
    kv_cache: of generation, 'auto' or 'int8', see `gpt.GPT`.
  """

  vocab_size: int = 0
  vocab_pad: int = 0
  tied: bool = True
  head_bias: bool = False
  embed_scale: float = 1.0
  head_scale: float = 1.0
  embed_stddev: float = 0.02
  suppressed: tuple[int, ...] = ()
  kv_cache: str = 'auto'

  def setup(self):
    super().setup()
    c = self.config
    check_sizes(vocab_size=(self.vocab_size,))
    if self.kv_cache not in ('auto', 'int8'):
      raise InputError(f"kv_cache={self.kv_cache!r}: expected 'auto' or 'int8'")
    normal = nn.initializers.normal(self.embed_stddev)
    table = lambda: Embed(
      self.vocab_size, c.width, pad=self.vocab_pad, table_init=normal, dtype=c.dtype
    )
    self.embed = table()
    if not self.tied:
      self.head = table()
    if self.head_bias:
      zeros = named(nn.initializers.zeros_init(), ('vocab',))
      self.bias = self.param('bias', zeros, (self.vocab_size + self.vocab_pad,), jnp.float32)

  def embedded(self, tokens: jax.Array) -> jax.Array:
    """Embeds tokens int [B, T] -> [B, T, D], without positions."""
    x = self.embed(tokens)
    return x if self.embed_scale == 1 else x * jnp.asarray(self.embed_scale, x.dtype)

  def hidden_states(
    self,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    *,
    context: jax.Array,
    context_ids: jax.Array | None = None,
    train: bool = False,
  ) -> jax.Array:
    """Returns hidden states [B, T, D] of tokens int [B, T], as the head's table reads them.

    The other arguments are those of `transform`; positions None: 0, 1, 2, ...
    """
    positions = token_positions(tokens, positions, self.config.max_seq_len)
    x, _ = self.transform(
      self.embedded(tokens), positions, segment_ids, context=context, context_ids=context_ids,
      train=train,
    )  # fmt: skip
    return self._scaled(x)

  def start(
    self,
    tokens: jax.Array,
    first: jax.Array,
    slots: int,
    context: jax.Array,
    context_ids: jax.Array | None,
  ) -> tuple[jax.Array, Cache]:
    """Reads a context and prompts into a new cache.

    Args:
      tokens: int [B, P], padded on the left.
      first: int [B], the slot of each row's first token.
      slots: tokens that the cache holds, padding included.
      context: [B, S, C].
      context_ids: int [B, S], 1 for a token of the context and 0 for padding; None: no padding.

    Returns:
      (hidden [B, P, D], the cache with the memory of the context).
    """
    c = self.config
    heads, size = c.kv_heads or c.heads, c.head_dim or c.width // c.heads
    dtype = jnp.int8 if self.kv_cache == 'int8' else c.dtype
    cache = Cache.empty(c.depth, len(tokens), slots, heads, size, dtype, first)
    return self.extend(tokens, cache, context, context_ids)

  def extend(
    self,
    tokens: jax.Array,
    cache: Cache,
    context: jax.Array | None = None,
    context_ids: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache]:
    """Reads the next tokens of every row, int [B, T] -> (hidden [B, T, D], the cache with them)."""
    positions = cache.positions(tokens.shape[1])
    x, new = self.transform(
      self.embedded(tokens), positions, cache=cache, context=context, context_ids=context_ids
    )
    assert new is not None
    return self._scaled(x), new

  def _scaled(self, x: jax.Array) -> jax.Array:
    return x if self.head_scale == 1 else x * jnp.asarray(self.head_scale, x.dtype)

  def scores(self, hidden: jax.Array) -> jax.Array:
    """Maps hidden states [B, T, D] to [B, T, V + pad], those of the padding among them."""
    y = super().scores(hidden)
    if self.head_bias:
      y += gather(self.bias.astype(y.dtype), ('vocab',))[None, None]
    return y

  def next_logits(self, hidden: jax.Array) -> jax.Array:
    """Returns `logits` of generation: `suppressed` ids have no probability."""
    y = self.logits(hidden)
    if not self.suppressed:
      return y
    return y.at[..., jnp.array(self.suppressed)].set(MASK_VALUE)
