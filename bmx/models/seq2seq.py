"""Encoder-decoders: a source sequence -> logits of the tokens of a target sequence.

B batch, S length of the source, T length of the target, D width, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core import tree
from bmx.core.types import Facts, Variables
from bmx.models.layers import Dtype, token_positions
from bmx.models.stack import unstacked
from bmx.models.transformer import TextDecoder, Transformer, TransformerConfig
from bmx.ops.cache import Cache


class EncoderDecoder(nn.Module):
  """Base of models with an encoder of any kind and a text decoder.

  A subclass declares `facts`, makes `self.decoder`, a `TextDecoder`, in `setup`, and defines
  `sources` and `encode`. Its fields include `scan`, `remat`, `attention`, `kv_cache` and `dtype`.

  Attributes:
    reads_text: the source is a text: 'source' and 'source_ids' int [B, S].
    begin: ids that every target begins with; training targets follow the first of them.
  """

  reads_text: ClassVar[bool] = False
  begin: tuple[int, ...] = (0,)

  @property
  def sources(self) -> tuple[str, ...]:
    """Keys of a batch that `encode` reads, where it has them; the first is required."""
    raise NotImplementedError

  def begins(self, ids: Sequence[int]) -> bool:
    """Returns whether targets of the model may begin with these ids."""
    return tuple(ids) == tuple(self.begin)

  @property
  def begin_length(self) -> int:
    """Tokens that `first_logits` reads before those that it scores."""
    return len(self.begin)

  def encode(
    self, source: Mapping[str, jax.Array], *, train: bool = False
  ) -> tuple[jax.Array, jax.Array | None]:
    """Encodes a source: hidden states [B, S, D], and the segment of each, int [B, S], or None.

    Segment 0 is padding; a target token attends to the source of its own segment, which is 1 where
    targets have no segments. None: every target token attends to the whole row.
    """
    raise NotImplementedError

  def hidden_states(
    self: Any,
    source: Mapping[str, jax.Array],
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Returns the inputs of the head [B, T, D]; the arguments are those of `__call__`."""
    context, ids = self.encode(source, train=train)
    return self.decoder.hidden_states(
      tokens, positions, segment_ids, context=context, context_ids=ids, train=train
    )

  def __call__(
    self: Any,
    source: Mapping[str, jax.Array],
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> jax.Array:
    """Scores the next token of each target token.

    Args:
      source: the keys of `sources` that there are; each array has B rows.
      tokens: int [B, T], of the target.
      positions: int [B, T]; None: 0, 1, 2, ...
      segment_ids: int [B, T], the pair of each token of packed rows, 0 for padding.
      train: whether dropout is active.

    Returns:
      Logits [B, T, V + pad].
    """
    return self.decoder.logits(
      self.hidden_states(source, tokens, positions, segment_ids, train=train)
    )

  def hidden_and_table(
    self: Any,
    source: Mapping[str, jax.Array],
    tokens: jax.Array,
    positions: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    *,
    train: bool = False,
  ) -> tuple[jax.Array, jax.Array]:
    """Returns the inputs of the head and its table, for losses that never hold all logits."""
    hidden = self.hidden_states(source, tokens, positions, segment_ids, train=train)
    return hidden, self.decoder.table()

  def for_decoding(
    self: Any, cache: str = 'auto'
  ) -> tuple['EncoderDecoder', Callable[[Variables], Variables]]:
    """Returns the same model with layers one by one, and a function that gives it the weights.

    See `gpt.GPT.for_decoding`.
    """
    kv_cache = self.kv_cache if cache == 'auto' else cache
    model = self.clone(scan=False, remat='none', attention='xla', kv_cache=kv_cache)

    def cast_weight(name: str, x: jax.Array) -> jax.Array:
      return x if 'norm' in name or not name.startswith('params/') else x.astype(self.dtype)

    return model, lambda variables: tree.map_named(cast_weight, unstacked(variables))

  def prefill(self: Any, inputs: Mapping[str, Any], slots: int) -> tuple[jax.Array, Cache]:
    """Reads sources and prompts into a new cache.

    Args:
      inputs: the keys of `sources`; 'tokens' int [B, P], the prompts, padded on the left; 'first'
        int [B], the slot of each row's first token.
      slots: tokens of the target that the cache holds, padding included.

    Returns:
      (hidden [B, 1, D] of the last token, the cache).
    """
    context, ids = self.encode({k: inputs[k] for k in self.sources if k in inputs})
    hidden, cache = self.decoder.start(inputs['tokens'], inputs['first'], slots, context, ids)
    return hidden[:, -1:], cache

  def first_logits(
    self: Any, source: Mapping[str, jax.Array], slots: int
  ) -> tuple[jax.Array, Cache]:
    """Reads sources and what every target begins with into a new cache.

    Args:
      source: the keys of `sources` that there are; each array has B rows.
      slots: tokens of the target that the cache holds.

    Returns:
      (logits of the first token that is generated [B, V + pad], the cache).
    """
    rows = len(source[self.sources[0]])
    tokens = jnp.broadcast_to(jnp.array(self.begin, jnp.int32)[None], (rows, len(self.begin)))
    prompt = {**source, 'tokens': tokens, 'first': jnp.zeros(rows, jnp.int32)}
    hidden, cache = self.prefill(prompt, slots)
    return self.logits(hidden)[:, 0], cache

  def extend(self: Any, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """Reads the next tokens of every row, int [B, T] -> (hidden [B, T, D], the cache with them)."""
    return self.decoder.extend(tokens, cache)

  def logits(self: Any, hidden: jax.Array) -> jax.Array:
    """Maps hidden states to the logits that generation reads, [B, T, D] -> [B, T, V + pad]."""
    return self.decoder.next_logits(hidden)


class Seq2Seq(EncoderDecoder):
  """Source tokens -> logits of target tokens; both sides share one token table.

  The defaults are a transformer with norms before attention and feed-forward (Vaswani et al. 2017,
  Xiong et al. 2020); other arguments make Marian, BART and T5.

  Attributes:
    vocab_size: tokens of both sides. `vocab_pad` more rows are stored, so that axes divide.
    max_seq_len: longest target; 0: no limit, without learned positions.
    max_source_len: longest source; 0 is as `max_seq_len`.
    width: size of the hidden states.
    depth: number of blocks of the decoder.
    encoder_depth: of the encoder; 0 is as many.
    heads: attention heads of the decoder.
    encoder_heads: of the encoder; 0 is as many.
    head_dim: size of a head; 0 is width / heads.
    mlp_dim: width of the feed-forward layers of the decoder; 0 is 4 × width.
    encoder_mlp_dim: of the encoder; 0 is the same.
    positions: 'learned', 'sinusoidal', 'sinusoidal_halves', 'rotary', 'relative' or 'none', see
      `TransformerConfig`.
    first_position: the row of a learned table that a sequence begins with (2 in BART).
    theta: base of the rotary frequencies.
    relative_buckets: distances that 'relative' distinguishes.
    relative_distance: tokens beyond which all distances are one.
    norm: 'layer' or 'rms'.
    eps: added to the variance in a norm.
    post_norm: whether norms follow the residual sum, or precede attention and feed-forward.
    embed_norm: whether a norm follows the embeddings (BART).
    norm_out: whether a norm follows the last block of each side.
    activation: of the feed-forward layers, a name in `layers.ACTIVATIONS`.
    gated: whether the activation of one projection multiplies another.
    bias: whether projections and layer norms have one.
    scaled_attention: whether scores are divided by √(size of a head); not in T5.
    tied: whether the output head is the token table.
    head_bias: whether the logits have a bias.
    scaled_embed: whether embedded tokens are multiplied by √D.
    scaled_head: whether hidden states are divided by √D before the head (T5).
    embed_stddev: of the initial token table.
    begin: see `EncoderDecoder`.
    suppressed: ids that generation never writes, such as padding.
    dropout: share of units that training drops.
    vocab_pad: rows that the token table stores besides.
    attention: 'xla', 'cudnn', 'splash', or 'auto', by the kind of device.
    kv_cache: of generation, 'auto' or 'int8', see `gpt.GPT`.
    scan: one compiled block of each side over stacked parameters, see `Stack`.
    remat: results that the backward pass computes again: 'none', 'dots' or 'full', see `Stack`.
    dtype: of the computation.
  """

  vocab_size: int = 0
  max_seq_len: int = 0
  max_source_len: int = 0
  width: int = 512
  depth: int = 6
  encoder_depth: int = 0
  heads: int = 8
  encoder_heads: int = 0
  head_dim: int = 0
  mlp_dim: int = 0
  encoder_mlp_dim: int = 0
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
  scaled_attention: bool = True
  tied: bool = True
  head_bias: bool = False
  scaled_embed: bool = False
  scaled_head: bool = False
  embed_stddev: float = 0.02
  suppressed: tuple[int, ...] = ()
  dropout: float = 0.1
  vocab_pad: int = 0
  attention: str = 'xla'
  kv_cache: str = 'auto'
  scan: bool = False
  remat: str = 'none'
  dtype: Dtype = jnp.float32

  reads_text: ClassVar[bool] = True

  @property
  def sources(self) -> tuple[str, ...]:
    """Tokens of the source, their pairs and positions."""
    return 'source', 'source_ids', 'source_positions'

  @property
  def facts(self) -> Facts:
    """Facts of the model."""
    rows = self.width * (1 if self.tied else 2) + self.head_bias
    return Facts(
      vocab_size=self.vocab_size,
      max_seq_len=self.max_seq_len,
      max_source_len=self._source_len,
      padded_parameters=self.vocab_pad * rows,
      chunked_head=not self.head_bias,
    )

  @property
  def _source_len(self) -> int:
    return self.max_source_len or self.max_seq_len

  def setup(self):
    common = {
      name: getattr(self, name)
      for name in (
        'width', 'head_dim', 'positions', 'first_position', 'theta', 'relative_buckets',
        'relative_distance', 'norm', 'eps', 'post_norm', 'embed_norm', 'norm_out', 'activation',
        'gated', 'bias', 'dropout', 'attention', 'scan', 'remat', 'dtype',
      )
    }  # fmt: skip
    common['scale'] = 0.0 if self.scaled_attention else 1.0
    encoder = TransformerConfig(
      depth=self.encoder_depth or self.depth,
      heads=self.encoder_heads or self.heads,
      mlp_dim=self.encoder_mlp_dim or self.mlp_dim,
      max_seq_len=self._source_len,
      **common,
    )
    decoder = TransformerConfig(
      depth=self.depth, heads=self.heads, mlp_dim=self.mlp_dim, max_seq_len=self.max_seq_len,
      causal=True, cross=True, **common,
    )  # fmt: skip
    self.encoder = Transformer(encoder)
    self.decoder = TextDecoder(
      decoder,
      self.vocab_size,
      self.vocab_pad,
      tied=self.tied,
      head_bias=self.head_bias,
      embed_scale=self.width**0.5 if self.scaled_embed else 1.0,
      head_scale=self.width**-0.5 if self.scaled_head else 1.0,
      embed_stddev=self.embed_stddev,
      suppressed=tuple(self.suppressed),
      kv_cache=self.kv_cache,
    )

  def encode(
    self, source: Mapping[str, jax.Array], *, train: bool = False
  ) -> tuple[jax.Array, jax.Array | None]:
    """Encodes 'source' int [B, S], with its 'source_ids' and 'source_positions' int [B, S]."""
    tokens, ids = source['source'], source.get('source_ids')
    positions = token_positions(tokens, source.get('source_positions'), self._source_len)
    x = self.decoder.embedded(tokens)
    return self.encoder.transform(x, positions, ids, train=train)[0], ids
