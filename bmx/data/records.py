"""Tables of records: CSV and JSON lines, encoded as numbers by what the training part holds."""

import csv
import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bmx.core.errors import InputError

Record = dict[str, Any]


def read_csv(path: pathlib.Path, columns: Sequence[str] = (), delimiter: str = ',') -> list[Record]:
  """Rows by column name; the first line names the columns unless `columns` does.

  Raises InputError: no such file, not UTF-8 (offset named), a line with too few or too many fields.
  """
  file = io.StringIO(read_text(path), newline='')  # a quoted field may hold line ends
  lines = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
  names, records = list(columns), []
  try:
    for row in lines:
      if not row or all(not cell.strip() for cell in row):
        continue
      if not names:
        names = [cell.strip() for cell in row]
        if len(set(names)) < len(names):
          raise InputError(f'{path}: two columns have one name in the header {names}')
        continue
      if len(row) != len(names):
        raise InputError(f'{path}, line {lines.line_num}: {len(row)} fields, expected {len(names)}')
      records.append(dict(zip(names, (cell.strip() for cell in row), strict=True)))
  except csv.Error as error:
    raise InputError(f'{path}, line {lines.line_num}: {error}') from None
  if not records:
    raise InputError(f'{path} is empty')
  return records


def read_json_lines(path: pathlib.Path) -> list[Record]:
  """One object a line; see `numbered_json_lines`."""
  return [record for _, record in numbered_json_lines(path)]


def numbered_json_lines(path: pathlib.Path) -> list[tuple[int, Record]]:
  """One object a line, with the line's number. Raises InputError naming file and line where one is
  not."""
  records = []
  for number, line in enumerate(read_text(path).split('\n'), 1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise InputError(f'{path}, line {number}: not JSON: {error}') from None
    if not isinstance(record, dict):
      raise InputError(f'{path}, line {number}: a JSON object is expected, not {line[:40]!r}')
    records.append((number, record))
  if not records:
    raise InputError(f'{path} is empty')
  return records


def read_text(path: pathlib.Path) -> str:
  """A whole text file. Raises InputError: no such file, not UTF-8 (offset named)."""
  if not path.is_file():
    raise InputError(f'no file {path}')
  try:
    return path.read_bytes().decode('utf-8-sig')
  except UnicodeDecodeError as error:
    raise InputError(f'{path} is not UTF-8: byte {error.object[error.start]:#04x} at offset '
                     f'{error.start}') from None  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Encoding:
  """Columns to numbers: numeric ones standardised, others one-hot; unseen categories are all zero.

  A column is numeric where every value that is there is a number. Missing numbers become the mean.
  """

  numeric: dict[str, tuple[float, float]]  # name -> (mean, standard deviation)
  categories: dict[str, list[str]]
  missing: str

  @classmethod
  def fit(
    cls, records: Sequence[Record], skip: Sequence[str], missing: str, source: str = 'the data'
  ) -> 'Encoding':
    if not records:
      raise InputError(f'{source} has no records to learn columns from')
    numeric, categories = {}, {}
    for name in records[0]:
      if name in skip:
        continue
      column = [r.get(name) for r in records]
      there = [v for v in column if v not in (None, '', missing)]
      numbers = [number(v) for v in there]
      if there and all(v is not None for v in numbers):
        values = np.array(numbers, np.float64)
        with np.errstate(over='ignore', invalid='ignore'):
          finite = np.isfinite(values)
          if finite.all() and not np.isfinite(values.std()):
            finite = np.abs(values) < np.abs(values).max()  # numbers, but too large to square
        if not finite.all():
          value = there[int(np.argmin(finite))]
          row = column.index(value) + 1
          raise InputError(f'{source}, record {row}: {name} is {value!r}, expected a finite number')
        numeric[name] = (float(values.mean()), float(values.std()) or 1.0)
      else:
        categories[name] = sorted({str(v) for v in column if v is not None})
    return cls(numeric, categories, missing)

  def encode(self, records: Sequence[Record], source: str) -> np.ndarray:
    """-> float32 [N, numeric columns + categories]."""
    columns = []
    for name, (mean, std) in self.numeric.items():
      values = [self._number(r, name, mean, i, source) for i, r in enumerate(records)]
      columns.append(((np.array(values, np.float64) - mean) / std)[:, None])
    for name, known in self.categories.items():
      place = {v: i for i, v in enumerate(known)}
      hot = np.zeros((len(records), len(known) + 1))
      hot[np.arange(len(records)), [place.get(str(r.get(name)), -1) for r in records]] = 1
      columns.append(hot[:, :-1])  # the last column gathers what was never seen
    if not columns:
      raise InputError(f'{source} has no columns but the target')
    return np.concatenate(columns, 1).astype(np.float32)

  def _number(self, record: Record, name: str, mean: float, row: int, source: str) -> float:
    value = record.get(name)
    if value in (None, '', self.missing):
      return mean
    result = number(value)
    if result is None or not math.isfinite(result):
      raise InputError(f'{source}, record {row + 1}: {name} is {value!r}, expected a finite number')
    return result


def number(value: Any) -> float | None:
  """The float that a field says, None where it says none."""
  if isinstance(value, bool) or not isinstance(value, str | int | float):
    return None
  try:
    return float(value)
  except (ValueError, OverflowError):
    return None
