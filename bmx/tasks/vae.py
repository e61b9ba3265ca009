"""Variational autoencoders and autoencoders of images."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bmx.core.data import Data
from bmx.core.errors import InputError
from bmx.core.images import ImageOptions
from bmx.core.metrics import Metrics, weighted
from bmx.core.ranges import check_number
from bmx.core.types import Array, Batch, HostBatch, Metadata, Noise, Variables
from bmx.models.vae import AutoEncoder, Decoded
from bmx.ops.losses import binary_cross_entropy
from bmx.runtime.report import Section
from bmx.tasks.common import find
from bmx.tasks.grids import pairs
from bmx.tasks.images import ImageTask, check_model, check_shape, normals


def divergence(mean: Array, log_variance: Array) -> Array:
  """Returns KL(N(mean, variance) || N(0, 1)), summed over the last dimension: [B, Z] -> [B], nats.

  Source: Kingma & Welling 2014, appendix B.
  """
  return 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1.0 - log_variance).sum(-1)


@dataclasses.dataclass(frozen=True)
class Reconstruction(ImageTask):
  """Cross-entropy of the pixels of a decoded image, summed over an image, in nats.

  Reads `image`, pixels in [0, 1], and `label` int [B] if the model has classes. Predictions are
  `reconstruction` [B, I, J, C] and `latent` [B, Z], the mean of the encoder. The latent numbers
  follow no known distribution, so that it generates nothing; `Variational` does.

  Raises:
    InputError: another model than `AutoEncoder`.
  """

  def __post_init__(self):
    super().__post_init__()
    check_model(self.model, AutoEncoder, type(self).__name__)

  @property
  def _auto_encoder(self) -> AutoEncoder:
    model: Any = self.model
    return model

  def validate(self, metadata: Metadata) -> None:
    super().validate(metadata)
    check_shape(self._auto_encoder.shape, metadata)

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    image = find(batch, 'image')
    noise = batch.get('noise', jnp.zeros((image.shape[0], self._auto_encoder.latent)))
    return image, noise, self.labels(batch)

  def score(self, out: Decoded, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    total, count = weighted(_pixels(out, batch), batch['weights'])
    return total, count, {}

  def postprocess(self, out: Decoded, batch: Batch) -> dict[str, Array]:
    return {'reconstruction': jax.nn.sigmoid(out.logits), 'latent': out.mean}

  def illustrate(self, rows: HostBatch, data: Data) -> list[Section]:
    """Returns the first images of a split above their reconstructions."""
    return pairs('Reconstructions', rows['reconstruction'], data)


@dataclasses.dataclass(frozen=True)
class Variational(Reconstruction):
  """The negative evidence lower bound, with a weighted divergence (Higgins et al. 2017).

  Attributes:
    beta: weight of the divergence; 1 is the bound.

  Raises:
    InputError: `beta` is negative, or the encoder gives no variance.
  """

  beta: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    check_number('beta', self.beta, at_least=0)
    if not self._auto_encoder.variance:
      raise InputError('variance=False: expected True for Variational, or the task Reconstruction')

  @property
  def image_words(self) -> tuple[str, ...]:
    return ()

  def prepare(self, batch: Batch, noise: Noise, *, train: bool) -> Batch:
    """Draws the noise of the latent numbers."""
    shape = find(batch, 'image').shape[0], self._auto_encoder.latent
    return {**batch, 'noise': jax.random.normal(noise.key, shape)}

  def score(self, out: Decoded, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    pixels, kl = _pixels(out, batch), divergence(out.mean, out.log_variance)
    total, count = weighted(pixels + self.beta * kl, batch['weights'])
    metrics = {
      'reconstruction': weighted(pixels, batch['weights']),
      'divergence': weighted(kl, batch['weights']),
    }
    return total, count, metrics

  def generate(
    self,
    variables: Variables,
    labels: Array,
    keys: Array,
    shape: tuple[int, int, int],
    options: ImageOptions,
  ) -> Array:
    """Decodes normal latent numbers."""
    latent = normals(keys, (self._auto_encoder.latent,))
    logits: Any = self.model.apply(variables, latent, labels, method='decode')
    return jax.nn.sigmoid(logits)


def _pixels(out: Decoded, batch: Batch) -> Array:
  """Cross-entropy of the pixels of each image, float32 [B], nats."""
  return binary_cross_entropy(out.logits, find(batch, 'image')).sum((1, 2, 3))
