"""Speech models: features -> convolutions over time -> the language models' Stack -> outputs.

B batch, T frames, S frames after the convolutions, M mel bands, D width, K outputs.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.types import Facts
from bmx.models.attention import AttentionConfig
from bmx.models.block import BlockConfig, MlpConfig
from bmx.models.convolution import Conv
from bmx.models.layers import Dtype, Einsum, Norm, activation, check_rate, check_sizes
from bmx.models.stack import Stack
from bmx.ops.positions import sinusoidal
from bmx.parallel import constrain, gather, named

AXES = (None, None, 'embed', 'mlp')
THETA = 10_000.0  # base of rotary positions
POSITIONS = ('sinusoidal', 'whisper', 'rotary')


class SpeechEncoder(nn.Module):
  """Convolutions over time, then a transformer encoder: [B, T, M] -> [B, S, D].

  Frames behind the last one of an example are 0 for every convolution, and no frame attends to
  them: states of an example depend neither on the padding nor on the batch.

  Attributes:
    width: D, size of the hidden states.
    depth: number of blocks.
    heads: attention heads.
    mlp_dim: width of the feed-forward layers; 0 is 4 × width.
    kernel_size: frames of each convolution, an odd number.
    strides: frames from one output of each convolution to the next; their product is T / S.
    positions: 'sinusoidal', or 'whisper', a table of its waves that no step changes, added before
      the blocks; or 'rotary', in each attention.
    max_source_len: rows of that table, the most frames after the convolutions.
    key_bias: whether the keys of attention have a bias.
    activation: of convolutions and feed-forward layers, a name in `layers.ACTIVATIONS`.
    eps: added to the variance in a norm.
    dropout: share of units that training drops.
    drop_path: share of examples that skip the last block in training; that of earlier blocks grows
      linearly from 0.
    attention: 'xla', 'cudnn', 'splash', 'ring', or 'auto', by the kind of device.
    scan: one compiled block over stacked parameters instead of `depth` copies, see `Stack`.
    remat: results that the backward pass computes again: 'none', 'dots' or 'full', see `Stack`.
    microbatches: of a pipeline, see `Stack`.
    dtype: of the computation.

  Source: Dong et al. 2018, Speech-Transformer; Radford et al. 2022, Whisper, whose encoder has the
  strides (1, 2).
  """

  width: int = 256
  depth: int = 4
  heads: int = 4
  mlp_dim: int = 0
  kernel_size: int = 3
  strides: tuple[int, ...] = (2, 2)
  positions: Literal['sinusoidal', 'whisper', 'rotary'] = 'sinusoidal'
  max_source_len: int = 0
  key_bias: bool = True
  activation: str = 'gelu_exact'
  eps: float = 1e-5
  dropout: float = 0.1
  drop_path: float = 0.0
  attention: str = 'xla'
  scan: bool = False
  remat: str = 'none'
  microbatches: int = 0
  dtype: Dtype = jnp.float32

  sources: ClassVar[tuple[str, ...]] = ('features', 'num_frames')

  @property
  def facts(self) -> Facts:
    """Facts of the model."""
    return Facts()

  def setup(self):
    self._check()
    d, rotary = self.width, self.positions == 'rotary'
    edge = self.kernel_size // 2
    self.convolutions = [
      Conv(
        d, (self.kernel_size, 1), (stride, 1), ((edge, edge), (0, 0)), dtype=self.dtype,
        axes=AXES if i else (None, None, None, 'mlp'), name=f'conv_{i}',
      )
      for i, stride in enumerate(self.strides)
    ]  # fmt: skip
    block = BlockConfig(
      AttentionConfig(
        self.heads,
        self.heads,
        causal=False,
        theta=THETA if rotary else 0.0,
        key_bias=self.key_bias,
        impl=self.attention,
      ),
      MlpConfig(self.mlp_dim or 4 * d, self.activation),
      eps=self.eps,
      dropout=self.dropout,
      drop_path=self.drop_path,
      dtype=self.dtype,
    )
    self.drop = nn.Dropout(self.dropout)
    if self.positions == 'whisper':
      table = named(lambda _, shape, dtype: waves(*shape).astype(dtype), ('position', 'embed'))
      self.position = self.param('position', table, (self.max_source_len, d), jnp.float32)
    self.stack = Stack(self.depth, block, self.scan, self.remat, self.microbatches)
    self.norm_out = Norm('layer', self.eps, dtype=self.dtype)

  def _check(self) -> None:
    check_sizes(width=(self.width,), depth=(self.depth,), strides=self.strides)
    check_rate(self.dropout)
    if self.kernel_size < 1 or not self.kernel_size % 2:
      raise InputError(f'kernel_size={self.kernel_size}: expected an odd number')
    if self.positions not in POSITIONS:
      raise InputError(f'positions={self.positions!r}: expected one of {", ".join(POSITIONS)}')
    if self.positions == 'whisper' and self.max_source_len < 1:
      raise InputError("max_source_len=0: expected the rows of the table of positions='whisper'")
    if self.width % 2 or self.width < 4:
      raise InputError(f'width={self.width}: expected an even number, at least 4')

  def output_frames(self, frames: jax.Array) -> jax.Array:
    """Returns S of examples of T frames: ⌈T / stride⌉, convolution by convolution, int [...]."""
    for stride in self.strides:
      frames = (frames + stride - 1) // stride
    return frames

  def __call__(
    self, features: jax.Array, num_frames: jax.Array | None = None, *, train: bool = False
  ) -> jax.Array:
    """Encodes features [B, T, M] -> [B, S, D].

    Args:
      features: of the frames.
      num_frames: T of each example, int [B]; frames behind it are padding. None: without.
      train: whether dropout and stochastic depth are active.
    """
    if features.ndim != 3:
      raise InputError(f'expected features [B, T, M], not an array of shape {features.shape}')
    batch, length, _ = features.shape
    if num_frames is None:
      num_frames = jnp.full((batch,), length, jnp.int32)
    x = _masked(features.astype(self.dtype), num_frames)[:, :, None]  # one column
    for conv, stride in zip(self.convolutions, self.strides, strict=True):
      num_frames = (num_frames + stride - 1) // stride
      x = _masked(activation(self.activation)(conv(x)), num_frames)
    x = x[:, :, 0]
    order = jnp.broadcast_to(jnp.arange(x.shape[1])[None], x.shape[:2])
    if self.positions == 'sinusoidal':
      x += sinusoidal(order, self.width).astype(x.dtype)
    if self.positions == 'whisper':
      x += self._waves(x.shape[1]).astype(x.dtype)[None]
    x = constrain(self.drop(x, deterministic=not train), 'batch', 'length', 'act_embed')
    there = (order < num_frames[:, None]).astype(jnp.int32)
    return self.norm_out(self.stack(x, order, there, train=train)[0])

  def memory(
    self, source: Mapping[str, jax.Array], *, train: bool = False
  ) -> tuple[jax.Array, jax.Array | None]:
    """Encodes 'features' [B, T, M], with the 'num_frames' int [B] of each where it is given.

    Returns:
      (hidden states [B, S, D]; int [B, S], 0 for padding, or None without padding).
    """
    frames = source.get('num_frames')
    hidden = self(source['features'], frames, train=train)
    if frames is None:
      return hidden, None
    there = jnp.arange(hidden.shape[1])[None] < self.output_frames(frames)[:, None]
    return hidden, there.astype(jnp.int32)

  def _waves(self, length: int) -> jax.Array:
    """Returns the first rows of the table of positions, which gets no gradient."""
    if length > self.max_source_len:
      raise InputError(f'max_source_len={self.max_source_len}: expected at least {length}, the '
                       'frames after the convolutions; cut the audio')  # fmt: skip
    table = gather(self.position.astype(self.dtype), ('position', 'embed'))
    return jax.lax.stop_gradient(table)[:length]


def waves(length: int, width: int) -> jax.Array:
  """Returns Whisper's positions, float32 [T, D]: sines in one half of the columns, then cosines.

  Frequencies are 10,000^(-k / (D / 2 - 1)).
  """
  half = width // 2
  frequency = THETA ** (-jnp.arange(half, dtype=jnp.float32) / (half - 1))
  angle = jnp.arange(length, dtype=jnp.float32)[:, None] * frequency[None]
  return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], 1)


def _masked(x: jax.Array, num_frames: jax.Array) -> jax.Array:
  """Sets frames behind the last one of each example to 0: x [B, T, ...], num_frames [B]."""
  there = jnp.arange(x.shape[1])[None] < num_frames[:, None]
  return jnp.where(there.reshape(*there.shape, *(1,) * (x.ndim - 2)), x, 0)


class Recognizer(nn.Module):
  """An encoder and a head for CTC: features [B, T, M] -> logits [B, S, num_outputs].

  Attributes:
    num_outputs: K, units of transcripts and the blank, which is output 0.
    encoder: features -> hidden states.
  """

  encoder: SpeechEncoder
  num_outputs: int

  @property
  def facts(self) -> Facts:
    """Facts of the model."""
    return Facts(num_outputs=self.num_outputs)

  def output_frames(self, frames: jax.Array) -> jax.Array:
    """Returns S of examples of T frames, see `SpeechEncoder.output_frames`."""
    return self.encoder.output_frames(frames)

  @nn.compact
  def __call__(
    self, features: jax.Array, num_frames: jax.Array | None = None, *, train: bool = False
  ) -> jax.Array:
    """Scores units in each frame; for the arguments see `SpeechEncoder`."""
    e = self.encoder
    head = Einsum('bsd,dk->bsk', (e.width, self.num_outputs), ('embed', 'classes'), dtype=e.dtype,
                  kernel_init=nn.initializers.normal(0.02), name='head')  # fmt: skip
    return head(e(features, num_frames, train=train))
