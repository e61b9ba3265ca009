"""Speech to text with an attention decoder: the architecture of Whisper.

B batch, T frames, S frames after the convolutions, M mel bands, D width, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax.core import FrozenDict

from bmx.core.types import Facts
from bmx.models.layers import Dtype
from bmx.models.seq2seq import EncoderDecoder
from bmx.models.speech import SpeechEncoder
from bmx.models.transformer import TextDecoder, TransformerConfig
from bmx.ops.cache import Cache
from bmx.ops.masks import MASK_VALUE


class Whisper(EncoderDecoder):
  """Features [B, T, M] and the tokens of a transcript -> logits of the next token.

  The defaults are Whisper tiny. Other published sizes (width, depth, heads): base 512, 6, 8; small
  768, 12, 12; medium 1024, 24, 16; large 1280, 32, 20. Whisper reads 30 s at once,
  `bmx.data.audio.features:whisper_features`, without `num_frames`: silence is part of its input.
  Where `num_frames` is given, frames behind it are padding that nothing attends to. The positions
  of its encoder are a parameter that gets no gradient.

  Attributes:
    vocab_size: tokens of transcripts. `vocab_pad` more rows are stored, so that axes divide.
    max_seq_len: longest transcript.
    max_source_len: most frames after the convolutions, of which each is two of the features.
    width: D, size of the hidden states.
    depth: number of blocks of the decoder.
    encoder_depth: of the encoder; 0 is as many.
    heads: attention heads of the decoder.
    encoder_heads: of the encoder; 0 is as many.
    mlp_dim: width of the feed-forward layers of the decoder; 0 is 4 × width.
    encoder_mlp_dim: of the encoder; 0 is the same.
    activation: of convolutions and feed-forward layers, a name in `layers.ACTIVATIONS`.
    begin: ids that every transcript begins with.
    languages: '<|en|>' -> id, of which the most likely one follows the first of `begin`, before
      the others; {} where `begin` names the language itself, or the model knows one only.
    suppressed: ids that generation never writes.
    begin_suppressed: ids that a transcript does not begin with, behind `begin`.
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
  max_source_len: int = 1500
  width: int = 384
  depth: int = 4
  encoder_depth: int = 0
  heads: int = 6
  encoder_heads: int = 0
  mlp_dim: int = 0
  encoder_mlp_dim: int = 0
  activation: str = 'gelu_exact'
  languages: Mapping[str, int] = dataclasses.field(default_factory=FrozenDict)
  suppressed: tuple[int, ...] = ()
  begin_suppressed: tuple[int, ...] = ()
  dropout: float = 0.0
  vocab_pad: int = 0
  attention: str = 'xla'
  kv_cache: str = 'auto'
  scan: bool = False
  remat: str = 'none'
  dtype: Dtype = jnp.float32

  @property
  def sources(self) -> tuple[str, ...]:
    """Those of the encoder."""
    return SpeechEncoder.sources

  def begins(self, ids: Sequence[int]) -> bool:
    """Returns whether transcripts may begin with these ids, one of `languages` second."""
    if not self.languages:
      return super().begins(ids)
    named = len(ids) > 1 and ids[1] in self.languages.values()
    return named and super().begins([*ids[:1], *ids[2:]])

  @property
  def begin_length(self) -> int:
    """Tokens before those of a transcript, the language among them."""
    return len(self.begin) + bool(self.languages)

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
      self.width, self.encoder_depth or self.depth, self.encoder_heads or self.heads,
      self.encoder_mlp_dim or self.mlp_dim, strides=(1, 2), positions='whisper',
      max_source_len=self.max_source_len, key_bias=False, activation=self.activation,
      dropout=self.dropout, attention=self.attention, scan=self.scan, remat=self.remat,
      dtype=self.dtype,
    )  # fmt: skip
    config = TransformerConfig(
      self.width, self.depth, self.heads, mlp_dim=self.mlp_dim, max_seq_len=self.max_seq_len,
      causal=True, cross=True, positions='learned', activation=self.activation, key_bias=False,
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
    """Encodes 'features' [B, T, M], with the 'num_frames' int [B] of each where it is given."""
    return self.encoder.memory(source, train=train)

  def first_logits(self, source: Mapping[str, jax.Array], slots: int) -> tuple[jax.Array, Cache]:
    """Detects the language where `begin` names none, see `EncoderDecoder.first_logits`."""
    if self.languages:
      logits, cache = self._spoken(source, slots)
    else:
      logits, cache = super().first_logits(source, slots)
    if not self.begin_suppressed:
      return logits, cache
    return logits.at[:, jnp.array(self.begin_suppressed)].set(MASK_VALUE), cache

  def _spoken(self, source: Mapping[str, jax.Array], slots: int) -> tuple[jax.Array, Cache]:
    """Reads the first of `begin`, the most likely language, and the rest of `begin`."""
    rows = len(source['features'])
    begin = jnp.broadcast_to(jnp.array(self.begin, jnp.int32)[None], (rows, len(self.begin)))
    prompt = {**source, 'tokens': begin[:, :1], 'first': jnp.zeros(rows, jnp.int32)}
    hidden, cache = self.prefill(prompt, slots)
    known = jnp.array(sorted(self.languages.values()), jnp.int32)
    # Before ids are suppressed, as languages are among those that a transcript never has.
    language = known[self.decoder.logits(hidden)[:, 0, known].argmax(-1)]
    hidden, cache = self.extend(jnp.concatenate([language[:, None], begin[:, 1:]], 1), cache)
    return self.logits(hidden[:, -1:])[:, 0], cache
