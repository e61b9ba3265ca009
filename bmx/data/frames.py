"""Records of files and of data frames: one mapping of column to cell each."""

import datetime
import decimal
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bmx.core.errors import InputError
from bmx.data.records import Record, no_file, read_csv, read_json_lines
from bmx.runtime.fetch import fetch
from bmx.runtime.storage import Place

JSON_LINES = ('.jsonl', '.json', '.ndjson')
PARQUET = ('.parquet', '.pq')


def read_records(path: Place, columns: Sequence[str] = (), delimiter: str = '') -> list[Record]:
  """Reads the records of a file, by its suffix: Parquet, JSON lines, otherwise CSV.

  Args:
    path: of the file.
    columns: names of the columns of a CSV file without a header.
    delimiter: between the fields of a CSV file; '': a tab in .tsv, otherwise a comma.

  Raises:
    InputError: the file is missing, damaged or empty; a cell that is not text, a number or a date;
      `columns` or `delimiter` for a file that is not CSV.
  """
  suffix = path.suffix.lower()
  if suffix not in (*JSON_LINES, *PARQUET):
    return read_csv(path, columns, delimiter or ('\t' if suffix == '.tsv' else ','))
  for word, value in (('columns', columns), ('delimiter', delimiter)):
    if value:
      raise InputError(f'{word}={value!r}: {path} names its own columns; leave it out')
  if suffix in JSON_LINES:
    return [_plain(record, f'{path}, record {i}') for i, record in enumerate(
      read_json_lines(path), 1)]  # fmt: skip
  return _read_parquet(path)


def _read_parquet(path: Place) -> list[Record]:
  import pyarrow
  import pyarrow.parquet

  if not path.is_file():
    raise no_file(path)
  try:
    found = pyarrow.parquet.read_table(fetch(path))
  except (pyarrow.ArrowException, OSError, ValueError) as error:
    raise InputError(f'{path} is not a Parquet file: {error}') from None
  return _of_arrow(found, str(path))


def frame_records(frame: Any) -> list[Record]:
  """Returns the records of a data frame (pandas, polars, pyarrow), a mapping of columns, or a list.

  Args:
    frame: a list has a mapping of column to cell for each record, as a line of JSON has it.

  Raises InputError if it is another value, is empty, or has columns of different lengths.
  """
  if isinstance(frame, list | tuple):
    return _of_list(frame)
  import pyarrow

  try:
    found = pyarrow.table(dict(frame) if isinstance(frame, Mapping) else frame)
  except (pyarrow.ArrowException, TypeError, ValueError) as error:
    raise InputError(
      f'{type(frame).__name__}: expected a data frame, or a mapping of name to column: {error}'
    ) from None
  return _of_arrow(found, 'the given records')


def _of_list(given: Sequence[Any]) -> list[Record]:
  if not given:
    raise InputError('the given records are empty')
  for i, record in enumerate(given, 1):
    if not isinstance(record, Mapping):
      raise InputError(f'the given records, record {i}: expected a mapping of column to cell, not '
                       f'{type(record).__name__}')  # fmt: skip
  return [_plain(dict(r), f'the given records, record {i}') for i, r in enumerate(given, 1)]


def _of_arrow(found: Any, source: str) -> list[Record]:
  if not found.num_rows or not found.num_columns:
    raise InputError(f'{source} is empty')
  return [_plain(r, f'{source}, record {i}') for i, r in enumerate(found.to_pylist(), 1)]


def _plain(record: Record, where: str) -> Record:
  return {str(name): _cell(value, name, where) for name, value in record.items()}


def _cell(value: Any, name: str, where: str) -> Any:
  """Returns a cell as text, number or None. Raises InputError for a list, a structure or bytes."""
  if value is None or (isinstance(value, float) and math.isnan(value)):
    return None
  if isinstance(value, str | bool | int | float):
    return value
  if isinstance(value, decimal.Decimal):
    return float(value)
  if isinstance(value, datetime.date | datetime.datetime):
    return value.isoformat()
  raise InputError(
    f'{where}: {name} is a {type(value).__name__}; expected a text, a number or a date; leave the '
    f'column out with drop=({name!r},)'
  )
