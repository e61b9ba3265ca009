"""Click-through rates: logistic loss over fields, log loss, calibration."""

import dataclasses
from typing import Any

import numpy as np

from bmx.core.data import Data
from bmx.core.errors import InputError
from bmx.core.types import Batch, HostBatch, Metadata
from bmx.models.recsys import ClickModel
from bmx.runtime.report import Section, layout
from bmx.tasks.classification import BinaryClassification
from bmx.tasks.common import find

SMALLEST = 1e-7  # probability of log loss; a float32 near 1 has no finer one
BINS = 10  # of the predictions in the report


@dataclasses.dataclass(frozen=True)
class ClickThrough(BinaryClassification):
  """Logistic loss of clicks. Reads `x` float [B, N], `ids` int [B, F], and `label` 0 or 1 [B]."""

  def validate(self, metadata: Metadata) -> None:
    super().validate(metadata)
    if not isinstance(self.model, ClickModel):
      return
    own = list(self.model.field_sizes), self.model.num_numeric
    data = list(metadata.get('field_sizes', ())), metadata.get('num_numeric', 0)
    if own != data:
      raise InputError(
        f'field_sizes={own[0]}, num_numeric={own[1]}: expected {data[0]} and {data[1]}, those of '
        "the data; set both to 'auto'"
      )

  def check_rows(self, rows: HostBatch, numbers: np.ndarray) -> None:
    """Raises InputError for an id that would read a row of another column."""
    if 'ids' not in rows or not isinstance(self.model, ClickModel):
      return
    sizes = np.array(self.model.field_sizes, np.int64).reshape(1, -1)
    bad = (rows['ids'] < 0) | (rows['ids'] >= sizes)
    if bad.any():
      row, column = np.argwhere(bad)[0]
      raise InputError(
        f'ids={rows["ids"][row, column]} of example {numbers[row]}, column {column}: expected '
        f'0 <= id < {sizes[0, column]}'
      )

  def inputs(self, batch: Batch) -> tuple[Any, ...]:
    return find(batch, 'x'), find(batch, 'ids')

  def illustrate(self, rows: HostBatch, data: Data) -> list[Section]:
    if 'label' not in rows or not len(rows['label']):
      return []
    return [Section('Calibration', _reliability(rows['score'], rows['label']))]


def log_loss(rows: HostBatch) -> float:
  """Computes the mean of -log of the probability of the class that occurred, in nats.

  rows: 'score' float [N], the probability of class 1, and 'label' int [N].
  """
  score, positive = _read(rows)
  p = np.clip(score, SMALLEST, 1 - SMALLEST)
  return float(-np.where(positive, np.log(p), np.log1p(-p)).mean())


def normalized_entropy(rows: HostBatch) -> float:
  """Computes log loss relative to that of the mean rate alone; below 1 is better than it.

  rows: as of `log_loss`. Raises InputError if one class is absent. Source: He et al. 2014.
  """
  rate = _read(rows)[1].mean()
  if rate in (0, 1):
    raise InputError('normalized entropy needs examples of both classes; the split has only one')
  return log_loss(rows) / float(-rate * np.log(rate) - (1 - rate) * np.log1p(-rate))


def calibration(rows: HostBatch) -> float:
  """Computes predicted clicks over observed clicks; 1 is calibrated on average.

  rows: as of `log_loss`. Raises InputError without a click. Source: He et al. 2014.
  """
  score, positive = _read(rows)
  if not positive.any():
    raise InputError('calibration needs examples of class 1; the split has none')
  return float(score.sum() / positive.sum())


def calibration_error(rows: HostBatch) -> float:
  """Computes the mean distance of prediction and rate, over ten bins of equal size.

  rows: as of `log_loss`. Source: Naeini et al. 2015, with bins of equal numbers of examples.
  """
  score, positive = _read(rows)
  bins = _bins(score, positive)
  return float(sum(n * abs(p - rate) for n, p, rate in bins) / len(score))


def _read(rows: HostBatch) -> tuple[np.ndarray, np.ndarray]:
  if 'score' not in rows or 'label' not in rows:
    raise InputError(f'the metric reads score, label, but the predictions have {sorted(rows)}')
  if not len(rows['label']):
    raise InputError('the metric needs examples; the split has none')
  return rows['score'].astype(np.float64), rows['label'] > 0


def _bins(score: np.ndarray, positive: np.ndarray) -> list[tuple[int, float, float]]:
  """Splits examples by score -> (number, mean score, rate) of each bin; equal scores may part."""
  order = np.argsort(score, kind='stable')
  parts = [p for p in np.array_split(order, BINS) if len(p)]
  return [(len(p), float(score[p].mean()), float(positive[p].mean())) for p in parts]


def _reliability(score: np.ndarray, label: np.ndarray) -> str:
  """A table: predicted and observed rate of the examples in ten bins by prediction."""
  lines = [(f'{n:,}', f'{p:.4f}', f'{rate:.4f}')
           for n, p, rate in _bins(score.astype(np.float64), label > 0)]  # fmt: skip
  return layout.grid(('examples', 'predicted rate', 'observed rate'), lines)
