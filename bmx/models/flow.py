"""Models of flow matching: the velocity of an image at a time, for a class.

B batch, I rows, J columns, C channels, D width of the condition.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.types import Facts, facts_of
from bmx.models.layers import Dtype, Einsum, check_sizes

LONGEST = 10_000.0  # ratio of the longest to the shortest period of the embedding of a time
TIMES = 1000.0  # a time in [0, 1] is embedded as one in [0, 1000] of a diffusion


def embed_time(time: jax.Array, width: int) -> jax.Array:
  """Embeds times float [B] as sines and cosines [B, width] (Vaswani et al. 2017; Ho et al. 2020).

  Args:
    time: in [0, 1].
    width: an even number.
  """
  frequency = jnp.exp(-math.log(LONGEST) * jnp.arange(width // 2) / (width // 2))
  angle = TIMES * time.astype(jnp.float32)[:, None] * frequency[None]
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)


class Velocity(nn.Module):
  """A network of images that is conditioned on a time and a class.

  Attributes:
    network: maps (image [B, I, J, C], condition [B, D]) to [B, I, J, C], such as
      `bmx.models.unet:UNet`.
    num_classes: classes; class `num_classes` is "unknown"; 0: images have no classes.
    width: D, an even number.
    patch: side of the squares of pixels that the network sees as channels of one pixel: 2 halves
      rows and columns, and the time of a step on a CPU. The network's `num_outputs` are the
      channels of an image times `patch`².
    dtype: of the computation.
  """

  network: nn.Module
  num_classes: int = 0
  width: int = 128
  patch: int = 1
  dtype: Dtype = jnp.float32

  @property
  def facts(self) -> Facts:
    """Facts of the network. Raises InputError if patches do not divide its outputs."""
    check_sizes(patch=(self.patch,))
    inner = facts_of(self.network)
    if inner.num_outputs % self.patch**2:
      raise InputError(
        f'network.num_outputs={inner.num_outputs}: expected the channels of an image times '
        f'patch²={self.patch**2}'
      )
    return Facts(num_outputs=inner.num_outputs // self.patch**2, coupling=inner.coupling)

  @nn.compact
  def __call__(
    self, image: jax.Array, time: jax.Array, label: jax.Array, *, train: bool = False
  ) -> jax.Array:
    """Returns the velocity [B, I, J, C] of images [B, I, J, C].

    Args:
      image: between noise and data.
      time: float [B], 0 at noise, 1 at data.
      label: int [B], from 0 to `num_classes`; not read without classes.
      train: whether dropout is active.
    """
    check_sizes(width=(self.width,))
    self._check(image.shape)

    def dense(x: jax.Array, name: str) -> jax.Array:
      layer = Einsum('bd,df->bf', (x.shape[-1], self.width), ('embed', 'mlp'), dtype=self.dtype,
                     name=name)  # fmt: skip
      return layer(x)

    condition = dense(nn.silu(dense(embed_time(time, self.width), 'time_0')), 'time_1')
    if self.num_classes:
      known = self.num_classes + 1  # vectors of length √D, so that classes are heard from the start
      table = Einsum('bc,cd->bd', (known, self.width), ('classes', 'mlp'), False,
                     nn.initializers.normal(1.0), dtype=self.dtype, name='label')  # fmt: skip
      condition += table(jax.nn.one_hot(label, known))
    out = self.network(to_channels(image, self.patch), condition, train=train)
    return to_pixels(out, self.patch)

  def _check(self, shape: tuple[int, ...]) -> None:
    if self.width % 2:
      raise InputError(f'width={self.width}: expected an even number')
    if shape[1] % self.patch or shape[2] % self.patch:
      raise InputError(
        f'patch={self.patch}: expected a divisor of the {shape[1]} × {shape[2]} pixels of an image'
      )
    outputs, expected = facts_of(self.network).num_outputs, shape[3] * self.patch**2
    if outputs != expected:
      raise InputError(
        f'network.num_outputs={outputs}: expected {expected}, the channels of an image times patch²'
      )


def to_channels(x: jax.Array, patch: int) -> jax.Array:
  """Moves squares of pixels to channels: [B, I, J, C] -> [B, I / patch, J / patch, C·patch²]."""
  batch, rows, columns, channels = x.shape
  x = x.reshape(batch, rows // patch, patch, columns // patch, patch, channels)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(batch, rows // patch, columns // patch, patch * patch * channels)


def to_pixels(x: jax.Array, patch: int) -> jax.Array:
  """Inverse of `to_channels`."""
  batch, rows, columns, channels = x.shape
  x = x.reshape(batch, rows, columns, patch, patch, channels // patch**2)
  x = x.transpose(0, 1, 3, 2, 4, 5)
  return x.reshape(batch, rows * patch, columns * patch, channels // patch**2)
