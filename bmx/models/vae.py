"""Autoencoders of images, variational or not.

B batch, I rows, J columns, C channels, Z latent numbers.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.types import Facts
from bmx.models.layers import Dtype, Einsum, check_sizes
from bmx.models.pyramid import Contract, Expand


class Decoded(NamedTuple):
  """Outputs of `AutoEncoder`.

  Attributes:
    logits: of the pixels, float32 [B, I, J, C].
    mean: of the latent numbers, float32 [B, Z].
    log_variance: of the same, float32 [B, Z]; zeros without a variance.
  """

  logits: jax.Array
  mean: jax.Array
  log_variance: jax.Array


class AutoEncoder(nn.Module):
  """Encoder and decoder (Kingma & Welling 2014), convolutional, of images of a class.

  Attributes:
    shape: of an image, (I, J, C).
    num_classes: classes that encoder and decoder read; 0: images have no classes.
    latent: Z, numbers that an image is encoded as.
    features: channels at each resolution, the highest first.
    variance: whether the encoder gives one; without it, the latent numbers are the mean.
    dtype: of the computation.
  """

  shape: tuple[int, int, int]
  num_classes: int = 0
  latent: int = 16
  features: tuple[int, ...] = (32, 64, 128)
  variance: bool = True
  dtype: Dtype = jnp.float32

  facts = Facts()

  def setup(self):
    check_sizes(shape=self.shape, latent=(self.latent,))
    self.contract = Contract(self.features, self.dtype)
    self.expand = Expand(self.shape, self.features, self.dtype)
    # Both come from the features of `contract` and the class.
    factor = 4 ** (len(self.features) - 1)
    width = self.shape[0] * self.shape[1] // factor * self.features[-1] + self.num_classes
    dense = lambda: Einsum('bd,df->bf', (width, self.latent), (None, None), dtype=self.dtype)
    self.mean = dense()
    if self.variance:
      self.log_variance = dense()

  def encode(self, image: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Maps images [B, I, J, C] and labels int [B] to (mean, log of the variance), each [B, Z]."""
    x = self._with_label(self.contract(image), label)
    mean = self.mean(x).astype(jnp.float32)
    if not self.variance:
      return mean, jnp.zeros_like(mean)
    return mean, self.log_variance(x).astype(jnp.float32)

  def decode(self, latent: jax.Array, label: jax.Array) -> jax.Array:
    """Maps latent numbers [B, Z] and labels int [B] to logits of pixels, float32 [B, I, J, C]."""
    return self.expand(self._with_label(latent, label)).astype(jnp.float32)

  def __call__(
    self, image: jax.Array, noise: jax.Array, label: jax.Array, *, train: bool = False
  ) -> Decoded:
    """Encodes images and decodes mean + noise · deviation.

    Args:
      image: [B, I, J, C] in [0, 1].
      noise: float [B, Z]; zeros decode the mean.
      label: int [B].
      train: is not read.
    """
    mean, log_variance = self.encode(image, label)
    latent = mean + noise * jnp.exp(0.5 * log_variance)
    return Decoded(self.decode(latent, label), mean, log_variance)

  def _with_label(self, x: jax.Array, label: jax.Array) -> jax.Array:
    if not self.num_classes:
      return x
    return jnp.concatenate([x, jax.nn.one_hot(label, self.num_classes, dtype=x.dtype)], -1)
