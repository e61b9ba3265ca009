"""Generative adversarial network: a generator and a discriminator in one module.

B batch, I rows, J columns, C channels, Z latent numbers.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.types import Facts
from bmx.models.layers import Dtype, Einsum, check_sizes
from bmx.models.pyramid import Contract, Expand


class Scores(NamedTuple):
  """Outputs of `GAN`.

  Attributes:
    real: logits of the images, float32 [B]; above 0: real.
    fake: logits of generated images, which the generator gets no gradient of, float32 [B].
    fooled: logits of the same, which the discriminator gets no gradient of, float32 [B].
    penalty: squared norm of the gradient of `real` with respect to each image, times its weight,
      float32 [B].
  """

  real: jax.Array
  fake: jax.Array
  fooled: jax.Array
  penalty: jax.Array


class Generator(nn.Module):
  """Maps latent numbers [B, Z] and labels int [B] to images in [-1, 1]; fields as of `GAN`."""

  shape: tuple[int, int, int]
  features: tuple[int, ...]
  num_classes: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, latent: jax.Array, label: jax.Array) -> jax.Array:
    given = [latent]
    if self.num_classes:
      given.append(jax.nn.one_hot(label, self.num_classes, dtype=latent.dtype))
    x = Expand(self.shape, self.features, self.dtype, name='expand')(jnp.concatenate(given, -1))
    return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
  """Maps images [B, I, J, C] and labels int [B] to logits float32 [B]; fields as of `GAN`.

  The label's vector is projected on the features (Miyato & Koyama 2018).
  """

  features: tuple[int, ...]
  num_classes: int
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, image: jax.Array, label: jax.Array) -> jax.Array:
    x = Contract(self.features, self.dtype, name='contract')(image)
    width = x.shape[-1]
    head = Einsum('bd,df->bf', (width, 1), ('embed', None), dtype=self.dtype, name='head')
    logits = head(x)[:, 0]
    if self.num_classes:
      init = nn.initializers.normal(width**-0.5)
      table = Einsum('bc,cd->bd', (self.num_classes, width), ('classes', 'embed'), False, init,
                     dtype=self.dtype, name='label')  # fmt: skip
      logits += (x * table(jax.nn.one_hot(label, self.num_classes))).sum(-1)
    return logits.astype(jnp.float32)


class GAN(nn.Module):
  """A generator and a discriminator (Goodfellow et al. 2014), convolutional (Radford et al. 2016).

  Attributes:
    shape: of an image, (I, J, C).
    num_classes: classes that both networks read; 0: images have no classes.
    latent: Z, numbers that an image is made of.
    features: channels of the generator at each resolution, the highest first.
    seen: channels of the discriminator; () is `features`.
    dtype: of the computation.
  """

  shape: tuple[int, int, int]
  num_classes: int = 0
  latent: int = 64
  features: tuple[int, ...] = (32, 64, 128)
  seen: tuple[int, ...] = ()
  dtype: Dtype = jnp.float32

  facts = Facts()

  def setup(self):
    check_sizes(shape=self.shape, latent=(self.latent,))
    self.generator = Generator(self.shape, self.features, self.num_classes, self.dtype)
    self.discriminator = Discriminator(self.seen or self.features, self.num_classes, self.dtype)

  def generate(self, latent: jax.Array, label: jax.Array) -> jax.Array:
    """Maps latent numbers [B, Z] and labels int [B] to images float32 [B, I, J, C] in [-1, 1]."""
    return self.generator(latent, label)

  def __call__(
    self,
    image: jax.Array,
    latent: jax.Array,
    label: jax.Array,
    weight: jax.Array,
    *,
    train: bool = False,
  ) -> Scores:
    """Scores images and generated ones, each network with gradients of its own outputs only.

    Args:
      image: [B, I, J, C] in [-1, 1].
      latent: float [B, Z].
      label: int [B].
      weight: of the penalty of each example, float [B]; it is not computed where all are 0.
      train: is not read.
    """
    made = self.generator(latent, label)
    real = self.discriminator(image, label)
    fake = self.discriminator(jax.lax.stop_gradient(made), label)
    params = self.discriminator.variables['params']
    copy = Discriminator(self.seen or self.features, self.num_classes, self.dtype, parent=None)

    def logits(params: Any, image: jax.Array) -> Any:
      return copy.apply({'params': params}, image, label)

    def squared(params):
      slope = jax.grad(lambda x: logits(params, x).sum())(image)
      return jnp.square(slope.astype(jnp.float32)).sum((1, 2, 3)) * weight

    penalty = jax.lax.cond((weight > 0).any(), squared, lambda _: jnp.zeros_like(weight), params)
    return Scores(real, fake, logits(jax.lax.stop_gradient(params), made), penalty)
