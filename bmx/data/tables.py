"""Tables: CSV and JSON lines, encoded as numbers by what the training part holds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.errors import InputError, did_you_mean
from bmx.core.paths import local
from bmx.core.types import HostBatch
from bmx.data.arrays import ArrayData, split_indices
from bmx.data.classes import class_names, encode_classes
from bmx.data.encoder import TabularEncoder
from bmx.data.records import Record, number, read_csv, read_json_lines

SPLITS = ('all', 'train', 'valid')


def csv(
  path: str,
  target: str,
  columns: tuple[str, ...] = (),
  regression: bool = False,
  missing: str = '?',
  strip: str = '',
  delimiter: str = ',',
  split: str = 'all',
  holdout: float = 0.0,
  fitted: Mapping[str, Any] | None = None,
  seed: int = 0,
  train: bool = True,
) -> ArrayData:
  """A CSV table -> `x`, one-hot categories and standardized numbers, and `label` or `y`.

  Args:
    path: of the file; its first line names the columns unless `columns` does.
    target: the column to predict: a class, or a number with `regression`.
    columns: names of the columns of a file without a header.
    regression: the target is a number.
    missing: the text of a missing value, besides ''.
    strip: characters that are cut from the ends of the target.
    delimiter: between fields.
    split: 'all', 'train' or 'valid'.
    holdout: share of 'valid'.
    fitted: `state()` of the training data; without it, columns and classes are fitted here.
    seed: of the run.
    train: training data.

  Raises:
    InputError: a file that cannot be read; columns that are not those of the training data; a class
      or number that is not one.
  """
  records = read_csv(local(path), columns, delimiter)
  clean = lambda value: None if value is None else str(value).strip(strip + ' ')
  options = (target, regression, missing, clean, split, holdout, fitted)
  return _table(records, path, *options, seed=seed, train=train)


def json_lines(
  path: str,
  target: str,
  regression: bool = False,
  missing: str = '',
  split: str = 'all',
  holdout: float = 0.0,
  fitted: Mapping[str, Any] | None = None,
  seed: int = 0,
  train: bool = True,
) -> ArrayData:
  """A table with one flat JSON object a line; arguments as for `csv`.

  Args:
    path: of the file.
    target: the key to predict.
    regression: the target is a number.
    missing: the text of a missing value, besides '' and null.
    split: 'all', 'train' or 'valid'.
    holdout: share of 'valid'.
    fitted: `state()` of the training data.
    seed: of the run.
    train: training data.
  """
  records = read_json_lines(local(path))
  clean = lambda value: None if value is None else str(value).strip()
  options = (target, regression, missing, clean, split, holdout, fitted)
  return _table(records, path, *options, seed=seed, train=train)


def _table(
  records: Sequence[Record],
  path: str,
  target: str,
  regression: bool,
  missing: str,
  clean: Callable[[Any], str | None],
  split: str,
  holdout: float,
  fitted: Mapping[str, Any] | None,
  **common: Any,
) -> ArrayData:
  if target not in records[0] and not fitted:
    raise InputError(f'target={target!r}: {path} has no such column'
                     f'{did_you_mean(target, records[0])}')  # fmt: skip
  given = [r.get(target) for r in records]
  if fitted:
    encoder = TabularEncoder.restore(fitted['encoder'])
    names = tuple(fitted.get('class_names', ()))
  else:
    part = split_indices(len(records), 'train' if holdout else 'all', holdout, ('all', 'train'))
    encoder = TabularEncoder.fit([records[i] for i in part], (target,), missing, path)
    names = () if regression else class_names([clean(v) for v in given])
  chosen = split_indices(len(records), split, holdout, SPLITS)
  records, given = [records[i] for i in chosen], [given[i] for i in chosen]
  arrays: HostBatch = {'x': encoder.encode(records, path, (target,))}
  metadata: dict[str, Any] = {'columns': arrays['x'].shape[1], 'source': path}
  state: dict[str, Any] = {'encoder': encoder.state()}
  if regression:
    metadata['num_targets'] = 1
    arrays |= numbers(given, target, path)
  else:
    metadata |= {'num_classes': len(names), 'class_names': names}
    state['class_names'] = list(names)
    arrays |= encode_classes([clean(v) for v in given], names, path)
  return ArrayData(arrays, metadata, fitted=state, **common)


def numbers(given: Sequence[Any], target: str, path: str) -> HostBatch:
  """The targets of a regression, `y` float32 [N, 1]; {} if no record has one (a file to predict).

  Raises InputError if only some have one, or it is not a number.
  """
  if all(v in (None, '') for v in given):
    return {}
  values = [number(v) for v in given]
  if None in values:
    row = values.index(None)
    raise InputError(f'{path}, record {row + 1}: {target} is {given[row]!r}; expected a number')
  return {'y': np.array(values, np.float32)[:, None]}
