"""Columns of a table as numbers."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.errors import InputError, did_you_mean
from bmx.data.records import Record, number

log = logging.getLogger('bmx')
CONSTANT = 1e-6  # a deviation below this share of the largest value is rounding


@dataclasses.dataclass(frozen=True)
class TabularEncoder:
  """Numeric columns standardized, others one-hot; a category that was never seen is all zeros.

  A column is numeric if every value in it is a number. A missing number becomes the mean.

  Attributes:
    numeric: column -> (mean, standard deviation).
    categories: column -> its categories, sorted.
    missing: the text of a missing value, besides ''.
  """

  numeric: dict[str, tuple[float, float]]
  categories: dict[str, list[str]]
  missing: str

  @classmethod
  def fit(
    cls, records: Sequence[Record], skip: Sequence[str], missing: str, source: str = 'the data'
  ) -> 'TabularEncoder':
    """Learns columns from records.

    Raises InputError if there are no records, or a number is not finite.
    """
    if not records:
      raise InputError(f'{source} has no records: expected at least one to fit columns')
    numeric, categories = {}, {}
    for name in records[0]:
      if name in skip:
        continue
      column = [r.get(name) for r in records]
      there = [v for v in column if v not in (None, '', missing)]
      values = [number(v) for v in there]
      if there and all(v is not None for v in values):
        numeric[name] = _moments(np.array(values, np.float64), there, column, name, source)
      else:
        categories[name] = sorted({str(v) for v in column if v is not None})
    return cls(numeric, categories, missing)

  def state(self) -> dict[str, Any]:
    """What was learned, as JSON holds it."""
    return dataclasses.asdict(self)

  @classmethod
  def restore(cls, state: Mapping[str, Any]) -> 'TabularEncoder':
    """Inverse of `state`."""
    numeric = {k: (float(v[0]), float(v[1])) for k, v in state['numeric'].items()}
    categories = {k: [str(x) for x in v] for k, v in state['categories'].items()}
    return cls(numeric, categories, str(state['missing']))

  def encode(
    self, records: Sequence[Record], source: str, optional: Sequence[str] = ()
  ) -> np.ndarray:
    """Records -> float32 [N, numeric columns + categories].

    Args:
      records: with the columns of the training data.
      source: of them, for messages.
      optional: columns that may be there and are not encoded (the target).

    Raises:
      InputError: missing, extra or renamed columns; a value that is not a finite number.
    """
    self._check_columns(records[0], source, optional)
    columns = []
    for name, (mean, std) in self.numeric.items():
      values = [self._number(r, name, mean, i, source) for i, r in enumerate(records)]
      columns.append(((np.array(values, np.float64) - mean) / std)[:, None])
    unknown: dict[str, int] = {}
    for name, known in self.categories.items():
      place = {v: i for i, v in enumerate(known)}
      hot = np.zeros((len(records), len(known) + 1))
      at = [place.get(str(r.get(name)), -1) for r in records]
      hot[np.arange(len(records)), at] = 1
      columns.append(hot[:, :-1])  # the last column collects what was never seen
      unknown |= {name: at.count(-1)} if -1 in at else {}
    if unknown:
      counts = ', '.join(f'{k} {n}' for k, n in unknown.items())
      log.warning('%s: categories that the training data lacks, in records: %s', source, counts)
    if not columns:
      raise InputError(f'{source} has no columns but the target: expected at least one')
    return np.concatenate(columns, 1).astype(np.float32)

  def _check_columns(self, record: Record, source: str, optional: Sequence[str]) -> None:
    known = [*self.numeric, *self.categories]
    missing = [k for k in known if k not in record]
    extra = [k for k in record if k not in known and k not in optional]
    lines = [f'missing {k!r}{did_you_mean(k, extra) if extra else ""}' for k in missing]
    lines += [f'extra {k!r}' for k in extra]
    if lines:
      raise InputError(f'{source}: expected the columns of the training data; ' + ', '.join(lines))

  def _number(self, record: Record, name: str, mean: float, row: int, source: str) -> float:
    value = record.get(name)
    if value in (None, '', self.missing):
      return mean
    result = number(value)
    if result is None or not math.isfinite(result):
      raise InputError(f'{source}, record {row + 1}: {name} is {value!r}, expected a finite number')
    return result


def _moments(
  values: np.ndarray, there: Sequence[Any], column: Sequence[Any], name: str, source: str
) -> tuple[float, float]:
  """-> (mean, standard deviation; 1 if the column is constant up to rounding)."""
  with np.errstate(over='ignore', invalid='ignore'):
    finite = np.isfinite(values)
    if finite.all() and not np.isfinite(values.std()):
      finite = np.abs(values) < np.abs(values).max()  # numbers, but too large to square
  if not finite.all():
    value = there[int(np.argmin(finite))]
    row = column.index(value) + 1
    raise InputError(f'{source}, record {row}: {name} is {value!r}, expected a finite number')
  mean, std = float(values.mean()), float(values.std())
  constant = std <= CONSTANT * float(np.abs(values).max())
  return mean, 1.0 if constant else std
