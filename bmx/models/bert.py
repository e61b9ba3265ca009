"""Encoders of the BERT family, and the heads that read them."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.types import Facts
from bmx.models.attention import AttentionConfig
from bmx.models.block import BlockConfig, MlpConfig
from bmx.models.layers import (
  Dtype,
  Einsum,
  Embed,
  Norm,
  activation,
  check_rate,
  check_sizes,
  token_positions,
)
from bmx.models.stack import Stack
from bmx.ops.masks import MASK_VALUE
from bmx.parallel import constrain, gather, named


class BERT(nn.Module):
  """An encoder: tokens -> hidden states; each token attends to all of its segment.

  Source: Devlin et al. 2019.

  Attributes:
    vocab_size: tokens the model knows; `vocab_pad` more rows are stored, see `gpt.GPT`.
    max_seq_len: longest sequence.
    width: size of the hidden states.
    depth: number of blocks.
    heads: attention heads.
    mlp_dim: width of the feed-forward layers; 0 is 4 × width.
    head_dim: size of a head; 0 is width / heads.
    types: number of token types; 0: the model has no table of them.
    activation: of the feed-forward layers: gelu, gelu_exact, relu, silu, tanh or sigmoid.
    pooler_activation: of the summary of a sequence ('relu' in DistilBERT), likewise.
    eps: added to the variance in a norm.
    dropout: share of units that training drops.
    first_position: the row of the position table that a sequence begins with (2 in RoBERTa).
    vocab_pad: rows that the token table stores besides, so that axes divide it.
    attention: 'xla', 'cudnn', 'splash', 'ring', or 'auto', by the kind of device.
    scan: one compiled block over stacked parameters instead of `depth` copies, see `Stack`.
    remat: results that the backward pass computes again: 'none', 'dots' or 'full', see `Stack`.
    dtype: of the computation.
  """

  vocab_size: int
  max_seq_len: int
  width: int = 768
  depth: int = 12
  heads: int = 12
  mlp_dim: int = 0
  head_dim: int = 0
  types: int = 2
  activation: str = 'gelu_exact'
  pooler_activation: str = 'tanh'
  eps: float = 1e-12
  dropout: float = 0.1
  first_position: int = 0
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
      padded_parameters=self.vocab_pad * self.width,
    )

  def setup(self):
    check_rate(self.dropout)
    activation(self.pooler_activation, 'pooler_activation')  # `pool` may come later, or never
    check_sizes(
      vocab_size=(self.vocab_size,),
      max_seq_len=(self.max_seq_len,),
      width=(self.width,),
      depth=(self.depth,),
    )
    self.embed = Embed(self.vocab_size, self.width, pad=self.vocab_pad, dtype=self.dtype)
    normal = nn.initializers.normal(0.02)
    rows = self.max_seq_len + self.first_position
    table = named(normal, ('position', 'embed'))
    self.position = self.param('position', table, (rows, self.width), jnp.float32)
    if self.types:
      table = named(normal, (None, 'embed'))
      self.type = self.param('type', table, (self.types, self.width), jnp.float32)
    self.norm = Norm('layer', self.eps, dtype=self.dtype)
    self.drop = nn.Dropout(self.dropout)
    heads, mlp_dim = self.heads, self.mlp_dim or 4 * self.width
    block = BlockConfig(
      AttentionConfig(heads, heads, self.head_dim, causal=False, impl=self.attention),
      MlpConfig(mlp_dim, self.activation),
      eps=self.eps,
      post_norm=True,
      dropout=self.dropout,
      dtype=self.dtype,
    )
    self.stack = Stack(self.depth, block, self.scan, self.remat)
    self.pooler = Einsum(
      'bd,de->be', (self.width, self.width), ('embed', None), kernel_init=normal, dtype=self.dtype
    )

  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    types: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Encodes tokens int [B, T] -> [B, T, D]; the other arrays are int [B, T], too.

    Args:
      tokens: ids.
      positions: None: 0, 1, 2, ...
      segment_ids: 0 is padding; None: every row is one segment.
      types: None: 0.
      train: whether dropout is active.
    """
    positions = token_positions(tokens, positions, self.max_seq_len)
    if types is None or self.types == 1:  # RoBERTa reads pairs, too, as of one kind
      types = jnp.zeros_like(tokens)
    x = self.embed(tokens)
    table = gather(self.position.astype(x.dtype), ('position', 'embed'))
    x += jnp.take(table, positions + self.first_position, axis=0)
    if self.types:
      x += jnp.take(gather(self.type.astype(x.dtype), (None, 'embed')), types, axis=0)
    x = self.drop(self.norm(x), deterministic=not train)
    x = constrain(x, 'batch', 'length', 'act_embed')
    return self.stack(x, positions, segment_ids, train=train)[0]

  def pool(self, hidden: jax.Array) -> jax.Array:
    """Summarizes each sequence by its first token: [B, T, D] -> [B, D]."""
    return activation(self.pooler_activation)(self.pooler(hidden[:, 0]))


class Pretraining(nn.Module):
  """BERT's two heads: scores of the masked tokens, and of the second segment.

  Attributes:
    encoder: tokens -> hidden states; its token table is the output table, too.
    next_sentence: adds the second head: does the second segment follow the first?
  """

  encoder: BERT
  next_sentence: bool = False

  @property
  def facts(self) -> Facts:
    """Facts of the encoder; its padding has rows of the output bias, too."""
    padded = self.encoder.vocab_pad * (self.encoder.width + 1)
    return dataclasses.replace(self.encoder.facts, padded_parameters=padded)

  def setup(self):
    e = self.encoder
    normal = nn.initializers.normal(0.02)
    self.transform = Einsum(
      'btd,de->bte', (e.width, e.width), ('embed', None), kernel_init=normal, dtype=e.dtype
    )
    self.norm = Norm('layer', e.eps, dtype=e.dtype)
    zeros = named(nn.initializers.zeros_init(), ('vocab',))
    self.bias = self.param('bias', zeros, (e.vocab_size + e.vocab_pad,), jnp.float32)
    if self.next_sentence:
      self.next = Einsum(
        'bd,dc->bc', (e.width, 2), ('embed', 'classes'), kernel_init=normal, dtype=e.dtype
      )

  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    types: jax.Array | None = None,
    masked_positions: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, jax.Array | None]:
    """Scores tokens, and the second segment.

    Args:
      tokens: int [B, T].
      positions: see `BERT`.
      segment_ids: see `BERT`.
      types: see `BERT`.
      masked_positions: int [B, M], the positions to score; None: all of T.
      train: whether dropout is active.

    Returns:
      Logits [B, M, V + pad], without probability on the padding; and scores that the second segment
      follows (0) or not (1), [B, 2], None without that head.
    """
    e = self.encoder
    hidden = e(tokens, positions, segment_ids, types, train=train)
    x = hidden
    if masked_positions is not None:
      x = jnp.take_along_axis(hidden, masked_positions[:, :, None], axis=1)
    x = self.norm(activation(e.activation)(self.transform(x)))
    bias = gather(self.bias.astype(x.dtype), ('vocab',))
    logits = constrain(e.embed.attend(x) + bias[None, None], 'batch', None, 'vocab')
    if e.vocab_pad:
      real = jnp.arange(logits.shape[-1]) < e.vocab_size
      logits = jnp.where(real[None, None], logits, MASK_VALUE)
    return logits, self.next(e.pool(hidden)) if self.next_sentence else None


def _head(equation: str, encoder: BERT, num_outputs: int) -> Einsum:
  """Makes the projection to outputs, with BERT's initialization; call it in a compact method."""
  return Einsum(
    equation,
    (encoder.width, num_outputs),
    ('embed', 'classes'),
    kernel_init=nn.initializers.normal(0.02),
    dtype=encoder.dtype,
    name='head',
  )


class Classifier(nn.Module):
  """An encoder and a head: tokens -> scores of the whole sequence [B, num_outputs].

  Attributes:
    encoder: tokens -> hidden states.
    num_outputs: classes, or 1 for a number.
  """

  encoder: BERT
  num_outputs: int = 2

  @property
  def facts(self) -> Facts:
    """Facts of the encoder, and the outputs of the head."""
    return dataclasses.replace(self.encoder.facts, num_outputs=self.num_outputs)

  @nn.compact
  def __call__(self, tokens, positions=None, segment_ids=None, types=None, *, train=False):
    e = self.encoder
    x = e.pool(e(tokens, positions, segment_ids, types, train=train))
    x = nn.Dropout(e.dropout, deterministic=not train)(x)
    return _head('bd,dc->bc', e, self.num_outputs)(x)


class Tagger(nn.Module):
  """An encoder and a head: tokens -> scores of each token [B, T, num_outputs].

  Attributes:
    encoder: tokens -> hidden states.
    num_outputs: classes of a token; 2 for the first and the last token of an answer.
  """

  encoder: BERT
  num_outputs: int = 2

  @property
  def facts(self) -> Facts:
    """Facts of the encoder, and the outputs of the head."""
    return dataclasses.replace(self.encoder.facts, num_outputs=self.num_outputs)

  @nn.compact
  def __call__(self, tokens, positions=None, segment_ids=None, types=None, *, train=False):
    e = self.encoder
    x = e(tokens, positions, segment_ids, types, train=train)
    x = nn.Dropout(e.dropout, deterministic=not train)(x)
    return _head('btd,dc->btc', e, self.num_outputs)(x)


HEADED = (Pretraining, Classifier, Tagger)  # models with a field `encoder`
