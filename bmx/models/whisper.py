"""Speech to text with an attention decoder: the architecture of Whisper.

B batch, T frames, S frames after the convolutions, M mel bands, D width, V vocabulary.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from bmx.core.types import Facts
from bmx.models.layers import Dtype
from bmx.models.seq2seq import EncoderDecoder
from bmx.models.speech import SpeechEncoder
from bmx.models.transformer import TextDecoder, TransformerConfig


class Whisper(EncoderDecoder):
  """Features [B, T, M] and the tokens of a transcript -> logits of the next token.

  The defaults are Whisper tiny. Other published sizes (width, depth, heads): base 512, 6, 8; small
  768, 12, 12; medium 1024, 24, 16; large 1280, 32, 20. Whisper reads 30 s at once,
  `bmx.data.audio.features:whisper_features`, without `num_frames`: silence is part of its input.
  Where `num_frames` is given, frames behind it are padding that nothing attends to. Its keys have
  no bias; one of zeros changes nothing here, as softmax ignores a constant.

  Attributes:
    vocab_size: tokens of transcripts. `vocab_pad` more rows are stored, so that axes divide.
    max_seq_len: longest transcript.
    width: D, size of the hidden states.
    depth: number of blocks of the decoder.
    encoder_depth: of the encoder; 0 is as many.
    heads: attention heads.
    mlp_dim: width of the feed-forward layers; 0 is 4 × width.
    suppressed: ids that generation never writes.
    dropout: share of units that training drops.
    vocab_pad: rows that the token table stores besides.
    attention: 'xla', 'cudnn', 'splash', or 'auto', by the kind of device.
    kv_cache: of generation, 'auto' or 'int8', see `gpt.GPT`.
    scan: one compiled block of each side over stacked parameters, see `Stack`.
    remat: results that the backward pass computes again: 'none', 'dots' or 'full', see `Stack`.
    dtype: of the computation.

  Source: Radford et al. 2022.
  """

  vocab_size: int = 51865
  max_seq_len: int = 448
  width: int = 384
  depth: int = 4
  encoder_depth: int = 0
  heads: int = 6
  mlp_dim: int = 0
  suppressed: tuple[int, ...] = ()
  dropout: float = 0.0
  vocab_pad: int = 0
  attention: str = 'xla'
  kv_cache: str = 'auto'
  scan: bool = False
  remat: str = 'none'
  dtype: Dtype = jnp.float32

  sources = ('features', 'num_frames')

  @property
  def facts(self) -> Facts:
    """Facts of the model."""
    return Facts(
      vocab_size=self.vocab_size,
      max_seq_len=self.max_seq_len,
      padded_parameters=self.vocab_pad * self.width,
      chunked_head=True,
    )

  def setup(self):
    self.encoder = SpeechEncoder(
      self.width, self.encoder_depth or self.depth, self.heads, self.mlp_dim, strides=(1, 2),
      positions='whisper', dropout=self.dropout, attention=self.attention, scan=self.scan,
      remat=self.remat, dtype=self.dtype,
    )  # fmt: skip
    config = TransformerConfig(
      self.width, self.depth, self.heads, mlp_dim=self.mlp_dim, max_seq_len=self.max_seq_len,
      causal=True, cross=True, positions='learned', activation='gelu_exact', dropout=self.dropout,
      attention=self.attention, scan=self.scan, remat=self.remat, dtype=self.dtype,
    )  # fmt: skip
    self.decoder = TextDecoder(
      config, self.vocab_size, self.vocab_pad, suppressed=tuple(self.suppressed),
      kv_cache=self.kv_cache,
    )  # fmt: skip

  def encode(
    self, source: Mapping[str, jax.Array], *, train: bool = False
  ) -> tuple[jax.Array, jax.Array | None]:
    """Encodes 'features' [B, T, M], with the 'num_frames' int [B] of each where it is given."""
    frames = source.get('num_frames')
    hidden = self.encoder(source['features'], frames, train=train)
    if frames is None:
      return hidden, None
    there = jnp.arange(hidden.shape[1])[None] < self.encoder.output_frames(frames)[:, None]
    return hidden, there.astype(jnp.int32)
