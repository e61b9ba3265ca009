"""The task of a table whose target is a class or a number."""

import flax.linen as nn

from bmx.core.errors import InputError
from bmx.core.types import Metadata
from bmx.tasks.classification import Classification
from bmx.tasks.common import ModelTask
from bmx.tasks.regression import Regression


def tabular(model: nn.Module, metadata: Metadata, smoothing: float = 0.0) -> ModelTask:
  """Returns classification or regression, by what the data hold.

  Args:
    model: of as many outputs as the data have classes, or of one for a number.
    metadata: `num_classes` of a class; `num_targets`, `target_mean` and `target_std` of a number.
    smoothing: of the classes, see `Classification`.

  Raises:
    InputError: the data hold neither; `smoothing` is set for a number.
  """
  if metadata.get('num_classes'):
    return Classification(model, smoothing)
  if not metadata.get('num_targets'):
    raise InputError(
      'the data have no target: expected a table with a column of classes or numbers'
    )
  if smoothing:
    raise InputError(f'task.smoothing={smoothing}: expected 0 where the target is a number')
  return Regression(model, metadata.get('target_mean', 0.0), metadata.get('target_std', 1.0))
