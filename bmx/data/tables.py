"""Tables: CSV, Parquet, JSON lines and data frames, encoded by the encoder of the training data."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.errors import InputError, did_you_mean
from bmx.core.types import HostBatch
from bmx.data.arrays import ArrayData, split_indices
from bmx.data.columns import names_of
from bmx.data.encoder import TabularEncoder
from bmx.data.frames import frame_records, read_records
from bmx.data.records import Record
from bmx.data.rowweights import class_weights_of, row_weights
from bmx.data.targets import Target, TargetKind
from bmx.runtime.storage import place

log = logging.getLogger('bmx')
SPLITS = ('all', 'train', 'valid')


@dataclasses.dataclass(frozen=True)
class Words:
  """Options of reading a table, see `table`."""

  target: str
  kind: TargetKind
  missing: str
  use: Sequence[str]
  drop: Sequence[str]
  categorical: Sequence[str]
  weights: str
  split: str
  holdout: float

  @property
  def skip(self) -> tuple[str, ...]:
    """Columns that are not inputs."""
    return (self.target, self.weights) if self.weights else (self.target,)


def table(
  path: str = '',
  target: str = '',
  kind: TargetKind = 'auto',
  columns: tuple[str, ...] = (),
  missing: str = '?',
  strip: str = '',
  delimiter: str = '',
  use: tuple[str, ...] = (),
  drop: tuple[str, ...] = (),
  categorical: tuple[str, ...] = (),
  weights: str = '',
  class_weights: str | Mapping[str, float] = '',
  split: str = 'all',
  holdout: float = 0.0,
  given: Any = None,
  fitted: Mapping[str, Any] | None = None,
  seed: int = 0,
  train: bool = True,
) -> ArrayData:
  """A table -> `x`, one-hot categories and standardized numbers, and `label` or `y`.

  Args:
    path: of the file: .parquet, JSON lines (.jsonl, .json), otherwise CSV, whose first line names
      the columns unless `columns` does.
    target: the column to predict: a class or a number.
    kind: of the target: 'class', 'number', or 'auto', see `targets.kind_of_target`.
    columns: names of the columns of a CSV file without a header.
    missing: the text of a missing value, besides '', NA, N/A, null, None, - and ?.
    strip: characters that are cut from the ends of a class.
    delimiter: between the fields of a CSV file; '': a tab in .tsv, otherwise a comma.
    use: columns to read; () is all.
    drop: columns to leave out.
    categorical: columns of categories, even if they hold numbers.
    weights: column of weights of the records, in training and evaluation; '': all weigh 1.
    class_weights: class -> weight, or 'balanced': records / (classes · records of the class). Of
      training only.
    split: 'all', 'train' or 'valid'.
    holdout: share of 'valid'.
    given: the table itself instead of `path`: a data frame, or a mapping of name to column.
    fitted: `state()` of the training data; without it, columns and classes are fitted here.
    seed: of the run.
    train: training data.

  Raises:
    InputError: a file that cannot be read; columns that are not those of the training data; a cell
      that is not read as the rest of its column; a class, number or weight that is not one.
  """
  records, source = records_of(path, given, columns, delimiter)
  words = Words(target, kind, missing, use, drop, categorical, weights, split, holdout)
  if fitted:
    encoder, goal = TabularEncoder.restore(fitted['encoder']), Target.restore(fitted)
  else:
    encoder, goal = _fit(records, source, words, strip)
  rows = split_indices(len(records), split, holdout, SPLITS)
  records = [records[i] for i in rows]
  arrays: HostBatch = {'x': encoder.encode(records, source, words.skip)}
  arrays |= goal.encode([r.get(target) for r in records], source)
  arrays |= row_weights(records, weights, source)
  if class_weights and train:
    by_class = class_weights_of(arrays.get('label'), goal.class_names, class_weights)
    arrays['weights'] = arrays.get('weights', np.float32(1)) * by_class[arrays['label']]
  metadata = {'columns': arrays['x'].shape[1], 'source': source, **goal.metadata}
  state = {'encoder': encoder.state(), **goal.state()}
  described = [{k: r[k] for k in encoder.dropped if k in r} for r in records]
  return ArrayData(arrays, metadata, seed=seed, train=train, fitted=state, described=described)


def records_of(
  path: str, given: Any, columns: Sequence[str] = (), delimiter: str = ''
) -> tuple[list[Record], str]:
  """Reads a table -> (its records, their source for messages).

  Args:
    path: of a file, see `table`.
    given: the table itself, where `path` is ''.
    columns: names of the columns of a CSV file without a header.
    delimiter: between the fields of a CSV file.

  Raises:
    InputError: neither is given; a file that cannot be read.
  """
  if path:
    return read_records(place(path), columns, delimiter), path
  if given is None:
    raise InputError('data.path: expected the file of a table, such as --data.path=my.csv')
  return frame_records(given), 'the given records'


def check_columns(
  records: Sequence[Record], source: str, words: Mapping[str, str], needed: Sequence[str] = ()
) -> None:
  """Raises InputError naming a word whose column the records lack.

  Args:
    records: of a table.
    source: of them.
    words: word of the config -> column, or '' for none.
    needed: words that must name a column.
  """
  known = names_of(records)
  for word, name in words.items():
    if (name or word in needed) and name not in known:
      near = did_you_mean(name, known) if name else f'; it has {", ".join(known)}'
      near = _other_delimiter(known) or near
      none = '' if word in needed else f"; data.{word}='' for none"
      raise InputError(f'data.{word}={name!r}: expected a column of {source}{near}{none}')


def _other_delimiter(known: Sequence[str]) -> str:
  """A hint, where all columns were read as one."""
  used = [d for d in ';\t|' if len(known) == 1 and d in known[0]]
  return f'; its header is {known[0]!r}: set --data.delimiter={used[0]!r}' if used else ''


def _fit(
  records: Sequence[Record], source: str, words: Words, strip: str
) -> tuple[TabularEncoder, Target]:
  """Fits columns and target to the training part; classes are those of all records."""
  given = {'target': words.target, 'weights': words.weights}
  check_columns(records, source, given, ('target',))
  share = words.holdout
  part = split_indices(len(records), 'train' if share else 'all', share, ('all', 'train'))
  fields = words.use, words.drop, words.categorical
  goal = Target.fit([r.get(words.target) for r in records], part, words.target, words.kind, strip,
                    source)  # fmt: skip
  train = [records[i] for i in part]
  encoder = TabularEncoder.fit(train, words.skip, words.missing, source, *fields)
  log.info('%s: target %s', source, goal.line)
  return encoder, goal
