"""Records from files: CSV and JSON lines."""

import csv
import io
import json
import pathlib
from collections.abc import Sequence
from typing import Any

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


def number(value: Any) -> float | None:
  """The float that a field holds; None if it is not a number."""
  if isinstance(value, bool) or not isinstance(value, str | int | float):
    return None
  try:
    return float(value)
  except (ValueError, OverflowError):
    return None
