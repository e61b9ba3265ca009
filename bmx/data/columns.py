"""Kinds of the columns of a table: numbers, dates or categories."""

import datetime
import logging
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any, Literal

from bmx.core.errors import InputError, did_you_mean
from bmx.data.records import Record, number

log = logging.getLogger('bmx')
Kind = Literal['number', 'date', 'category', 'empty']
MISSING = frozenset({'NA', 'N/A', 'n/a', '#N/A', 'NULL', 'null', 'None', '-', '?'})
DATE = re.compile(r'\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}.*)?')
COMMA = re.compile(r'[+-]?\d+(\.\d{3})*,\d+')
DAY = 86400.0  # seconds
MOSTLY = 0.5  # share of numbers above which the other cells of a column are mistakes
MAX_STRANGE = 3  # cells that an error names
MAX_LINES = 200
MAX_NAMED = 8  # categories that the report names
DISTINCT = 0.5  # categories for each record above which a column is likely a name or a number


def is_missing(value: Any, missing: str) -> bool:
  """Returns whether a cell of a column of numbers or dates holds no value."""
  return value is None or (isinstance(value, str) and (value in ('', missing) or value in MISSING))


def date(value: Any) -> float | None:
  """Returns the days from 1970-01-01 to an ISO 8601 date or time (UTC by default); else None."""
  if not isinstance(value, str) or not DATE.fullmatch(value):
    return None
  try:
    moment = datetime.datetime.fromisoformat(value)
  except ValueError:
    return None
  zone = moment.tzinfo or datetime.UTC
  epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
  return (moment.replace(tzinfo=zone) - epoch).total_seconds() / DAY


def names_of(records: Sequence[Record]) -> list[str]:
  """Returns the names of the columns of all records, in the order in which they appear."""
  return list(dict.fromkeys(name for record in records for name in record))


def kind_of(name: str, column: Sequence[Any], missing: str, source: str) -> Kind:
  """Returns the kind of a column: numbers or dates if all its values are; otherwise categories.

  Raises InputError if most values are numbers or dates, but not all: names records and cells.
  """
  there = [(i, v) for i, v in enumerate(column, 1) if not is_missing(v, missing)]
  if not there:
    return 'empty'
  readers: tuple[tuple[Kind, Callable[[Any], float | None]], ...]
  readers = ('number', number), ('date', date)
  for kind, read in readers:
    strange = [(i, v) for i, v in there if read(v) is None]
    if not strange:
      return kind
    if 1 - len(strange) / len(there) > MOSTLY:
      cells = ', '.join(f'record {i}: {v!r}' for i, v in strange[:MAX_STRANGE])
      more = f' and {len(strange) - MAX_STRANGE} more' if len(strange) > MAX_STRANGE else ''
      raise InputError(
        f'{source}: {name} is a {kind} in {len(there) - len(strange)} records, but not in '
        f'{cells}{more}; correct the cells, name the text of a missing value (missing=...), read '
        f'the column as categories (categorical=({name!r},)) or leave it out (drop=({name!r},))'
      )
  return 'category'


def chosen(
  known: Sequence[str], use: Sequence[str], drop: Sequence[str], skip: Sequence[str], source: str
) -> list[str]:
  """Returns the columns to read: those of `use` (() is all) without those of `drop` and `skip`.

  Raises InputError for a name that is not a column.
  """
  for word, names in (('use', use), ('drop', drop)):
    for name in names:
      if name not in known:
        raise InputError(f'{word}={name!r}: {source} has no such column{did_you_mean(name, known)}')
  return [k for k in known if k not in skip and k not in drop and (not use or k in use)]


def log_columns(source: str, lines: Sequence[str]) -> None:
  """Logs how each column was read, one line each."""
  shown = list(lines[:MAX_LINES])
  if len(lines) > MAX_LINES:
    shown.append(f'and {len(lines) - MAX_LINES} more columns, in data.json')
  log.info('%s: columns\n  %s', source, '\n  '.join(shown))


def category_text(known: Sequence[str]) -> str:
  """Number and names of categories, for people."""
  names = ', '.join(name or '(missing)' for name in known[:MAX_NAMED])
  names += ', ...' if len(known) > MAX_NAMED else ''
  return f'{len(known)}: {names}'


def category_line(name: str, known: Sequence[str], size: int) -> str:
  """Formats a line for a column of categories; warns of one with almost as many as records."""
  line = f'{name}: category of {len(known)}'
  if size > 20 and len(known) > DISTINCT * size:
    flag = shlex.quote(f'--data.drop={name}')
    line += f' in {size} records: a name or number of the record? {flag} leaves it out'
  elif known and all(COMMA.fullmatch(value) for value in known if value):
    line += '; numbers with a decimal comma? write a point'
  return line
