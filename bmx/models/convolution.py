"""Layers of image models: convolutions, norms over batches and groups, pooling.

B batch, I rows, J columns, C channels.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.models import weights
from bmx.models.layers import Dtype, Init, Names
from bmx.parallel import named

Sides = tuple[tuple[int, int], tuple[int, int]]  # (above, below), (left, right)
ONES, ZEROS = nn.initializers.ones_init(), nn.initializers.zeros_init()


def torch_padding(*kernel_size: int) -> Sides:
  """Returns the pixels that PyTorch's `padding=k // 2` adds on each side of rows and columns.

  With stride 2 and an even size, 'SAME' adds one pixel less above and on the left.

  Args:
    kernel_size: sides of the kernel, in pixels; one number stands for both.
  """
  rows, columns = kernel_size[0] // 2, kernel_size[-1] // 2
  return (rows, rows), (columns, columns)


class Conv(nn.Module):
  """A two-dimensional convolution, [B, I, J, C] -> [B, I', J', features].

  Attributes:
    features: channels of the result.
    kernel_size: rows and columns of the kernel.
    strides: in rows and in columns.
    padding: 'SAME', 'VALID', or the zeros on each side, ((above, below), (left, right)).
    bias: whether each channel of the result has one.
    groups: of channels that are convolved apart; they divide C and `features`.
    axes: a name for each dimension of the kernel [rows, columns, C / groups, features].
    kernel_init: default He et al. 2015, by the fan in.
    dtype: of the computation.
  """

  features: int
  kernel_size: tuple[int, int] = (3, 3)
  strides: tuple[int, int] = (1, 1)
  padding: str | Sides = 'SAME'
  bias: bool = True
  groups: int = 1
  axes: Names = (None, None, None, 'mlp')
  kernel_init: Init = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    if channels % self.groups or self.features % self.groups:
      raise InputError(
        f'groups={self.groups}: expected a divisor of {channels} and {self.features} channels'
      )
    shape = (*self.kernel_size, channels // self.groups, self.features)
    kernel = weights.stored_param(self, 'kernel', self.kernel_init, self.axes, shape)
    w = weights.weight(kernel, self.axes, (0, 1, 2), self.dtype)
    y = self.product(x.astype(self.dtype), w)
    if self.bias:
      bias = self.param('bias', named(ZEROS, self.axes[-1:]), (self.features,), jnp.float32)
      y += bias.astype(self.dtype).reshape(1, 1, 1, -1)
    return y

  def product(self, x: jax.Array, w: jax.Array) -> jax.Array:
    """Convolves images [B, I, J, C] with a kernel, both in `dtype`; interceptors find it."""
    return jax.lax.conv_general_dilated(
      x,
      w,
      self.strides,
      self.padding,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=self.groups,
    )


class BatchNorm(nn.Module):
  """Batch norm (Ioffe & Szegedy 2015) over all but the last dimension, over the *global* batch.

  The running mean and variance are kept in the collection 'batch_stats'.

  Attributes:
    momentum: share of the running values that a step keeps; PyTorch counts the share of the new
      ones: its 0.1 is 0.9 here.
    eps: added to the variance.
    scale_init: initializer of the scale.
    dtype: of the result.
  """

  momentum: float = 0.9
  eps: float = 1e-5
  scale_init: Init = ONES
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    width = x.shape[-1]
    mean = self.variable('batch_stats', 'mean', jnp.zeros, (width,), jnp.float32)
    var = self.variable('batch_stats', 'var', jnp.ones, (width,), jnp.float32)
    scale = self.param('scale', named(self.scale_init, ('norm',)), (width,), jnp.float32)
    bias = self.param('bias', named(ZEROS, ('norm',)), (width,), jnp.float32)
    m, v = mean.value, var.value
    rest, row = tuple(range(x.ndim - 1)), (1,) * (x.ndim - 1) + (width,)
    x = x.astype(jnp.float32)
    if train:
      m = x.mean(rest)
      v = jnp.square(x - m.reshape(row)).mean(rest)
      if not self.is_initializing():
        mean.value = self.momentum * mean.value + (1 - self.momentum) * m
        var.value = self.momentum * var.value + (1 - self.momentum) * v
    factor = scale * jax.lax.rsqrt(v + self.eps)
    return (x * factor.reshape(row) + (bias - m * factor).reshape(row)).astype(self.dtype)


class GroupNorm(nn.Module):
  """Group norm (Wu & He 2018): of each example, over its pixels and a group of channels.

  Attributes:
    groups: number of groups, a divisor of the channels.
    eps: added to the variance.
    scale_init: initializer of the scale.
    dtype: of the result.
  """

  groups: int = 32
  eps: float = 1e-5
  scale_init: Init = ONES
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    if channels % self.groups:
      raise InputError(f'groups={self.groups}: expected a divisor of {channels} channels')
    y = x.astype(jnp.float32).reshape(x.shape[0], -1, self.groups, channels // self.groups)
    y -= y.mean((1, 3), keepdims=True)
    y *= jax.lax.rsqrt(jnp.square(y).mean((1, 3), keepdims=True) + self.eps)
    row = (1,) * (x.ndim - 1) + (channels,)
    scale = self.param('scale', named(self.scale_init, ('norm',)), (channels,), jnp.float32)
    bias = self.param('bias', named(ZEROS, ('norm',)), (channels,), jnp.float32)
    return (y.reshape(x.shape) * scale.reshape(row) + bias.reshape(row)).astype(self.dtype)


def max_pool(x: jax.Array, size: int = 2, stride: int = 2, padding: int = 0) -> jax.Array:
  """Computes the maximum of windows: [B, I, J, C] -> [B, I', J', C].

  Args:
    x: images; rows and columns that fill no window are omitted.
    size: side of the square windows, in pixels.
    stride: pixels from a window to the next.
    padding: pixels on every side, below all values.
  """
  if (size, stride, padding) == (2, 2, 0):
    return _halve(x)
  sides: Any = ((padding, padding), (padding, padding))
  return nn.max_pool(x, (size, size), (stride, stride), sides)


def avg_pool(x: jax.Array, size: int = 2, stride: int = 2, padding: int = 0) -> jax.Array:
  """Computes the mean of windows, see `max_pool`; padding counts as zeros, as in PyTorch."""
  sides: Any = ((padding, padding), (padding, padding))
  return nn.avg_pool(x, (size, size), (stride, stride), sides)


def upsample(x: jax.Array, factor: int = 2) -> jax.Array:
  """Repeats each pixel: [B, I, J, C] -> [B, factor · I, factor · J, C]."""
  batch, rows, columns, channels = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (batch, rows, factor, columns, factor, channels))
  return x.reshape(batch, factor * rows, factor * columns, channels)


def _halve(x: jax.Array) -> jax.Array:
  """Computes a 2×2 max pool: [B, I, J, C] -> [B, I // 2, J // 2, C]; omits odd last rows, columns.

  It takes maxima of halves: the gradient of a window reduction (select and scatter) is slow on
  CPUs, and that of a maximum over axes takes 2.5 times as long. Equal maxima share the gradient.
  """
  batch, rows, columns, channels = x.shape
  x = x[:, : rows // 2 * 2, : columns // 2 * 2]
  x = x.reshape(batch, -1, columns // 2, 2, channels)
  x = jnp.maximum(x[..., 0, :], x[..., 1, :])
  x = x.reshape(batch, rows // 2, 2, columns // 2, channels)
  return jnp.maximum(x[:, :, 0], x[:, :, 1])
