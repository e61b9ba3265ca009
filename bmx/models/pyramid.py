"""Convolutions from an image to features, and from features to an image (Radford et al. 2016).

B batch, I rows, J columns, C channels, F features.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.models.convolution import Conv, GroupNorm, upsample
from bmx.models.layers import Dtype, Einsum, check_sizes
from bmx.models.unet import AXES
from bmx.parallel import constrain

SLOPE = 0.2  # of a leaky ReLU below zero
GROUPS = 8  # of channels in a norm, at most


def check_halves(image: tuple[int, ...], features: tuple[int, ...]) -> None:
  """Raises InputError unless each of the resolutions behind the first halves an image (I, J, ...).

  Args:
    image: shape of one image.
    features: channels at each resolution.
  """
  check_sizes(features=features)
  if not features:
    raise InputError('features=(): expected the channels of at least one resolution')
  factor = 2 ** (len(features) - 1)
  if image[0] % factor or image[1] % factor:
    raise InputError(
      f'image of {image[0]} × {image[1]} pixels: expected multiples of {factor}, as features='
      f'{features} halves it {len(features) - 1} times; use fewer features'
    )


class Contract(nn.Module):
  """Maps images [B, I, J, C] to vectors [B, F]: convolutions, all but the first with stride 2.

  No layer mixes examples, so that a gradient with respect to an image is that image's own.

  Attributes:
    features: channels at each resolution, the highest first.
    dtype: of the computation.
  """

  features: tuple[int, ...]
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, image: jax.Array) -> jax.Array:
    check_halves(image.shape[1:], self.features)
    x = image.astype(self.dtype)
    for i, width in enumerate(self.features):
      strides = (2, 2) if i else (1, 1)
      axes = AXES if i else (None, None, None, 'mlp')
      x = Conv(width, strides=strides, axes=axes, dtype=self.dtype, name=f'conv_{i}')(x)
      x = constrain(nn.leaky_relu(x, SLOPE), 'batch', None, None, 'mlp')
    return constrain(x.reshape(x.shape[0], -1), 'batch', 'act_embed')


class Expand(nn.Module):
  """Maps vectors [B, F] to images [B, *shape], without a last activation.

  Attributes:
    shape: of an image, (I, J, C).
    features: channels at each resolution, the highest first.
    dtype: of the computation.
  """

  shape: tuple[int, int, int]
  features: tuple[int, ...]
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    check_halves(self.shape, self.features)
    factor = 2 ** (len(self.features) - 1)
    rows, columns = self.shape[0] // factor, self.shape[1] // factor
    size = rows * columns * self.features[-1]
    x = Einsum('bd,df->bf', (x.shape[-1], size), (None, 'mlp'), dtype=self.dtype, name='dense')(x)
    x = x.reshape(-1, rows, columns, self.features[-1])
    for i, width in reversed(list(enumerate(self.features))):
      x = nn.relu(GroupNorm(math.gcd(x.shape[-1], GROUPS), dtype=self.dtype, name=f'norm_{i}')(x))
      if i < len(self.features) - 1:
        x = upsample(x)
      x = Conv(width, axes=AXES, dtype=self.dtype, name=f'conv_{i}')(x)
      x = constrain(x, 'batch', None, None, 'mlp')
    axes = (None, None, 'embed', None)
    return Conv(self.shape[-1], axes=axes, dtype=self.dtype, name='head')(nn.relu(x))
