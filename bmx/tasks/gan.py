"""Adversarial training: generator and discriminator in one step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bmx.core.images import ImageOptions
from bmx.core.metrics import Metrics, weighted
from bmx.core.ranges import check_number
from bmx.core.types import Array, Batch, Metadata, Noise, Variables
from bmx.models.gan import GAN, Scores
from bmx.tasks.common import counts, find
from bmx.tasks.images import ImageTask, check_model, check_shape, normals


@dataclasses.dataclass(frozen=True)
class Adversarial(ImageTask):
  """Sum of both networks' losses; neither gets a gradient of the other's.

  Non-saturating losses (Goodfellow et al. 2014), softplus(-D(real)) + softplus(D(fake)) and
  softplus(-D(fake)), and the penalty R1 (Mescheder et al. 2018), penalty / 2 · |grad D(real)|² of
  each image, every `penalty_every` steps with that many times its weight (Karras et al. 2020).

  Reads `image`, pixels in [0, 1], which the model sees in [-1, 1], and `label` int [B] if the model
  has classes. The loss is that of a game: it selects no checkpoint.

  Attributes:
    penalty: weight of R1; 0: none.
    penalty_every: steps between two penalties.

  Raises:
    InputError: a weight or an interval out of range, another model than `GAN`.
  """

  penalty: float = 1.0
  penalty_every: int = 4

  def __post_init__(self):
    super().__post_init__()
    check_model(self.model, GAN, 'Adversarial')
    check_number('penalty', self.penalty, at_least=0)
    check_number('penalty_every', self.penalty_every, at_least=1)

  @property
  def image_words(self) -> tuple[str, ...]:
    return ()

  def validate(self, metadata: Metadata) -> None:
    super().validate(metadata)
    check_shape(self._gan.shape, metadata)

  @property
  def _gan(self) -> GAN:
    model: Any = self.model
    return model

  def prepare(self, batch: Batch, noise: Noise, *, train: bool) -> Batch:
    """Draws the latent numbers, and weighs the penalty of this step."""
    count = find(batch, 'image').shape[0]
    due = (noise.step % self.penalty_every == 0) & train & (self.penalty > 0)
    weight = jnp.broadcast_to(jnp.where(due, float(self.penalty_every), 0.0), (count,))
    latent = jax.random.normal(noise.key, (count, self._gan.latent))
    return {**batch, 'latent': latent, 'penalty': weight}

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    image = 2.0 * find(batch, 'image') - 1.0
    count = image.shape[0]
    latent = batch.get('latent', jnp.zeros((count, self._gan.latent)))
    return image, latent, self.labels(batch), batch.get('penalty', jnp.zeros(count))

  def score(self, out: Scores, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    weights = batch['weights']
    discriminator = jax.nn.softplus(-out.real) + jax.nn.softplus(out.fake)
    generator = jax.nn.softplus(-out.fooled)
    total, count = weighted(discriminator + generator + 0.5 * self.penalty * out.penalty, weights)
    metrics = {
      'loss_discriminator': weighted(discriminator, weights),
      'loss_generator': weighted(generator, weights),
      'real_accuracy': counts(out.real > 0, weights),
      'fake_accuracy': counts(out.fake < 0, weights),
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
    """Calls the generator on normal latent numbers."""
    latent = normals(keys, (self._gan.latent,))
    image: Any = self.model.apply(variables, latent, labels, method='generate')
    return (image + 1.0) / 2.0
