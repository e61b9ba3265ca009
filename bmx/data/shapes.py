"""Data sets known by their shapes only: enough to plan, or to restore a run, not to train."""

import dataclasses
from typing import Any

import numpy as np

from bmx.core.data import Spec
from bmx.core.errors import InputError
from bmx.core.types import HostBatch, Metadata


@dataclasses.dataclass(frozen=True)
class Shapes:
  """Placeholder for a data set that is not read.

  Attributes:
    spec: arrays of one example.
    metadata: known facts; tasks are not validated against them.
    size: number of examples.
    fitted: result of `state`.
  """

  spec: dict[str, Spec]
  metadata: Metadata
  size: int = 1 << 30
  fitted: dict[str, Any] = dataclasses.field(default_factory=dict)

  def state(self) -> dict[str, Any]:
    """Returns the values that were fitted when the data was read."""
    return self.fitted

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Raises InputError."""
    raise InputError('the data was not read: expected shapes only; train to read it')


def shapes(spec: dict[str, Spec], **metadata: Any) -> Shapes:
  """Returns the data set that a factory with a parameter `read` returns for read=False."""
  return Shapes(spec, {'source': 'shapes only', **metadata})
