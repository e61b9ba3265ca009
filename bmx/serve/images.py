"""Images of a run: generated in batches by one program, clipped, written as a grid or as arrays."""

import logging
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bmx.core import streams, tree
from bmx.core.errors import InputError
from bmx.core.experiment import Experiment
from bmx.core.images import ImageGenerator, ImageOptions
from bmx.core.types import Task, Variables
from bmx.parallel import jit
from bmx.tasks.common import Wrapper

log = logging.getLogger('bmx')
BATCH = 100  # images of a program, at most
TOLERANCE = 0.02  # pixels this far outside [0, 1] are errors of the model, not of rounding


def image_task(task: Task) -> ImageGenerator | None:
  """Returns the task inside all wrappers if it generates images, else None."""
  while isinstance(task, Wrapper):
    task = task.inner
  return task if isinstance(task, ImageGenerator) else None


class ImageSampler:
  """Generates images of one task, with weights that callers give.

  Args:
    experiment: its task, layout, words and the shape of its images.
    options: other words than those of the experiment.

  Raises:
    InputError: the task generates no images, does not read an option that is set, or has not the
      class that is asked for.
  """

  def __init__(self, experiment: Experiment, options: ImageOptions | None = None):
    task = image_task(experiment.task)
    if task is None:
      raise InputError(
        f'{type(experiment.task).__name__} cannot generate images: expected a task such as '
        'bmx.tasks.flow:FlowMatching'
      )
    self.options = experiment.images if options is None else options
    check_options(task, self.options)
    self.task, self.layout = task, experiment.layout
    self.shape = image_shape(experiment)
    parts = math.prod(self.layout.mesh.shape[a] for a in self.layout.rules['batch'])
    self.batch = -(-min(BATCH, self.options.count) // parts) * parts
    self._program = jit(self._generate, self.layout, out_shardings=self.layout.sharding())

  def labels(self) -> np.ndarray:
    """Returns the class of each image, int32 [count]: that of the options, or each in turn."""
    number = np.arange(self.options.count, dtype=np.int32)
    if self.options.label >= 0:
      return np.full_like(number, self.options.label)
    return number % max(1, self.task.num_classes)

  @property
  def columns(self) -> int:
    """Columns of a grid: one for each class where all are generated; 0: a square grid."""
    every = self.options.label < 0 and self.options.count >= self.task.num_classes
    return self.task.num_classes if every else 0

  def __call__(self, params: Variables, seed: int = 0) -> np.ndarray:
    """Generates the images: float32 [count, I, J, C], not clipped.

    Image i depends on the seed, i, its class and the weights, not on the number of images.

    Args:
      params: plain weights, `Task.merged_params`.
      seed: of the noise.
    """
    labels, found = self.labels(), []
    key = jax.random.fold_in(jax.random.PRNGKey(seed), streams.GENERATE)
    at = self.layout.sharding('batch')
    for start in range(0, len(labels), self.batch):
      numbers = np.arange(start, start + self.batch, dtype=np.int32)
      rows = jax.device_put((labels[np.minimum(numbers, len(labels) - 1)], numbers), at)
      found.append(tree.fetch(self._program(params, key, *rows)))
    return np.concatenate(found)[: len(labels)]

  def _generate(self, params: Variables, key: Any, labels: Any, numbers: Any) -> Any:
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
    return self.task.generate({'params': params}, labels, keys, self.shape, self.options)


def check_options(task: ImageGenerator, options: ImageOptions) -> None:
  """Raises InputError naming an option that a task does not read, or a class that it lacks."""
  plain = ImageOptions()
  given: Mapping[str, tuple[Any, Any]] = {
    'guidance': (options.guidance, plain.guidance),
    'sample_steps': (options.sample_steps, plain.sample_steps),
    'sampler': (options.sampler, plain.sampler),
  }
  for name, (value, default) in given.items():
    if value != default and name not in task.image_words:
      raise InputError(
        f'generate.{name}={value!r}: expected {default!r}, since {type(task).__name__} does not '
        'read it'
      )
  if options.label >= max(1, task.num_classes) or (options.label >= 0 and not task.num_classes):
    known = f'0 to {task.num_classes - 1}, or -1' if task.num_classes else '-1, without classes'
    raise InputError(f'generate.label={options.label}: expected {known}')


def image_shape(experiment: Experiment) -> tuple[int, int, int]:
  """Returns (I, J, C) of the images of the data. Raises InputError if the data have none."""
  spec = experiment.data.spec.get('image')
  if spec is None or len(spec.shape) != 3:
    raise InputError('data: expected images [I, J, C], to generate images')
  rows, columns, channels = spec.shape
  return rows, columns, channels


def clipped(images: np.ndarray) -> np.ndarray:
  """Clips pixels to [0, 1], and logs how many were outside.

  Raises InputError if a pixel is not finite.
  """
  if not np.isfinite(images).all():
    raise InputError('the model generated pixels that are not finite: expected trained weights')
  outside = np.mean((images < -TOLERANCE) | (images > 1 + TOLERANCE))
  if outside:
    log.info('images     %.2g %% of the pixels were outside [0, 1] and are clipped', 100 * outside)
  return np.clip(images, 0.0, 1.0)
