"""Images and texts in one space: two towers whose embeddings are compared by their angle.

B batch, T tokens, D width, E size of an embedding.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.core.types import Facts, facts_of
from bmx.models.attention import AttentionConfig
from bmx.models.block import BlockConfig, MlpConfig
from bmx.models.layers import Dtype, Einsum, Embed, Norm, check_rate, check_sizes, token_positions
from bmx.models.stack import Stack
from bmx.parallel import constrain, gather, named

POOLS = ('end', 'last')


class TextTower(nn.Module):
  """The text tower of CLIP or SigLIP: tokens -> an embedding of the whole text.

  Of CLIP, the default: each token attends to itself and those before it. The state of the first
  `end_token` of a row, after the last norm, is projected; tokens behind it change nothing.

  That of SigLIP has `causal=False, pool='last', head_bias=True`: it reads padding like text.

  Source: Radford et al. 2021, section 2.4; the sizes of its B models are the defaults. Zhai et al.
  2023.

  Attributes:
    vocab_size: tokens the model knows; `vocab_pad` more rows are stored, see `gpt.GPT`.
    max_seq_len: longest sequence.
    num_outputs: E, size of the embedding.
    end_token: id of the token that ends a text; only pool='end' reads it.
    width: D, size of the hidden states.
    depth: number of blocks.
    heads: attention heads.
    mlp_dim: width of the feed-forward layers; 0 is 4 × width.
    causal: whether a token attends to itself and those before it only, not to all of the row.
    pool: 'end', the state of the first `end_token`; or 'last', of the last token,
      which SigLIP was trained to read at the end of `max_seq_len` tokens.
    head_bias: whether the projection has one.
    activation: of the feed-forward layers, a name in `layers.ACTIVATIONS`.
    eps: added to the variance in a norm.
    dropout: share of units that training drops.
    vocab_pad: rows that the token table stores besides, so that axes divide it.
    attention: 'xla', 'cudnn', 'splash', or 'auto', by the kind of device.
    scan: one compiled block over stacked parameters instead of `depth` copies, see `Stack`.
    remat: results that the backward pass computes again: 'none', 'dots' or 'full', see `Stack`.
    dtype: of the computation.
  """

  vocab_size: int
  max_seq_len: int
  num_outputs: int
  end_token: int
  width: int = 512
  depth: int = 12
  heads: int = 8
  mlp_dim: int = 0
  causal: bool = True
  pool: str = 'end'
  head_bias: bool = False
  activation: str = 'quick_gelu'
  eps: float = 1e-5
  dropout: float = 0.0
  vocab_pad: int = 0
  attention: str = 'xla'
  scan: bool = False
  remat: str = 'none'
  dtype: Dtype = jnp.float32

  @property
  def facts(self) -> Facts:
    """Facts of the model."""
    return Facts(
      vocab_size=self.vocab_size,
      max_seq_len=self.max_seq_len,
      num_outputs=self.num_outputs,
      padded_parameters=self.vocab_pad * self.width,
    )

  def setup(self):
    check_rate(self.dropout)
    check_sizes(
      vocab_size=(self.vocab_size,),
      max_seq_len=(self.max_seq_len,),
      num_outputs=(self.num_outputs,),
      width=(self.width,),
      depth=(self.depth,),
    )
    if self.pool == 'end':
      _check_end(self.end_token, self.vocab_size)
    if self.pool not in POOLS:
      raise InputError(f'pool={self.pool!r}: expected one of {", ".join(map(repr, POOLS))}')
    if self.causal and self.pool == 'last':
      raise InputError("pool='last': expected causal=False, as the last tokens of most texts are "
                       'padding')  # fmt: skip
    self.embed = Embed(self.vocab_size, self.width, pad=self.vocab_pad, dtype=self.dtype)
    table = named(nn.initializers.normal(0.01), ('position', 'embed'))
    self.position = self.param('position', table, (self.max_seq_len, self.width), jnp.float32)
    self.drop = nn.Dropout(self.dropout)
    block = BlockConfig(
      AttentionConfig(self.heads, self.heads, causal=self.causal, impl=self.attention),
      MlpConfig(self.mlp_dim or 4 * self.width, self.activation),
      eps=self.eps,
      dropout=self.dropout,
      dtype=self.dtype,
    )
    self.stack = Stack(self.depth, block, self.scan, self.remat)
    self.norm_out = Norm('layer', self.eps, dtype=self.dtype)
    shape, axes = (self.width, self.num_outputs), ('embed', 'classes')
    self.head = Einsum('bd,dc->bc', shape, axes, bias=self.head_bias, dtype=self.dtype)

  def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """Embeds tokens int [B, T] -> [B, E]; a row without `end_token` is summarized by its first."""
    positions = token_positions(tokens, None, self.max_seq_len)
    table = gather(self.position.astype(self.dtype), ('position', 'embed'))
    x = self.embed(tokens) + table[None, : tokens.shape[1]]
    x = constrain(self.drop(x, deterministic=not train), 'batch', 'length', 'act_embed')
    x = self.stack(x, positions, train=train)[0]
    return self.head(self.norm_out(self._pooled(x, tokens)))

  def _pooled(self, x: jax.Array, tokens: jax.Array) -> jax.Array:
    """Chooses the state that stands for each row: [B, T, D], [B, T] -> [B, D]."""
    if self.pool == 'last':
      return x[:, -1]
    end = (tokens == self.end_token).argmax(1)
    return jnp.take_along_axis(x, end[:, None, None], axis=1)[:, 0]


class BagOfTokens(nn.Module):
  """A text tower without order: the sum of a learned vector for each token of a text.

  It learns from a few hundred pairs, where a transformer memorizes them (`emoji_clip`).

  Attributes:
    vocab_size: tokens the model knows; `vocab_pad` more rows are stored, see `gpt.GPT`.
    max_seq_len: longest sequence.
    num_outputs: E, size of the embedding.
    end_token: id of the token that ends a text; tokens behind it (padding) do not count.
    dropout: share of the tokens before the end that training leaves out.
    vocab_pad: rows that the token table stores besides, so that axes divide it.
    dtype: of the computation.
  """

  vocab_size: int
  max_seq_len: int
  num_outputs: int
  end_token: int
  dropout: float = 0.0
  vocab_pad: int = 0
  dtype: Dtype = jnp.float32

  @property
  def facts(self) -> Facts:
    """Facts of the model."""
    return Facts(
      vocab_size=self.vocab_size,
      max_seq_len=self.max_seq_len,
      num_outputs=self.num_outputs,
      padded_parameters=self.vocab_pad * self.num_outputs,
    )

  def setup(self):
    check_rate(self.dropout)
    check_sizes(
      vocab_size=(self.vocab_size,),
      max_seq_len=(self.max_seq_len,),
      num_outputs=(self.num_outputs,),
    )
    _check_end(self.end_token, self.vocab_size)
    init = nn.initializers.normal(0.1)
    self.embed = Embed(
      self.vocab_size, self.num_outputs, pad=self.vocab_pad, table_init=init, dtype=self.dtype
    )
    self.drop = nn.Dropout(self.dropout)

  def __call__(self, tokens: jax.Array, *, train: bool = False) -> jax.Array:
    """Embeds tokens int [B, T] -> [B, E]."""
    token_positions(tokens, None, self.max_seq_len)  # refuses longer rows
    ends = tokens == self.end_token
    behind = jnp.cumsum(ends, axis=1) - ends > 0
    # The end stays, so that no text is empty.
    kept = self.drop(jnp.ones(tokens.shape, self.dtype), deterministic=not train)
    kept = jnp.where(ends, 1, jnp.minimum(kept, 1)) * ~behind
    x = self.embed(tokens) * kept[..., None].astype(self.dtype)
    return constrain(x, 'batch', 'length', 'act_embed').sum(1)


def _check_end(end_token: int, vocab_size: int) -> None:
  if not 0 <= end_token < vocab_size:
    raise InputError(f'end_token={end_token}: expected an id below vocab_size={vocab_size}')


class Pairs(NamedTuple):
  """Embeddings of images and of texts, and how they are compared.

  The logit of image i and text j is scale · image[i] · text[j] + bias.

  Attributes:
    image: float32 [B, E] of length 1; None where no images are given.
    text: float32 [B, E] of length 1; None where no texts are given.
    scale: float32 [], the inverse of the temperature.
    bias: float32 []; None without one.
  """

  image: jax.Array | None
  text: jax.Array | None
  scale: jax.Array
  bias: jax.Array | None


class CLIP(nn.Module):
  """Two towers that embed images and texts in one space, with a learned temperature.

  Source: Radford et al. 2021; with `bias`, the pairwise sigmoid of Zhai et al. 2023.

  Attributes:
    image: images [B, I, J, C] -> [B, E], such as `vit.ViT` with num_outputs=E.
    text: tokens [B, T] -> [B, E], such as `TextTower`.
    temperature: initial divisor of the cosines. Published: 0.07; of the sigmoid 0.1.
    bias: whether logits have a learned bias, as those of the sigmoid.
    initial_bias: of the bias. Published: -10.
  """

  image: nn.Module
  text: nn.Module
  temperature: float = 0.07
  bias: bool = False
  initial_bias: float = -10.0

  @property
  def facts(self) -> Facts:
    """Facts of both towers."""
    text, image = facts_of(self.text), facts_of(self.image)
    return Facts(
      vocab_size=text.vocab_size,
      max_seq_len=text.max_seq_len,
      num_outputs=text.num_outputs,
      coupling=image.coupling,
      aux_losses={**image.aux_losses, **text.aux_losses},
      padded_parameters=text.padded_parameters,
    )

  def setup(self):
    check_number('temperature', self.temperature, above=0)
    check_number('initial_bias', self.initial_bias)
    sizes = facts_of(self.image).num_outputs, facts_of(self.text).num_outputs
    if sizes[0] != sizes[1]:
      raise InputError(f'image.num_outputs={sizes[0]}, text.num_outputs={sizes[1]}: expected one '
                       'size of both embeddings')  # fmt: skip
    constant = nn.initializers.constant
    start = named(constant(-math.log(self.temperature)), ())
    self.logit_scale = self.param('logit_scale', start, (), jnp.float32)
    if self.bias:
      start = named(constant(self.initial_bias), ())
      self.logit_bias = self.param('logit_bias', start, (), jnp.float32)

  def __call__(
    self, image: jax.Array | None = None, tokens: jax.Array | None = None, *, train: bool = False
  ) -> Pairs:
    """Embeds images, texts or both.

    Args:
      image: [B, I, J, C].
      tokens: int [B, T], of as many texts or another number.
      train: whether dropout and stochastic depth are active.

    Raises:
      InputError: neither is given.
    """
    if image is None and tokens is None:
      raise InputError('CLIP: expected images, texts or both')
    return Pairs(
      None if image is None else unit(self.image(image, train=train)),
      None if tokens is None else unit(self.text(tokens, train=train)),
      jnp.exp(self.logit_scale),
      self.logit_bias if self.bias else None,
    )


def unit(x: jax.Array) -> jax.Array:
  """Scales rows [B, E] to length 1, in float32; a row of zeros stays."""
  x = constrain(x.astype(jnp.float32), 'batch', None)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
