"""Test-time augmentation: predictions averaged over views of each image."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from bmx.core.errors import InputError, did_you_mean
from bmx.core.types import Array, Batch, Noise, Task, Variables
from bmx.tasks.classification import Classification
from bmx.tasks.common import Wrapper, innermost

VIEWS = ('flip', 'crops')
SHIFT = 8  # crops are shifted by an eighth of the side


@dataclasses.dataclass(frozen=True)
class Views(Wrapper):
  """A classification of images whose probabilities are the means over views of each image.

  Attributes:
    views: 'flip' adds the image flipped left to right; 'crops' adds four copies, shifted by an
      eighth of the side along both diagonals, with the pixels of the border repeated. Both
      together are ten views.

  Raises:
    InputError: an unknown view, a task that does not classify.
  """

  views: tuple[str, ...] = ()

  def __post_init__(self):
    super().__post_init__()
    for name in self.views:
      if name not in VIEWS:
        raise InputError(
          f'predict.tta={self.views}: unknown view {name!r}{did_you_mean(name, VIEWS)}'
        )
    inner = innermost(self.inner)
    if self.views and not isinstance(inner, Classification):
      raise InputError(
        f'predict.tta={self.views}: expected a classification of images, not '
        f'{type(inner).__name__}; leave it out'
      )

  def predict(self: Any, variables: Variables, batch: Batch, noise: Noise) -> dict[str, Array]:
    """Returns `prediction` and `probability` of each image."""
    if 'image' not in batch:
      raise InputError(f'predict.tta={self.views}: expected images, not {sorted(batch)}')
    seen = views_of(batch['image'], self.views)
    found = [self.inner.predict(variables, batch | {'image': image}, noise) for image in seen]
    probability = jnp.stack([rows['probability'] for rows in found]).mean(0)
    return found[0] | {'probability': probability, 'prediction': probability.argmax(-1)}


def views_of(image: Array, views: tuple[str, ...]) -> list[Array]:
  """Returns the views of images [B, I, J, C]: the images first, then their crops, then flips."""
  found = [image]
  if 'crops' in views:
    found += [_shifted(image, down, right) for down in (-1, 1) for right in (-1, 1)]
  if 'flip' in views:
    found += [view[:, :, ::-1] for view in found]
  return found


def _shifted(image: Array, down: int, right: int) -> Array:
  """Shifts images by an eighth of their sides, down or up and right or left."""
  rows, columns = image.shape[1:3]
  i, j = max(rows // SHIFT, 1), max(columns // SHIFT, 1)
  padded = jnp.pad(image, ((0, 0), (i, i), (j, j), (0, 0)), mode='edge')
  top, left = i - down * i, j - right * j
  return padded[:, top : top + rows, left : left + columns]


def with_views(task: Task, views: tuple[str, ...]) -> Task:
  """Returns the task that predicts with `views`; the task itself without any."""
  return Views(task, tuple(views)) if views else task
