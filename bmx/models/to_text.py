"""Text from a source that is not tokens: any encoder, and the text decoder of encoder-decoders.

B batch, T tokens, S hidden states of the encoder, D width, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.types import Facts, facts_of
from bmx.models.layers import Dtype
from bmx.models.seq2seq import EncoderDecoder
from bmx.models.transformer import TextDecoder, TransformerConfig


class ToText(EncoderDecoder, kw_only=True):
  """An encoder of features or images, and a decoder whose tokens attend to its hidden states.

  Image captioning with `vit.ViT`, speech recognition with `speech.SpeechEncoder`. The encoder
  declares `sources`, the keys of a batch that it reads, and `memory(source, train=)`, its hidden
  states [B, S, C] with 0 for each that is padding.

  Attributes:
    encoder: of the source.
    vocab_size: tokens of texts; `vocab_pad` more rows are stored, so that axes divide.
    max_seq_len: longest text; 0: no limit, without learned positions.
    width: D, size of the hidden states of the decoder.
    depth: number of blocks of the decoder.
    heads: attention heads of the decoder.
    mlp_dim: width of its feed-forward layers; 0 is 4 × width.
    positions: of tokens: 'learned', 'sinusoidal' or 'rotary', see `transformer.TransformerConfig`.
    activation: of its feed-forward layers, a name in `layers.ACTIVATIONS`.
    begin: see `EncoderDecoder`.
    suppressed: ids that generation never writes.
    dropout: share of units of the decoder that training drops.
    vocab_pad: rows that the token table stores besides.
    attention: of the decoder: 'xla', 'cudnn', 'splash', or 'auto', by the kind of device.
    kv_cache: of generation, 'auto' or 'int8', see `gpt.GPT`.
    scan: one compiled block of the decoder over stacked parameters, see `Stack`.
    remat: results that the backward pass computes again: 'none', 'dots' or 'full', see `Stack`.
    dtype: of the computation of the decoder.

  Source: Vinyals et al. 2015 (images); Chan et al. 2016, Dong et al. 2018 (speech).
  """

  encoder: nn.Module
  vocab_size: int
  max_seq_len: int = 0
  width: int = 256
  depth: int = 4
  heads: int = 4
  mlp_dim: int = 0
  positions: str = 'sinusoidal'
  activation: str = 'gelu_exact'
  suppressed: tuple[int, ...] = ()
  dropout: float = 0.1
  vocab_pad: int = 0
  attention: str = 'xla'
  kv_cache: str = 'auto'
  scan: bool = False
  remat: str = 'none'
  dtype: Dtype = jnp.float32

  @property
  def sources(self) -> tuple[str, ...]:
    """Those of the encoder."""
    encoder: Any = self.encoder
    return encoder.sources

  @property
  def facts(self) -> Facts:
    """Facts of the model."""
    encoder = facts_of(self.encoder)
    return Facts(
      vocab_size=self.vocab_size,
      max_seq_len=self.max_seq_len,
      coupling=encoder.coupling,
      aux_losses=encoder.aux_losses,
      padded_parameters=self.vocab_pad * self.width + encoder.padded_parameters,
      chunked_head=True,
    )

  def setup(self):
    config = TransformerConfig(
      self.width, self.depth, self.heads, mlp_dim=self.mlp_dim, max_seq_len=self.max_seq_len,
      causal=True, cross=True, positions=self.positions, activation=self.activation,
      dropout=self.dropout, attention=self.attention, scan=self.scan, remat=self.remat,
      dtype=self.dtype,
    )  # fmt: skip
    self.decoder = TextDecoder(
      config, self.vocab_size, self.vocab_pad, suppressed=tuple(self.suppressed),
      kv_cache=self.kv_cache,
    )  # fmt: skip

  def encode(
    self, source: Mapping[str, jax.Array], *, train: bool = False
  ) -> tuple[jax.Array, jax.Array | None]:
    """Encodes what the encoder reads."""
    encoder: Any = self.encoder
    return encoder.memory(source, train=train)
