"""Columns of a table as numbers."""

import dataclasses
import datetime
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.errors import InputError, near
from bmx.data.columns import (
  category_line,
  category_text,
  chosen,
  date,
  is_missing,
  kind_of,
  log_columns,
  names_of,
)
from bmx.data.records import Record, number

log = logging.getLogger('bmx')
# A deviation below this share of the largest value is rounding.
CONSTANT = {'number': 1e-6, 'date': 1e-10}
READ: dict[str, Callable[[Any], float | None]] = {'number': number, 'date': date}


@dataclasses.dataclass(frozen=True)
class TabularEncoder:
  """Numbers and dates standardized, categories one-hot; an unknown category is all zeros.

  A column is numeric if every value in it is a number, a date if every value is an ISO date; see
  `columns.kind_of`. A missing number or date becomes the mean.

  Attributes:
    numeric: column -> (mean, standard deviation).
    categories: column -> its categories, sorted.
    missing: the text of a missing value, besides '' and the usual ones (`columns.MISSING`).
    dates: column -> (mean, standard deviation), in days since 1970-01-01.
    dropped: columns that are left out.
  """

  numeric: dict[str, tuple[float, float]]
  categories: dict[str, list[str]]
  missing: str
  dates: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  dropped: tuple[str, ...] = ()

  @classmethod
  def fit(
    cls,
    records: Sequence[Record],
    skip: Sequence[str],
    missing: str,
    source: str = 'the data',
    use: Sequence[str] = (),
    drop: Sequence[str] = (),
    categorical: Sequence[str] = (),
  ) -> 'TabularEncoder':
    """Learns columns from records, and logs how each is read.

    Args:
      records: of the training data.
      skip: columns that are not inputs (the target).
      missing: the text of a missing value.
      source: of the records, for messages.
      use: columns to read; () is all.
      drop: columns to leave out.
      categorical: columns that are categories even if they hold numbers.

    Raises:
      InputError: no records; an unknown column; a number that is not finite; a column that is
        mostly, but not always, a number or a date.
    """
    if not records:
      raise InputError(f'{source} has no records: expected at least one to fit columns')
    known = names_of(records)
    chosen(known, categorical, (), (), source)
    names = chosen(known, use, drop, skip, source)
    moments: dict[str, dict[str, tuple[float, float]]] = {'number': {}, 'date': {}}
    categories, lines = {}, []
    dropped, empty = [k for k in known if k not in names and k not in skip], []
    for name in names:
      column = [r.get(name) for r in records]
      kind = 'category' if name in categorical else kind_of(name, column, missing, source)
      if kind == 'empty':
        empty.append(name)
      elif kind == 'category':
        categories[name] = sorted({_text(v) for v in column})
        lines.append(category_line(name, categories[name], len(records)))
      else:
        moments[kind][name] = _moments(column, kind, missing, name, source)
        lines.append(f'{name}: {kind}, ' + _describe(kind, *moments[kind][name]))
    lines += [f'{k}: dropped' for k in dropped] + [f'{k}: dropped, no values' for k in empty]
    log_columns(source, lines)
    return cls(moments['number'], categories, missing, moments['date'], (*dropped, *empty))

  def state(self) -> dict[str, Any]:
    """Returns the fitted values, as JSON holds them."""
    return dataclasses.asdict(self)

  @classmethod
  def restore(cls, state: Mapping[str, Any]) -> 'TabularEncoder':
    """Inverse of `state`."""
    pairs = lambda key: {k: (float(v[0]), float(v[1])) for k, v in state.get(key, {}).items()}
    categories = {k: [str(x) for x in v] for k, v in state['categories'].items()}
    dropped = tuple(state.get('dropped', ()))
    return cls(pairs('numeric'), categories, str(state['missing']), pairs('dates'), dropped)

  def encode(
    self, records: Sequence[Record], source: str, optional: Sequence[str] = ()
  ) -> np.ndarray:
    """Encodes records -> float32 [N, numeric columns + dates + categories].

    Args:
      records: with the columns of the training data.
      source: of them, for messages.
      optional: columns that may be present and are not encoded (the target).

    Raises:
      InputError: missing, extra or renamed columns; a value that is not a finite number or a date.
    """
    self._check_columns(names_of(records), source, optional)
    columns = []
    for kind, moments in (('number', self.numeric), ('date', self.dates)):
      for name, (mean, std) in moments.items():
        values = [self._value(r, name, kind, mean, i, source) for i, r in enumerate(records, 1)]
        columns.append(((np.array(values, np.float64) - mean) / std)[:, None])
    unknown: dict[str, int] = {}
    for name, known in self.categories.items():
      place = {v: i for i, v in enumerate(known)}
      hot = np.zeros((len(records), len(known) + 1))
      texts = [_text(r.get(name)) for r in records]
      at = [place.get(text, -1) for text in texts]
      hot[np.arange(len(records)), at] = 1
      columns.append(hot[:, :-1])  # the last column collects what was never seen
      count = sum(i < 0 and text != '' for i, text in zip(at, texts, strict=True))
      unknown |= {name: count} if count else {}
    if unknown:
      counts = ', '.join(f'{k} {n}' for k, n in unknown.items())
      log.warning('%s: categories that the training data lacks, in records: %s', source, counts)
    if not columns:
      raise InputError(f'{source} has no columns but the target: expected at least one')
    return np.concatenate(columns, 1).astype(np.float32)

  def decode(self, row: np.ndarray) -> dict[str, str]:
    """Inverse of `encode` for one row: the text of each column, for people.

    Args:
      row: float [columns], as `encode` makes it; a missing number was made the mean.
    """
    values = iter(np.asarray(row, np.float64))
    found = {k: _number_text(mean, std, next(values)) for k, (mean, std) in self.numeric.items()}
    found |= {k: str(_day(mean + std * next(values))) for k, (mean, std) in self.dates.items()}
    for name, known in self.categories.items():
      hot = [next(values) for _ in known]
      found[name] = (known[int(np.argmax(hot))] or '(missing)') if any(hot) else '(unknown)'
    return found

  def table(self) -> list[tuple[str, str, str]]:
    """Returns (column, how it is read, values) of every column, for people."""
    rows = [(k, 'number', _describe('number', *v)) for k, v in self.numeric.items()]
    rows += [(k, 'date', _describe('date', *v)) for k, v in self.dates.items()]
    rows += [(k, 'category', category_text(v)) for k, v in self.categories.items()]
    return rows + [(k, 'dropped', '') for k in self.dropped]

  def _check_columns(self, given: Sequence[str], source: str, optional: Sequence[str]) -> None:
    known = [*self.numeric, *self.dates, *self.categories]
    missing = [k for k in known if k not in given]
    extra = [k for k in given if k not in (*known, *self.dropped, *optional)]
    lines = [f'missing {k!r}{near(k, extra)}' for k in missing]
    lines += [f'extra {k!r}' for k in extra]
    if lines:
      raise InputError(f'{source}: expected the columns of the training data; ' + ', '.join(lines))

  def _value(
    self, record: Record, name: str, kind: str, mean: float, row: int, source: str
  ) -> float:
    value = record.get(name)
    if is_missing(value, self.missing):
      return mean
    result = READ[kind](value)
    if result is None or not math.isfinite(result):
      expected = 'a finite number' if kind == 'number' else 'a date such as 2024-05-31'
      raise InputError(f'{source}, record {row}: {name} is {value!r}, expected {expected}')
    return result


def _text(value: Any) -> str:
  """Returns the category that a cell names; '' if the record lacks it."""
  return '' if value is None else str(value)


def _describe(kind: str, mean: float, std: float) -> str:
  if kind == 'number':
    return f'mean {mean:.6g}, deviation {std:.6g}'
  return f'mean {_day(mean)}, deviation {std:.6g} days'


def _number_text(mean: float, std: float, value: float) -> str:
  """A standardized number in its own unit; rounding of float32 beside zero is zero."""
  number = mean + std * value
  return f'{0.0 if abs(number) < 1e-6 * (abs(mean) + std) else number:.6g}'


def _day(days: float) -> datetime.date:
  """The date so many days after 1970-01-01, within the calendar of Python."""
  first = datetime.date(1970, 1, 1).toordinal()
  return datetime.date.fromordinal(min(max(first + round(days), 1), datetime.date.max.toordinal()))


def _moments(
  column: Sequence[Any], kind: str, missing: str, name: str, source: str
) -> tuple[float, float]:
  """Returns mean and standard deviation (1 if the column is constant up to rounding)."""
  there = [(i, v) for i, v in enumerate(column, 1) if not is_missing(v, missing)]
  values = np.array([READ[kind](v) for _, v in there], np.float64)
  with np.errstate(over='ignore', invalid='ignore'):
    finite = np.isfinite(values)
    if finite.all() and not np.isfinite(values.std()):
      finite = np.abs(values) < np.abs(values).max()  # numbers, but too large to square
  if not finite.all():
    row, value = there[int(np.argmin(finite))]
    raise InputError(f'{source}, record {row}: {name} is {value!r}, expected a finite number')
  mean, std = float(values.mean()), float(values.std())
  constant = std <= CONSTANT[kind] * float(np.abs(values).max())
  return mean, 1.0 if constant else std
