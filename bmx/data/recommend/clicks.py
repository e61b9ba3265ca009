"""Click logs: any table with a target of two classes, and Criteo's files."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from bmx.core.errors import InputError
from bmx.data.arrays import ArrayData, split_indices
from bmx.data.frames import JSON_LINES, PARQUET
from bmx.data.recommend.categories import FieldEncoder, FieldOptions
from bmx.data.records import Record
from bmx.data.rowweights import row_weights
from bmx.data.tables import SPLITS, check_columns, records_of
from bmx.data.targets import Target
from bmx.runtime.storage import place

logger = logging.getLogger('bmx')
NUMBERS = tuple(f'I{i}' for i in range(1, 14))
CATEGORIES = tuple(f'C{i}' for i in range(1, 27))
MAX_LINE = 1 << 16  # bytes of the first line of a file that are read


def clicks(
  path: str = '',
  target: str = '',
  columns: tuple[str, ...] = (),
  missing: str = '',
  delimiter: str = '',
  use: tuple[str, ...] = (),
  drop: tuple[str, ...] = (),
  categorical: tuple[str, ...] = (),
  hashed: tuple[str, ...] = (),
  buckets: int = 100_000,
  crosses: tuple[str, ...] = (),
  min_count: int = 2,
  log: tuple[str, ...] = (),
  weights: str = '',
  split: str = 'all',
  holdout: float = 0.0,
  last: bool = False,
  given: Any = None,
  fitted: Mapping[str, Any] | None = None,
  seed: int = 0,
  train: bool = True,
) -> ArrayData:
  """A table of clicks -> `x` float32 [N, numbers], `ids` int32 [N, categories], `label`.

  Args:
    path: of the file: .parquet, JSON lines, otherwise CSV, as `tables.table` reads it.
    target: the column to predict, of two classes.
    columns: names of the columns of a CSV file without a header.
    missing: the text of a missing number, see `tables.table`.
    delimiter: between the fields of a CSV file.
    use: columns to read; () is all.
    drop: columns to leave out.
    categorical: columns of categories, even if they hold numbers.
    hashed: of these, columns whose categories are hashed and not listed in data.json.
    buckets: rows of the table of a hashed column.
    crosses: pairs of columns, 'site*device', whose pairs of categories are hashed.
    min_count: records of a listed category; rarer ones share a row with unknown ones. 1 leaves
      that row untrained.
    log: columns of numbers x that become sign(x) · log(1 + |x|) before they are standardized.
    weights: column of weights of the records; '': all weigh 1.
    split: 'all', 'train' or 'valid'.
    holdout: share of 'valid'.
    last: 'valid' is the end of the file, not a random part: for logs in the order of time.
    given: the table itself instead of `path`.
    fitted: `state()` of the training data.
    seed: of the run.
    train: training data.

  Raises:
    InputError: a file that cannot be read; columns that are not those of the training data; a
      target of more than two classes; a number out of range.
  """
  fields = FieldOptions(use, drop, categorical, hashed, buckets, crosses, min_count, log)
  records, source = records_of(path, given, columns, delimiter)
  part = lambda name: _part(len(records), name, holdout, last)
  if fitted:
    encoder, goal = FieldEncoder.restore(fitted['fields']), Target.restore(fitted)
  else:
    check_columns(records, source, {'target': target, 'weights': weights}, ('target',))
    rows = part('train' if holdout else 'all')
    goal = _target(records, rows, target, source)
    skip = (target, weights) if weights else (target,)
    encoder = FieldEncoder.fit([records[i] for i in rows], skip, missing, source, fields)
  records = [records[i] for i in part(split)]
  optional = [k for k in (goal.name, weights) if k]
  arrays = encoder.encode(records, source, optional, new=not train or bool(fitted))
  arrays |= goal.encode([r.get(goal.name) for r in records], source)
  arrays |= row_weights(records, weights, source)
  metadata = {
    'field_sizes': encoder.sizes,
    'num_numeric': encoder.num_numeric,
    'source': source,
    **goal.metadata,
  }
  state = {'fields': encoder.state(), **goal.state()}
  dropped = encoder.numbers.dropped
  described = [{k: r[k] for k in dropped if k in r} for r in records]
  return ArrayData(arrays, metadata, seed=seed, train=train, fitted=state, described=described)


def _target(records: list[Record], rows: np.ndarray, name: str, source: str) -> Target:
  """Fits a target of two classes. Raises InputError for another one."""
  goal = Target.fit([r.get(name) for r in records], rows, name, 'class', '', source)
  if len(goal.class_names) != 2:
    raise InputError(f'data.target={name!r}: expected two classes, found {len(goal.class_names)}; '
                     'use the recipe `table` for more')  # fmt: skip
  logger.info('%s: target %s', source, goal.line)
  return goal


def _part(size: int, split: str, holdout: float, last: bool) -> np.ndarray:
  """The examples of a split, int64 [n]; see `clicks`."""
  rows = split_indices(size, split, holdout, SPLITS)
  if not last or len(rows) == size:
    return rows
  return np.arange(size - len(rows), size) if split == 'valid' else np.arange(len(rows))


def criteo(
  path: str = '',
  hashed: tuple[str, ...] = (),
  buckets: int = 100_000,
  min_count: int = 10,
  split: str = 'all',
  holdout: float = 0.0,
  last: bool = True,
  given: Any = None,
  fitted: Mapping[str, Any] | None = None,
  seed: int = 0,
  train: bool = True,
) -> ArrayData:
  """Criteo's click logs: label, 13 integers (`I1`...), 26 categories (`C1`...), between tabs.

  Files without a header have 40 fields a line, or 39 without the label; a first line with names is
  a header, and then a comma may separate. Integers x become sign(x) · log(1 + |x|).

  Args:
    path: of the file.
    hashed: see `clicks`, as all others.
    buckets: rows of a hashed column.
    min_count: records of a listed category.
    split: 'all', 'train' or 'valid'.
    holdout: share of 'valid'.
    last: 'valid' is the end of the file.
    given: the records themselves.
    fitted: `state()` of the training data.
    seed: of the run.
    train: training data.

  Raises InputError if `clicks` does.

  Source: Criteo Display Advertising Challenge, 2014.
  """
  columns, delimiter = _criteo_format(path) if path else ((), '')
  return clicks(path, 'label', columns, delimiter=delimiter, categorical=CATEGORIES, hashed=hashed,
                buckets=buckets, min_count=min_count, log=NUMBERS, split=split, holdout=holdout,
                last=last, given=given, fitted=fitted, seed=seed, train=train)  # fmt: skip


def _criteo_format(path: str) -> tuple[tuple[str, ...], str]:
  """Returns the names of the columns, () where the file has them, and the delimiter.

  Raises InputError if the first line has another number of fields.
  """
  file = place(path)
  if not file.is_file() or file.suffix.lower() in (*JSON_LINES, *PARQUET):
    return (), ''
  with file.open('rb') as lines:
    first = lines.readline(MAX_LINE).decode('utf-8-sig', 'replace').strip('\r\n')
  between = '\t' if '\t' in first else ','
  names = first.split(between)
  if 'label' in names or NUMBERS[0] in names:
    return (), between
  known = (*NUMBERS, *CATEGORIES)
  columns = {len(known) + 1: ('label', *known), len(known): known}
  if between == ',' or len(names) not in columns:
    raise InputError(
      f'{path}: {len(names)} fields in the first line: expected 40 between tabs (label, 13 '
      'integers, 26 categories), or 39 without the label; bmx.data.recommend.clicks:clicks reads '
      'other tables'
    )
  return columns[len(names)], between
