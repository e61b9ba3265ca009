"""Tables: CSV and JSON lines, encoded as numbers by what the training part holds."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.errors import InputError, did_you_mean
from bmx.core.paths import local
from bmx.core.types import HostBatch
from bmx.data.arrays import ArrayData, split_indices
from bmx.data.classes import class_names, encode_classes
from bmx.data.columns import names_of
from bmx.data.encoder import TabularEncoder
from bmx.data.records import Record, number, read_csv, read_json_lines
from bmx.data.rowweights import class_weights_of, row_weights

SPLITS = ('all', 'train', 'valid')


@dataclasses.dataclass(frozen=True)
class Words:
  """How a table is read, see `csv`."""

  target: str
  regression: bool
  missing: str
  use: Sequence[str]
  drop: Sequence[str]
  categorical: Sequence[str]
  weights: str
  class_weights: str | Mapping[str, float]
  split: str
  holdout: float

  @property
  def skip(self) -> tuple[str, ...]:
    """Columns that are not inputs."""
    return (self.target, self.weights) if self.weights else (self.target,)


def csv(
  path: str,
  target: str,
  columns: tuple[str, ...] = (),
  regression: bool = False,
  missing: str = '?',
  strip: str = '',
  delimiter: str = ',',
  use: tuple[str, ...] = (),
  drop: tuple[str, ...] = (),
  categorical: tuple[str, ...] = (),
  weights: str = '',
  class_weights: str | Mapping[str, float] = '',
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
    missing: the text of a missing value, besides '', NA, N/A, null, None, - and ?.
    strip: characters that are cut from the ends of the target.
    delimiter: between fields.
    use: columns to read; () is all.
    drop: columns to leave out.
    categorical: columns of categories, even if they hold numbers.
    weights: column of weights of the records, in training and evaluation; '': all weigh 1.
    class_weights: class -> weight, or 'balanced': records / (classes · records of the class). Of
      training only.
    split: 'all', 'train' or 'valid'.
    holdout: share of 'valid'.
    fitted: `state()` of the training data; without it, columns and classes are fitted here.
    seed: of the run.
    train: training data.

  Raises:
    InputError: a file that cannot be read; columns that are not those of the training data; a cell
      that is not read as the rest of its column; a class, number or weight that is not one.
  """
  records = read_csv(local(path), columns, delimiter)
  clean = lambda value: None if value is None else str(value).strip(strip + ' ')
  words = Words(
    target, regression, missing, use, drop, categorical, weights, class_weights, split, holdout
  )
  return _table(records, path, words, clean, fitted, seed=seed, train=train)


def json_lines(
  path: str,
  target: str,
  regression: bool = False,
  missing: str = '',
  use: tuple[str, ...] = (),
  drop: tuple[str, ...] = (),
  categorical: tuple[str, ...] = (),
  weights: str = '',
  class_weights: str | Mapping[str, float] = '',
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
    missing: the text of a missing value, besides null and those of `csv`.
    use: keys to read; () is all.
    drop: keys to leave out.
    categorical: keys of categories, even if they hold numbers.
    weights: key of weights of the records.
    class_weights: class -> weight, or 'balanced'.
    split: 'all', 'train' or 'valid'.
    holdout: share of 'valid'.
    fitted: `state()` of the training data.
    seed: of the run.
    train: training data.
  """
  records = read_json_lines(local(path))
  clean = lambda value: None if value is None else str(value).strip()
  words = Words(
    target, regression, missing, use, drop, categorical, weights, class_weights, split, holdout
  )
  return _table(records, path, words, clean, fitted, seed=seed, train=train)


def _table(
  records: Sequence[Record],
  path: str,
  words: Words,
  clean: Callable[[Any], str | None],
  fitted: Mapping[str, Any] | None,
  **common: Any,
) -> ArrayData:
  given = [r.get(words.target) for r in records]
  if fitted:
    encoder = TabularEncoder.restore(fitted['encoder'])
    names = tuple(fitted.get('class_names', ()))
  else:
    encoder = _fit(records, path, words)
    names = () if words.regression else class_names([clean(v) for v in given])
  rows = split_indices(len(records), words.split, words.holdout, SPLITS)
  records, given = [records[i] for i in rows], [given[i] for i in rows]
  arrays: HostBatch = {'x': encoder.encode(records, path, words.skip)}
  metadata: dict[str, Any] = {'columns': arrays['x'].shape[1], 'source': path}
  state: dict[str, Any] = {'encoder': encoder.state()}
  if words.regression:
    metadata['num_targets'] = 1
    arrays |= numbers(given, words.target, path)
  else:
    metadata |= {'num_classes': len(names), 'class_names': names}
    state['class_names'] = list(names)
    arrays |= encode_classes([clean(v) for v in given], names, path)
  arrays |= row_weights(records, words.weights, path)
  if words.class_weights and common['train']:
    by_class = class_weights_of(arrays.get('label'), names, words.class_weights)
    arrays['weights'] = arrays.get('weights', np.float32(1)) * by_class[arrays['label']]
  return ArrayData(arrays, metadata, fitted=state, **common)


def _fit(records: Sequence[Record], path: str, words: Words) -> TabularEncoder:
  """The encoder of the training part."""
  known = names_of(records)
  for word, name in (('target', words.target), ('weights', words.weights)):
    if name and name not in known:
      raise InputError(f'{word}={name!r}: {path} has no such column{did_you_mean(name, known)}')
  share = words.holdout
  part = split_indices(len(records), 'train' if share else 'all', share, ('all', 'train'))
  fields = words.use, words.drop, words.categorical
  return TabularEncoder.fit([records[i] for i in part], words.skip, words.missing, path, *fields)


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
