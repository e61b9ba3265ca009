"""U-Net: an image to an image of the same size.

B batch, I rows, J columns, C channels, D width of the condition.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.types import Facts
from bmx.models.attention import Attention, AttentionConfig
from bmx.models.convolution import BatchNorm, Conv, GroupNorm, upsample
from bmx.models.layers import Dtype, Einsum, Init, check_rate, check_sizes
from bmx.parallel import constrain

AXES = (None, None, 'embed', 'mlp')  # of kernels whose inputs are features, not channels of images
HEAD_DIM = 32
ZEROS, HE = nn.initializers.zeros_init(), nn.initializers.he_normal()


class UNet(nn.Module):
  """Residual blocks at several resolutions, with skips (Ronneberger et al. 2015, Ho et al. 2020).

  The last convolution of each block, the projection of its condition and the head begin at zero:
  the model begins as zero, and blocks as their shortcuts.

  Attributes:
    num_outputs: channels of the result: classes, or channels of an image.
    features: channels at each resolution, the highest first; each halves rows and columns.
    blocks: residual blocks at each resolution, on the way down and on the way up.
    norm: 'group' or 'batch', before each activation.
    groups: of channels in a group norm, at most; their greatest common divisor with the channels
      counts.
    attention: whether the blocks of each resolution are followed by attention over all pixels.
    dropout: share of units that training drops within a block.
    dtype: of the computation.
  """

  num_outputs: int
  features: tuple[int, ...] = (32, 64, 128)
  blocks: int = 1
  norm: str = 'group'
  groups: int = 8
  attention: tuple[bool, ...] = (False, False, True)
  dropout: float = 0.0
  dtype: Dtype = jnp.float32

  @property
  def facts(self) -> Facts:
    """Facts of the model."""
    coupling = 'statistics' if self.norm == 'batch' else 'none'
    return Facts(num_outputs=self.num_outputs, coupling=coupling)

  @nn.compact
  def __call__(
    self, image: jax.Array, condition: jax.Array | None = None, *, train: bool = False
  ) -> jax.Array:
    """Maps images [B, I, J, C] to [B, I, J, num_outputs].

    Args:
      image: of a size that 2 ** (len(features) - 1) divides.
      condition: [B, D], which scales and shifts the norms of all blocks; or None.
      train: whether dropout is active.

    Raises:
      InputError: a size that does not divide, arguments that do not fit each other.
    """
    self._check(image)
    x = Conv(self.features[0], dtype=self.dtype, name='stem')(image)
    skips = []
    for i, width in enumerate(self.features):
      if i:
        x = Conv(width, strides=(2, 2), axes=AXES, dtype=self.dtype, name=f'down_{i}')(x)
      for j in range(self.blocks):
        x = self._level(x, condition, i, f'encoder_{i}_{j}', train)
        skips.append(x)
    x = self._level(x, condition, len(self.features) - 1, 'middle', train)
    for i in reversed(range(len(self.features))):
      for j in range(self.blocks):
        x = jnp.concatenate([x, skips.pop()], -1)
        x = self._level(x, condition, i, f'decoder_{i}_{j}', train)
      if i:
        up = Conv(self.features[i - 1], axes=AXES, dtype=self.dtype, name=f'up_{i}')
        x = up(upsample(x))
    x = nn.silu(Normalization(self.norm, self.groups, self.dtype, name='norm')(x, train=train))
    axes = (None, None, 'embed', None)
    return Conv(self.num_outputs, axes=axes, kernel_init=ZEROS, dtype=self.dtype, name='head')(x)

  def _level(
    self, x: jax.Array, condition: jax.Array | None, level: int, name: str, train: bool
  ) -> jax.Array:
    width = self.features[level]
    block = ResidualBlock(width, self.norm, self.groups, self.dropout, self.dtype, name=name)
    x = block(x, condition, train=train)
    if not self.attention[level]:
      return x
    return PixelAttention(self.groups, self.dtype, name=f'{name}_attention')(x)

  def _check(self, image: jax.Array) -> None:
    check_sizes(num_outputs=(self.num_outputs,), features=self.features, blocks=(self.blocks,),
                groups=(self.groups,))  # fmt: skip
    check_rate(self.dropout)
    if not self.features:
      raise InputError('features=(): expected the channels of at least one resolution')
    if len(self.attention) != len(self.features):
      raise InputError(
        f'attention={self.attention}: expected one value for each of features={self.features}'
      )
    if image.ndim != 4:
      raise InputError(f'UNet: expected images [B, I, J, C], not an array of shape {image.shape}')
    factor = 2 ** (len(self.features) - 1)
    rows, columns = image.shape[1:3]
    if rows % factor or columns % factor:
      raise InputError(
        f'image of {rows} × {columns} pixels: expected multiples of {factor}, as features='
        f'{self.features} halves it {len(self.features) - 1} times; use fewer features or pad '
        'the images'
      )


class Normalization(nn.Module):
  """A norm by its name, 'group' or 'batch'. Raises InputError for another name."""

  kind: str
  groups: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    if self.kind == 'group':
      groups = math.gcd(x.shape[-1], self.groups)
      return GroupNorm(groups, dtype=self.dtype, name='group')(x)
    if self.kind == 'batch':
      return BatchNorm(dtype=self.dtype, name='batch')(x, train=train)
    raise InputError(f"norm={self.kind!r}: expected 'group' or 'batch'")


class ResidualBlock(nn.Module):
  """Adds two convolutions to a shortcut (He et al. 2016).

  A condition scales and shifts the second norm (Dhariwal & Nichol 2021, adaptive group norm).

  Attributes:
    features: channels of the result.
    norm: 'group' or 'batch'.
    groups: see `UNet`.
    dropout: share of units that training drops.
    dtype: of the computation.
  """

  features: int
  norm: str
  groups: int
  dropout: float = 0.0
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, condition: jax.Array | None, *, train: bool) -> jax.Array:
    """Maps [B, I, J, C] and a condition [B, D] to [B, I, J, features]."""

    def conv(y: jax.Array, name: str, init: Init = HE, side: int = 3) -> jax.Array:
      layer = Conv(self.features, (side, side), axes=AXES, kernel_init=init, dtype=self.dtype,
                   name=name)  # fmt: skip
      return constrain(layer(y), 'batch', None, None, 'mlp')

    norm = lambda y, name: Normalization(self.norm, self.groups, self.dtype, name=name)(
      y, train=train
    )
    y = conv(nn.silu(norm(x, 'norm_0')), 'conv_0')
    y = norm(y, 'norm_1')
    if condition is not None:
      shape = condition.shape[-1], 2 * self.features
      project = Einsum('bd,df->bf', shape, ('embed', 'mlp'), kernel_init=ZEROS, dtype=self.dtype,
                       name='condition')  # fmt: skip
      scale, shift = jnp.split(project(nn.silu(condition))[:, None, None], 2, -1)
      y = y * (1 + scale) + shift
    y = nn.Dropout(self.dropout, deterministic=not train)(nn.silu(y))
    y = conv(y, 'conv_1', ZEROS)
    return y + (x if x.shape[-1] == self.features else conv(x, 'shortcut', side=1))


class PixelAttention(nn.Module):
  """Adds attention over all pixels, with heads of 32 channels and without positions."""

  groups: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps [B, I, J, C] to the same shape."""
    batch, rows, columns, width = x.shape
    y = GroupNorm(math.gcd(width, self.groups), dtype=self.dtype, name='norm')(x)
    heads = width // HEAD_DIM if width % HEAD_DIM == 0 else 1
    config = AttentionConfig(heads, heads, causal=False, out_stddev=0.0)
    places = jnp.broadcast_to(jnp.arange(rows * columns)[None], (batch, rows * columns))
    y, _ = Attention(config, self.dtype, name='attention')(
      y.reshape(batch, rows * columns, width), places, None
    )
    return x + y.reshape(x.shape)
