"""Users and items of ratings: their numbers, names and features, and what each user has rated."""

import base64
import binascii
import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.errors import InputError
from bmx.data.records import Record

PADDING = -1  # behind the items or features of a row
Features = tuple[tuple[int, ...], ...]  # numbers of the features of each user, or of each item


@dataclasses.dataclass(frozen=True)
class Histories:
  """The items that each user has rated, in the order of time.

  Attributes:
    starts: int64 [users + 1], places in `items`.
    items: int32 [ratings].
  """

  starts: np.ndarray
  items: np.ndarray

  @classmethod
  def of(cls, user: np.ndarray, item: np.ndarray, users: int) -> 'Histories':
    """Groups pairs int [n], those of each user in the order of time."""
    order = np.argsort(user, kind='stable')
    counts = np.bincount(user, minlength=users)
    return cls(
      np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), item[order].astype(np.int32)
    )

  @property
  def longest(self) -> int:
    """Items of the user with most of them."""
    return int(np.diff(self.starts).max(initial=0))

  def first(self, user: np.ndarray, count: np.ndarray, width: int) -> np.ndarray:
    """Returns the first `count` items of users, int [n] each -> int32 [n, width], padded.

    A user below 0 has none.
    """
    places = np.arange(width)[None, :]
    known = np.maximum(user, 0)
    count = np.minimum(count, self.starts[known + 1] - self.starts[known]) * (user >= 0)
    inside = places < count[:, None]
    at = np.where(inside, self.starts[known][:, None] + places, 0)
    items = self.items if len(self.items) else np.full(1, PADDING, np.int32)
    return np.where(inside, items[at], PADDING).astype(np.int32)

  def last(self, user: np.ndarray, count: np.ndarray, width: int) -> np.ndarray:
    """Returns the last `width` of the first `count` items of users, newest first, as `first`."""
    known = np.maximum(user, 0)
    count = np.minimum(count, self.starts[known + 1] - self.starts[known]) * (user >= 0)
    place = count[:, None] - 1 - np.arange(width)[None, :]
    at = np.where(place >= 0, self.starts[known][:, None] + place, 0)
    items = self.items if len(self.items) else np.full(1, PADDING, np.int32)
    return np.where(place >= 0, items[at], PADDING).astype(np.int32)

  def state(self) -> dict[str, Any]:
    """Returns the content as JSON holds it: numbers as base64 of deflated int32."""
    return {'ratings': len(self.items), 'counts': _pack(np.diff(self.starts)),
            'items': _pack(self.items)}  # fmt: skip

  @classmethod
  def restore(cls, state: Mapping[str, Any], users: int, items: int) -> 'Histories':
    """Inverse of `state`. Raises InputError if it is not that of so many users and items."""
    try:
      size = int(state['ratings'])
      counts, found = _unpack(state['counts'], users), _unpack(state['items'], size)
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error) as error:
      raise InputError(f'data.json: the histories of users cannot be read: {error}') from None
    if counts.min(initial=0) < 0 or counts.sum() != size or not np.isin(
      [found.min(initial=0), found.max(initial=0)], np.arange(max(items, 1))
    ).all():  # fmt: skip
      raise InputError('data.json: the histories of users are not those of its users and items')
    return cls(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]), found)


def _pack(values: np.ndarray) -> str:
  return base64.b64encode(zlib.compress(values.astype('<i4').tobytes())).decode()


def _unpack(text: str, size: int) -> np.ndarray:
  """Inverse of `_pack` of `size` numbers. Raises ValueError for another number of them."""
  reader = zlib.decompressobj()
  raw = reader.decompress(base64.b64decode(text, validate=True), 4 * size + 1)
  if len(raw) != 4 * size:
    raise ValueError(f'expected {size} numbers')
  return np.frombuffer(raw, '<i4').astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Catalog:
  """Users and items of the training part; the number of one is its place.

  Attributes:
    users: ids, as texts.
    items: ids, as texts.
    titles: of the items; () without a file of items.
    counts: ratings of each item in the training part.
    user_names: of the features of users, 'occupation=writer'.
    user_features: of each user; () without.
    item_names: of the features of items, 'genres=Comedy'.
    item_features: of each item; () without.
  """

  users: tuple[str, ...]
  items: tuple[str, ...]
  titles: tuple[str, ...] = ()
  counts: tuple[int, ...] = ()
  user_names: tuple[str, ...] = ()
  user_features: Features = ()
  item_names: tuple[str, ...] = ()
  item_features: Features = ()

  @property
  def metadata(self) -> dict[str, Any]:
    """Facts: sizes, (features, most of one row) of each side, and the features themselves."""
    return {
      'num_users': len(self.users),
      'num_items': len(self.items),
      'user_features': _sizes(self.user_names, self.user_features),
      'item_features': _sizes(self.item_names, self.item_features),
      'user_feature_ids': self.user_features,
      'item_feature_ids': self.item_features,
    }

  def state(self) -> dict[str, Any]:
    """Returns the content as JSON holds it."""
    return dataclasses.asdict(self)

  @classmethod
  def restore(cls, state: Mapping[str, Any]) -> 'Catalog':
    """Inverse of `state`."""
    texts = lambda key: tuple(str(x) for x in state[key])
    rows = lambda key: tuple(tuple(int(i) for i in row) for row in state[key])
    return cls(texts('users'), texts('items'), texts('titles'),
               tuple(int(n) for n in state['counts']), texts('user_names'), rows('user_features'),
               texts('item_names'), rows('item_features'))  # fmt: skip

  def title(self, item: int) -> dict[str, str]:
    """Returns id and title of an item, as people read them."""
    named = {'title': self.titles[item]} if self.titles else {}
    return {'item': self.items[item]} | named

  def popular(self, seen: np.ndarray, k: int) -> np.ndarray:
    """Returns the k items of most ratings that a user has not rated: int [n, S] -> int [n, k].

    Ties are in the order of items; `PADDING` where no more are left.
    """
    order = np.argsort(-np.array(self.counts), kind='stable')
    found = np.full((len(seen), k), PADDING)
    for row, own in zip(found, seen, strict=True):
      most = order[: k + len(own)]
      left = most[~np.isin(most, own)][:k]
      row[: len(left)] = left
    return found


def _sizes(names: Sequence[str], features: Features) -> tuple[int, int]:
  """The number of features, and the most of one row; (0, 0) without features."""
  return (len(names), max(map(len, features))) if names else (0, 0)


def features_of(
  records: Mapping[str, Record], ids: Sequence[str], columns: Sequence[str]
) -> tuple[tuple[str, ...], Features]:
  """Returns the names of all features, 'COLUMN=CATEGORY', and those of each id.

  Args:
    records: of users or items, by id.
    ids: of the training part.
    columns: of categories; a cell may hold several between `|`.
  """
  own = [_features(records.get(i, {}), columns) for i in ids]
  names = tuple(sorted({name for row in own for name in row}))
  place = {name: i for i, name in enumerate(names)}
  return names, tuple(tuple(place[name] for name in row) for row in own)


def _features(record: Record, columns: Sequence[str]) -> list[str]:
  cells = [(c, str(record[c])) for c in columns if record.get(c) not in (None, '')]
  return list(dict.fromkeys(f'{c}={part}' for c, cell in cells for part in cell.split('|')))
