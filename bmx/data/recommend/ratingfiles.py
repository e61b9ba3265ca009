"""Files of ratings, users and items: a folder, a .zip, or one file."""

import dataclasses
import logging
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.errors import InputError, near
from bmx.core.ranges import check_number
from bmx.data.arrays import UNREADABLE
from bmx.data.classes import class_names
from bmx.data.columns import date
from bmx.data.frames import PARQUET, frame_records, read_records
from bmx.data.recommend.catalog import Catalog, features_of
from bmx.data.records import Record, no_file, number
from bmx.data.tables import check_columns
from bmx.runtime.fetch import fetch
from bmx.runtime.storage import place

log = logging.getLogger('bmx')


@dataclasses.dataclass(frozen=True)
class Words:
  """Files and columns, see `ratings.ratings`."""

  path: str
  ratings: str
  items: str
  users: str
  user: str
  item: str
  rating: str
  time: str
  title: str
  item_features: tuple[str, ...]
  user_features: tuple[str, ...]
  min_rating: float
  delimiter: str

  def __post_init__(self):
    check_number('data.min_rating', self.min_rating)
    if self.min_rating and not self.rating:
      raise InputError(f'data.min_rating={self.min_rating}: expected a column of ratings; set '
                       'data.rating, or data.min_rating=0')  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Events:
  """Ratings sorted by user, then by time; a user has an item once.

  Attributes:
    user: ids, as texts.
    item: ids, as texts.
    liked: bool [n], whether the rating is at least `min_rating`.
    place: int64 [n], number of earlier liked events of the user.
    count: int64 [n], liked events of the user.
  """

  user: Sequence[str]
  item: Sequence[str]
  liked: np.ndarray
  place: np.ndarray
  count: np.ndarray

  def split(self, name: str, left_out: Mapping[str, int], least: int) -> np.ndarray:
    """Returns which liked events a split has, bool [n].

    Args:
      name: 'all', 'train', 'valid' or 'test'.
      left_out: split -> last events of a user that are behind it.
      least: events of a user of whom some are held out.
    """
    if name == 'all':
      return self.liked
    enough = self.count >= least
    end = self.count - left_out[name]
    rows = ~enough | (self.place < end) if name == 'train' else enough & (self.place == end)
    return rows & self.liked

  def take(self, rows: np.ndarray) -> 'Events':
    """Returns the events of a mask, bool [n]."""
    at = np.flatnonzero(rows)
    of = lambda ids: [ids[i] for i in at]
    return Events(of(self.user), of(self.item), self.liked[at], self.place[at], self.count[at])


def read_events(words: Words, given: Any) -> tuple[Events, str]:
  """Reads ratings -> (events, their source).

  Raises InputError: a file or column is missing; an id, rating or time is invalid.
  """
  records, source = _records(words, given)
  columns = {'user': words.user, 'item': words.item, 'rating': words.rating, 'time': words.time}
  check_columns(records, source, columns, ('user', 'item'))
  where = [f'{source}, record {i}' for i in range(1, len(records) + 1)]
  liked = np.array([_liked(r, words, at) for r, at in zip(records, where, strict=True)])
  if not liked.any():
    raise InputError(f'{source}: expected a rating of at least min_rating={words.min_rating:g}')
  each = list(zip(records, where, strict=True))
  user = [identity(r.get(words.user), words.user, at) for r, at in each]
  item = [identity(r.get(words.item), words.item, at) for r, at in each]
  when = [_time(r, words.time, at) for r, at in each]
  return _sorted(user, item, liked, np.array(when, np.float64)), source


def _sorted(user: list[str], item: list[str], liked: np.ndarray, when: np.ndarray) -> Events:
  """Sorts events by user and time, and drops all but the last of a user's events of one item."""
  _, number_of_user = np.unique(user, return_inverse=True)
  order = np.lexsort((np.arange(len(user)), when, number_of_user))
  last = {(user[i], item[i]): i for i in order}
  order = np.array([i for i in order if last[user[i], item[i]] == i])
  of_user, liked = number_of_user[order], liked[order]
  earlier = np.concatenate([[0], np.cumsum(liked)])[:-1]
  first = np.concatenate([[True], of_user[1:] != of_user[:-1]])
  begin = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
  count = np.bincount(of_user, liked).astype(np.int64)[of_user]
  return Events([user[i] for i in order], [item[i] for i in order], liked,
                earlier - earlier[begin], count)  # fmt: skip


def asked_users(words: Words, given: Any) -> tuple[list[str], str]:
  """Reads the users who ask for items, each once, in their order -> (ids, their source).

  Raises InputError: the file or the column of users is missing, or an id is.
  """
  records, source = _records(words, given)
  check_columns(records, source, {'user': words.user}, ('user',))
  ids = [identity(r.get(words.user), words.user, f'{source}, record {i}')
         for i, r in enumerate(records, 1)]  # fmt: skip
  return list(dict.fromkeys(ids)), source


def read_catalog(words: Words, events: Events, source: str) -> Catalog:
  """Reads the users and items of the training part.

  Args:
    words: where the files are.
    events: of the training part.
    source: of them; '': memory, which has no files beside it.

  Raises:
    InputError: a file or column is missing, or two records of a file have one id.
  """
  users, items = class_names(events.user), class_names(events.item)
  place = {name: i for i, name in enumerate(items)}
  counts = np.bincount([place[name] for name in events.item], minlength=len(items))
  item = _about(words, 'items', items, source)
  user = _about(words, 'users', users, source)
  titles = tuple(str(item[i].get(words.title) or i) if i in item else i for i in items)
  return Catalog(
    users, items, titles if item else (), tuple(counts.tolist()),
    *features_of(user, users, words.user_features), *features_of(item, items, words.item_features),
  )  # fmt: skip


def _about(words: Words, word: str, ids: Sequence[str], source: str) -> dict[str, Record]:
  """Records of the file of items or users, by id; {} without one."""
  items = word == 'items'
  file, features = (
    (words.items, words.item_features) if items else (words.users, words.user_features)
  )
  kind = word.removesuffix('s')
  if features and not file:
    raise InputError(f'data.{kind}_features={features}: expected a file of them; set data.{word}')
  if not file:
    return {}
  if not source:
    raise InputError(f"data.{word}={file!r}: expected '' for ratings in memory")
  columns = [(f'{kind}_features', c) for c in features] + [('title', words.title)] * items
  found = _by_id(words, word, file, words.item if items else words.user, columns)
  lacking = sum(i not in found for i in ids)
  if lacking:
    log.warning('%s: %s has no record of %d of %d ids', source, file, lacking, len(ids))
  return found


def _by_id(
  words: Words, word: str, file: str, key: str, columns: Sequence[tuple[str, str]]
) -> dict[str, Record]:
  """Reads the file of items or users -> its records by id.

  Args:
    words: where the files are.
    word: of the config that names the file.
    file: its name.
    key: column of the ids.
    columns: pairs of a word of the config and the column that it names.

  Raises:
    InputError: the file or a column is missing, or two records have one id.
  """
  records = _read(words, file, f'data.{word}')
  source = f'{words.path}, {file}'
  for name, column in ((word.removesuffix('s'), key), *columns):
    check_columns(records, source, {name: column}, (name,))
  found: dict[str, Record] = {}
  for i, record in enumerate(records, 1):
    name = identity(record.get(key), key, f'{source}, record {i}')
    if name in found:
      raise InputError(f'{source}, record {i}: {key} {name} stands twice: expected one record each')
    found[name] = record
  return found


def identity(value: Any, name: str, where: str) -> str:
  """Returns an id as text; 7.0 is 7. Raises InputError for a missing one."""
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  text = '' if value is None else str(value).strip()
  if not text:
    raise InputError(f'{where}: {name} is missing: expected an id')
  return text


def _records(words: Words, given: Any) -> tuple[list[Record], str]:
  if given is not None and not words.path:
    return frame_records(given), 'the given records'
  if not words.path:
    raise InputError('data.path: expected a folder or a .zip of MovieLens, or a file of ratings, '
                     'such as --data.path=ratings.csv')  # fmt: skip
  return _read(words, words.ratings, 'data.ratings'), words.path


def _read(words: Words, name: str, word: str) -> list[Record]:
  """Records of a file of a folder or .zip; of `path` itself, or beside it, if that is a file."""
  root = place(words.path)
  if root.suffix.lower() == '.zip':
    return _zipped(words, name, word)
  if root.is_dir():
    file = root / name
  else:
    file = root if word == 'data.ratings' else root.parent / name
  if not file.is_file() and (root.is_dir() or file != root):
    there = sorted(p.name for p in file.parent.iterdir()) if file.parent.is_dir() else []
    empty = '' if word == 'data.ratings' else f", or {word}='' for none"
    raise InputError(f'{word}={name!r}: {file.parent} has no such file{near(name, there)}; name '
                     f'one{empty}')  # fmt: skip
  return read_records(file, (), words.delimiter)


def _zipped(words: Words, name: str, word: str) -> list[Record]:
  path = words.path
  file = fetch(path)
  if not file.is_file():
    raise no_file(file)
  try:
    with zipfile.ZipFile(file) as archive:
      found = [n for n in archive.namelist() if n == name or n.endswith(f'/{name}')]
      if len(found) == 1 and not name.lower().endswith(PARQUET):
        inside: Any = zipfile.Path(archive, found[0])
        return read_records(inside, (), words.delimiter)
      there = ', '.join(n for n in archive.namelist() if not n.endswith('/'))
  except InputError:
    raise
  except UNREADABLE as error:
    raise InputError(f'{path} is not a .zip archive that can be read: {error}') from None
  raise InputError(
    f'{word}={name!r}: expected one CSV or JSON lines file of {path}; it has {there}'
  )


def _liked(record: Record, words: Words, where: str) -> bool:
  if not words.rating:
    return True
  value = number(record.get(words.rating))
  if value is None or not np.isfinite(value):
    raise InputError(f'{where}: {words.rating} is {record.get(words.rating)!r}: expected a finite '
                     "number; events without ratings need data.rating=''")  # fmt: skip
  return value >= words.min_rating


def _time(record: Record, name: str, where: str) -> float:
  if not name:
    return 0.0
  value = number(record.get(name))
  value = date(record.get(name)) if value is None else value
  if value is None or not np.isfinite(value):
    raise InputError(f'{where}: {name} is {record.get(name)!r}: expected a number or an ISO date; '
                     "the order of the file needs data.time=''")  # fmt: skip
  return value
