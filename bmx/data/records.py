"""Records from files: CSV and JSON lines."""

import csv
import gzip
import io
import json
import pathlib
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from bmx.core.errors import InputError, near
from bmx.runtime.storage import Place

Record = dict[str, Any]
WORKBOOKS = ('.xlsx', '.xls', '.xlsm', '.ods')
LINE_END = re.compile('\r\n|\n|\r')  # not \v, \f, U+0085 or U+2028, as str.splitlines has it


def read_csv(path: Place, columns: Sequence[str] = (), delimiter: str = ',') -> list[Record]:
  """Reads rows by column name; the first line names the columns unless `columns` does.

  Blanks around a cell are cut, blanks inside its quotes are kept. A field may have any length.

  Raises InputError: no such file, not UTF-8 (offset named), a line with too few or too many fields.
  """
  file = io.StringIO(read_text(path), newline='')  # a quoted field may hold line ends
  raw: list[str] = []  # lines of the current record
  lines = csv.reader(_recorded(file, raw), delimiter=delimiter, skipinitialspace=True)
  names, records = list(columns), []
  limit = csv.field_size_limit(sys.maxsize)  # of the whole process: 131,072 by default
  try:
    for row in lines:
      text = ''.join(raw)
      raw.clear()
      if not row or all(not cell.strip() for cell in row):
        continue
      if not names:
        names = [cell.strip() for cell in row]
        if len(set(names)) < len(names):
          raise InputError(f'{path}: two columns have one name in the header {names}')
        continue
      if len(row) != len(names):
        raise InputError(f'{path}, line {lines.line_num}: {len(row)} fields, expected {len(names)}')
      records.append(dict(zip(names, (_cell(cell, text) for cell in row), strict=True)))
  except csv.Error as error:
    raise InputError(f'{path}, line {lines.line_num}: {error}') from None
  finally:
    csv.field_size_limit(limit)
  if not records:
    header = names and not columns
    raise InputError(f'{path} {"has a header and no records" if header else "is empty"}')
  return records


def _recorded(lines: Iterable[str], raw: list[str]) -> Iterator[str]:
  """Yields the lines, and appends each to `raw`."""
  for line in lines:
    raw.append(line)
    yield line


def _cell(cell: str, raw: str) -> str:
  """Returns a cell of the record `raw` without the blanks around it, except inside quotes."""
  bare = cell.strip()
  if cell == bare:
    return cell
  # Blanks may also follow the closing quote: the longest text that stands in quotes counts.
  cut = (cell[:n] for n in range(len(cell), len(cell.rstrip()) - 1, -1))
  return next((c for c in cut if '"{}"'.format(c.replace('"', '""')) in raw), bare)


def read_json_lines(path: Place) -> list[Record]:
  """Reads one object a line; see `numbered_json_lines`."""
  return [record for _, record in numbered_json_lines(path)]


def numbered_json_lines(path: Place) -> list[tuple[int, Record]]:
  """Reads one object a line, with the line's number.

  Raises InputError naming file and line of another value.
  """
  records = []
  for number, line in enumerate(LINE_END.split(read_text(path)), 1):
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


def read_text(path: Place) -> str:
  """Reads a whole text file; NAME.gz is decompressed.

  Raises InputError: no such file, a damaged .gz, not UTF-8 (offset named).
  """
  if not path.is_file():
    raise no_file(path)
  content = path.read_bytes()
  if path.suffix.lower() == '.gz':
    try:
      content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
      raise InputError(f'{path} is damaged, or not compressed by gzip: {error}') from None
  try:
    return content.decode('utf-8-sig')
  except UnicodeDecodeError as error:
    fix = 'save it as UTF-8'
    if path.suffix.lower() in WORKBOOKS:
      fix = 'a workbook is not a table of text; export its sheet as CSV'
    raise InputError(f'{path} is not UTF-8: byte {error.object[error.start]:#04x} at offset '
                     f'{error.start}; {fix}') from None  # fmt: skip


def no_file(path: Place) -> InputError:
  """Returns the error for a file that does not exist; names a similar one of its folder."""
  if isinstance(path, pathlib.Path) and path.is_dir():
    return InputError(f'no file {path}: it is a folder')
  here = isinstance(path, pathlib.Path) and path.parent.is_dir()
  names = [str(p) for p in path.parent.iterdir()] if here else []
  return InputError(f'no file {path}{near(str(path), names)}')


def number(value: Any) -> float | None:
  """Returns the float that a field holds; None if it is not a number."""
  if isinstance(value, bool) or not isinstance(value, str | int | float):
    return None
  try:
    return float(value)
  except (ValueError, OverflowError):
    return None
