"""Data sets of which only shapes are known: enough to plan, or to restore a run, not to train."""

import dataclasses
from typing import Any

import numpy as np

from bmx.core.data import Spec
from bmx.core.errors import InputError
from bmx.core.types import HostBatch, Metadata


@dataclasses.dataclass(frozen=True)
class Shapes:
  """Stands for a data set that is not read.

  Attributes:
    spec: arrays of one example.
    metadata: what is known; tasks are not validated against it.
    size: number of examples.
    fitted: what `state` returns.
  """

  spec: dict[str, Spec]
  metadata: Metadata
  size: int = 1 << 30
  fitted: dict[str, Any] = dataclasses.field(default_factory=dict)

  def state(self) -> dict[str, Any]:
    """Everything that was fitted when the data was read."""
    return self.fitted

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Raises InputError."""
    raise InputError('the data was not read: expected shapes only; train to read it')


def shapes(spec: dict[str, Spec], **metadata: Any) -> Shapes:
  """What a data factory with a parameter `read` returns for read=False."""
  return Shapes(spec, {'source': 'shapes only', **metadata})
