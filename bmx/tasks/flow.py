"""Flow matching: images from noise along straight paths.

Sources: Lipman et al. 2023, Flow Matching for Generative Modeling (arXiv 2210.02747, eq. 22 and 23
with sigma 0); Liu et al. 2023, Flow Straight and Fast (rectified flow, arXiv 2209.03003, eq. 1);
Ho & Salimans 2022, Classifier-Free Diffusion Guidance (arXiv 2207.12598, eq. 6); times of Esser et
al. 2024 (arXiv 2403.03206, eq. 19).
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.images import ImageOptions
from bmx.core.metrics import Metrics, weighted
from bmx.core.ranges import check_number
from bmx.core.types import Array, Batch, Metadata, Noise, Variables
from bmx.tasks.common import find, num_outputs
from bmx.tasks.images import ImageTask, normals

TIMES: dict[str, Callable[[Array, tuple[int, ...]], Array]] = {
  'uniform': jax.random.uniform,
  'logit_normal': lambda key, shape: jax.nn.sigmoid(jax.random.normal(key, shape)),
}


@dataclasses.dataclass(frozen=True)
class FlowMatching(ImageTask):
  """Mean squared error of the velocity, image - noise, at (1 - t) · noise + t · image.

  Reads `image`, pixels in [0, 1], which the model sees in [-1, 1], and `label` int [B] if the model
  has classes.

  Attributes:
    label_dropout: share of the labels that training replaces by "unknown", for guidance.
    time: distribution of t: 'uniform', or 'logit_normal', which prefers the middle.

  Raises:
    InputError: a share out of range, an unknown distribution.
  """

  label_dropout: float = 0.1
  time: str = 'uniform'

  def __post_init__(self):
    super().__post_init__()
    check_number('label_dropout', self.label_dropout, at_least=0, below=1)
    if self.time not in TIMES:
      raise InputError(f'time={self.time!r}: expected one of {", ".join(TIMES)}')

  @property
  def image_words(self) -> tuple[str, ...]:
    return 'guidance', 'sample_steps', 'sampler'

  def validate(self, metadata: Metadata) -> None:
    super().validate(metadata)
    shape, channels = metadata.get('shape'), num_outputs(self.model)
    if shape and channels != shape[-1]:
      raise InputError(
        f'num_outputs={channels} of the velocity: expected {shape[-1]}, the channels of the images'
      )

  def prepare(self, batch: Batch, noise: Noise, *, train: bool) -> Batch:
    """Draws a time, noise and dropped labels of each example."""
    of_time, of_image, of_label = jax.random.split(noise.key, 3)
    image = 2.0 * find(batch, 'image') - 1.0
    count = image.shape[0]
    time = TIMES[self.time](of_time, (count,))
    start = jax.random.normal(of_image, image.shape)
    share = time[:, None, None, None]
    label = self.labels(batch)
    if train and self.num_classes:
      dropped = jax.random.uniform(of_label, (count,)) < self.label_dropout
      label = jnp.where(dropped, self.num_classes, label)
    noisy = (1.0 - share) * start + share * image
    return {**batch, 'noisy': noisy, 'time': time, 'velocity': image - start, 'label': label}

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    image = find(batch, 'noisy', 'image')
    time = batch.get('time', jnp.zeros(image.shape[0]))
    return image, time, self.labels(batch)

  def score(self, out: Array, batch: Batch, *, train: bool) -> tuple[Array, Array, Metrics]:
    error = jnp.square(out.astype(jnp.float32) - batch['velocity']).mean((1, 2, 3))
    total, count = weighted(error, batch['weights'])
    return total, count, {}

  def generate(
    self,
    variables: Variables,
    labels: Array,
    keys: Array,
    shape: tuple[int, int, int],
    options: ImageOptions,
  ) -> Array:
    """Follows the velocity from noise to images, see `integrate`."""

    def velocity(x: Array, time: Array) -> Array:
      return self._guided(variables, x, jnp.full(x.shape[0], time), labels, options.guidance)

    image = integrate(velocity, normals(keys, shape), options.sample_steps, options.sampler)
    return (image + 1.0) / 2.0

  def _guided(
    self, variables: Variables, x: Array, time: Array, labels: Array, guidance: float
  ) -> Array:
    """Returns v(unknown) + guidance · (v(class) - v(unknown)), float32 [n, I, J, C]."""
    unknown = jnp.full_like(labels, self.num_classes)

    def apply(x: Array, time: Array, label: Array) -> Array:
      out: Any = self.model.apply(variables, x, time, label, train=False)
      return out.astype(jnp.float32)

    if guidance in (0.0, 1.0) or not self.num_classes:
      return apply(x, time, labels if guidance else unknown)
    twice = lambda a: jnp.concatenate([a, a])
    both = apply(twice(x), twice(time), jnp.concatenate([labels, unknown]))
    asked, free = jnp.split(both, 2)
    return free + guidance * (asked - free)


def integrate(
  velocity: Callable[[Array, Array], Array], x: Array, steps: int, sampler: str
) -> Array:
  """Solves dx/dt = velocity(x, t) from t = 0 to 1 in equal steps, as one loop of the program.

  Args:
    velocity: (x, float32 []) -> array like x.
    x: at t = 0.
    steps: of length 1 / steps.
    sampler: 'euler', of first order, or 'heun', of second order with two velocities a step.

  Source: Karras et al. 2022, algorithm 1, for Heun's method.
  """
  size = 1.0 / steps

  def step(i: Array, x: Array) -> Array:
    time = i * size
    first = velocity(x, time)
    end = x + size * first
    if sampler == 'euler':
      return end
    return x + 0.5 * size * (first + velocity(end, time + size))

  return jax.lax.fori_loop(0, steps, step, x)
