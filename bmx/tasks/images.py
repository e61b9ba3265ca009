"""Base of tasks that generate images."""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import Array, Batch, HostBatch, Metadata
from bmx.ops.checks import check_ids
from bmx.tasks.common import ModelTask, find


@runtime_checkable
class HasClasses(Protocol):
  """A model of images that declares the classes it is conditioned on; 0: none."""

  @property
  def num_classes(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class ImageTask(ModelTask):
  """A task whose model makes images, of a class if the model has classes.

  Raises:
    InputError: the model does not declare `num_classes`.
  """

  def __post_init__(self):
    super().__post_init__()
    if not isinstance(self.model, HasClasses):
      raise InputError(
        f'task.model: expected a model with num_classes, such as bmx.models.flow:Velocity, not '
        f'{type(self.model).__name__}'
      )

  @property
  def num_classes(self) -> int:
    model: Any = self.model
    return model.num_classes

  def validate(self, metadata: Metadata) -> None:
    given = metadata.get('num_classes', 0)
    if self.num_classes and self.num_classes != given:
      raise InputError(
        f'num_classes={self.num_classes}: expected {given}, the number of classes of the data, or '
        '0 for images without classes'
      )

  def check_rows(self, rows: HostBatch, numbers: np.ndarray) -> None:
    if 'label' in rows and self.num_classes:
      check_ids('label', rows['label'], self.num_classes, numbers, rows.get('weights'))

  def labels(self, batch: Batch) -> Array:
    """Returns the labels of a batch, int [B]; zeros for a model without classes."""
    if self.num_classes:
      return find(batch, 'label')
    return jnp.zeros(find(batch, 'image').shape[0], jnp.int32)

  def postprocess(self, out: Any, batch: Batch) -> dict[str, Array]:
    raise InputError(
      f'{type(self).__name__} predicts nothing of an example: expected `bmx generate RUN`, which '
      'makes images'
    )


def normals(keys: Array, shape: tuple[int, ...]) -> Array:
  """Draws normal numbers: keys uint32 [n, 2] -> float32 [n, *shape], each row of its own key."""
  return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def check_shape(shape: tuple[int, ...], metadata: Metadata) -> None:
  """Raises InputError if the images of the data have another shape than those of the model."""
  given = tuple(metadata.get('shape') or ())
  if given and tuple(shape) != given:
    raise InputError(f'shape={tuple(shape)}: expected {given}, the shape of the images of the data')


def check_model(model: nn.Module, kind: type, task: str) -> None:
  """Raises InputError unless the model of a task is of a kind."""
  if not isinstance(model, kind):
    raise InputError(
      f'task.model: {task} expects {kind.__module__}:{kind.__name__}, not {type(model).__name__}'
    )
