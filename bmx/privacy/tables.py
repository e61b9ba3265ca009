"""Tables of persons: generalized columns, k-anonymity and l-diversity."""

import collections
import dataclasses
import datetime
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from bmx.core.errors import InputError, did_you_mean
from bmx.data.records import number

Row = Mapping[str, Any]
PARTS = {'month': '%Y-%m', 'year': '%Y'}  # of a date that are kept


@dataclasses.dataclass(frozen=True)
class Groups:
  """Groups of rows with equal quasi-identifiers.

  Attributes:
    rows: in the table. groups: among them.
    smallest: rows of the smallest group: the table is k-anonymous for this k.
    least_diverse: distinct values of a sensitive column in a group, the fewest: the table is
      l-diverse for this l (distinct l-diversity); 0 without a sensitive column.
  """

  rows: int
  groups: int
  smallest: int
  least_diverse: int


def check_columns(word: str, names: Iterable[str], columns: Sequence[str]) -> None:
  """Raises InputError naming a column that the table lacks."""
  for name in names:
    if name not in columns:
      raise InputError(f'anonymize.{word}: no column {name!r}{did_you_mean(name, columns)}')


def generalize(
  rows: Sequence[Row],
  ranges: Mapping[str, float] | None = None,
  dates: Mapping[str, str] | None = None,
  prefixes: Mapping[str, int] | None = None,
) -> list[dict[str, Any]]:
  """Replaces values by coarser ones; empty ones stay.

  Args:
    rows: of the table.
    ranges: column -> width: 37 becomes 30-39 at a width of 10.
    dates: column -> 'month' or 'year': 1980-03-17 becomes 1980-03 or 1980.
    prefixes: column -> characters that stay: 10115 becomes 101** at 3.

  Raises:
    InputError: an argument out of range; a value that is not a number, or not a date that begins
      with YYYY-MM-DD (row and column are named).
  """
  ranges, dates, prefixes = dict(ranges or {}), dict(dates or {}), dict(prefixes or {})
  for column, width in ranges.items():
    if not (math.isfinite(width) and width > 0):
      raise InputError(f'anonymize.ranges={column}:{width}: expected a width above 0')
  for column, part in dates.items():
    if part not in PARTS:
      raise InputError(f'anonymize.dates={column}:{part}: expected month or year')
  for column, kept in prefixes.items():
    if kept < 0:
      raise InputError(f'anonymize.prefixes={column}:{kept}: expected at least 0 characters')
  makers: dict[str, Callable[[Any], str | None]] = {
    **{c: lambda v, w=w: _range(v, w) for c, w in ranges.items()},
    **{c: lambda v, p=p: _date(v, p) for c, p in dates.items()},
    **{c: lambda v, n=n: str(v)[:n] + '*' * len(str(v)[n:]) for c, n in prefixes.items()},
  }
  result = []
  for n, row in enumerate(rows, 1):
    made = dict(row)
    for column, maker in makers.items():
      value = row[column]
      if value is None or value == '':
        continue
      new = maker(value)
      if new is None:
        kind = 'a number' if column in ranges else 'a date YYYY-MM-DD'
        raise InputError(f'row {n}, column {column!r}: expected {kind}')  # the value is private
      made[column] = new
    result.append(made)
  return result


def _range(value: Any, width: float) -> str | None:
  """The range of a number: both ends belong to it where all are whole, else the first one."""
  found = number(value)
  if found is None or not math.isfinite(found):
    return None
  low = math.floor(found / width) * width
  if width == int(width) and found == int(found):
    return f'{int(low)}{"-" if low >= 0 else " to "}{int(low + width) - 1}'
  return f'[{low:g}, {low + width:g})'


def _date(value: Any, part: str) -> str | None:
  """The part of an ISO date, with or without a time."""
  try:
    return datetime.date.fromisoformat(str(value)[:10]).strftime(PARTS[part])
  except ValueError:
    return None


def measure(rows: Sequence[Row], quasi: Sequence[str], sensitive: Sequence[str] = ()) -> Groups:
  """Counts groups of equal quasi-identifiers.

  Args:
    rows: of the table.
    quasi: columns that others may know of a person (Sweeney 2002).
    sensitive: columns whose values in a group should differ (Machanavajjhala et al. 2007).
  """
  groups = _grouped(rows, quasi)
  diverse = [_diversity(g, sensitive) for g in groups.values()] if sensitive else [0]
  return Groups(len(rows), len(groups), min(map(len, groups.values()), default=0), min(diverse))


def suppress(
  rows: Sequence[Row], quasi: Sequence[str], k: int, sensitive: Sequence[str] = (), l: int = 0
) -> list[Row]:
  """Returns the rows, in order, of groups with `k` rows and `l` values of each sensitive column.

  Raises InputError for numbers out of range, `l` without a sensitive column, or if no row is left.
  """
  if k < 1 or l < 0:
    raise InputError(f'anonymize.k={k}, anonymize.l={l}: expected k >= 1 and l >= 0')
  if l and not sensitive:
    raise InputError(f'anonymize.l={l}: expected anonymize.sensitive, the columns that differ')
  kept = {
    key for key, group in _grouped(rows, quasi).items()
    if len(group) >= k and (not l or _diversity(group, sensitive) >= l)
  }  # fmt: skip
  left = [row for row in rows if _key(row, quasi) in kept]
  if rows and not left:
    raise InputError(
      f'anonymize.k={k}, anonymize.l={l}: no row is left: every group of '
      f'{", ".join(quasi)} is too small or not diverse; generalize these columns more, or name '
      'fewer'
    )
  return left


def _key(row: Row, quasi: Sequence[str]) -> tuple[Any, ...]:
  return tuple(row[column] for column in quasi)


def _grouped(rows: Sequence[Row], quasi: Sequence[str]) -> dict[tuple[Any, ...], list[Row]]:
  groups: dict[tuple[Any, ...], list[Row]] = collections.defaultdict(list)
  for row in rows:
    groups[_key(row, quasi)].append(row)
  return groups


def _diversity(group: Sequence[Row], sensitive: Sequence[str]) -> int:
  """Distinct values of the least diverse sensitive column."""
  return min(len({row[column] for row in group}) for column in sensitive)
