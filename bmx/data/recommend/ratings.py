"""Ratings of items by users, as MovieLens has them; the last ratings of each user are held out."""

import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.data import Spec
from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.core.types import HostBatch
from bmx.data.arrays import ArrayData
from bmx.data.digests import digest_arrays
from bmx.data.recommend.catalog import PADDING, Catalog, Histories
from bmx.data.recommend.ratingfiles import Events, Words, asked_users, read_catalog, read_events

log = logging.getLogger('bmx')
# Split -> last ratings of a user that are not in it or before it.
LEFT_OUT = {'all': 0, 'train': 2, 'valid': 2, 'test': 1}
LEAST = 3  # ratings of a user of whom two are held out
UNKNOWN = -1  # number of a user or an item that the training part lacks
TOP = 10  # items of the baseline of popularity
SHOWN = 5  # unknown users that a line names


@dataclasses.dataclass
class Ratings(ArrayData):
  """Examples of one rating each, or of one user each who asks for items.

  Attributes:
    catalog: users and items.
    histories: what users have rated; None in training, whose rows have no `seen`.
    before: int [N], items of the history of each example's user that were rated before it.
    asked: id of the user of each example.
    held_out: id of the item of each example; () where there are none.
  """

  catalog: Catalog = dataclasses.field(default_factory=lambda: Catalog((), ()))
  histories: Histories | None = None
  before: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
  asked: Sequence[str] = ()
  held_out: Sequence[str] = ()

  def __post_init__(self):
    super().__post_init__()
    if self.histories is not None:
      self.spec = self.spec | {'seen': Spec((self.width,), np.dtype(np.int32))}

  @property
  def width(self) -> int:
    """Items of the longest history of the training data; at least 1."""
    return int(self.metadata['most_seen'])

  def digest(self) -> str:
    """Returns the SHA-256 of the arrays."""
    arrays = dict(self.arrays)
    if self.histories is not None:
      arrays |= {'before': self.before, 'histories': self.histories.items}
    return digest_arrays(arrays)

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Returns rows of examples; `seen` has the items rated before, padded with -1."""
    rows = super().rows(indices, positions)
    return rows if self.histories is None else rows | {'seen': self.seen(indices)}

  def seen(self, indices: np.ndarray) -> np.ndarray:
    """Returns the items that the users of examples have rated before: int32 [n, width]."""
    if self.histories is None:
      return np.full((len(indices), 1), PADDING, np.int32)
    return self.histories.first(self.arrays['user'][indices], self.before[indices], self.width)

  @functools.cached_property
  def popular(self) -> np.ndarray:
    """The items of most ratings that each example's user has not rated: int [N, TOP]."""
    return self.catalog.popular(self.seen(np.arange(self.size)), TOP)

  def resident(self) -> HostBatch | None:
    """Returns the arrays in training; histories are read for each batch."""
    return super().resident() if self.histories is None else None

  def present(self, predictions: HostBatch) -> list[dict[str, Any]]:
    """Returns the items of each user, best first; the most popular ones for an unknown user."""
    users, shown = self.arrays['user'], []
    k = predictions['prediction'].shape[1]
    popular = self.catalog.popular(np.zeros((1, 0), np.int64), k)[0]
    for n, (items, scores) in enumerate(
      zip(predictions['prediction'], predictions['score'], strict=True)
    ):
      line: dict[str, Any] = {'row': n + 1, 'user': self.asked[n]}
      if users[n] == UNKNOWN:
        line |= {'fallback': 'popular'}
        line['items'] = [self.catalog.title(int(i)) for i in popular if i != PADDING]
      else:
        line['items'] = [self.catalog.title(int(i)) | {'score': float(s)}
                         for i, s in zip(items, scores, strict=True) if i != PADDING]  # fmt: skip
      if self.held_out:
        line['held_out'] = self.held_out[n]
      shown.append(line)
    return shown


def ratings(
  path: str = '',
  ratings: str = 'ratings.csv',
  items: str = '',
  users: str = '',
  user: str = 'userId',
  item: str = 'movieId',
  rating: str = 'rating',
  time: str = 'timestamp',
  title: str = 'title',
  item_features: tuple[str, ...] = (),
  user_features: tuple[str, ...] = (),
  min_rating: float = 0.0,
  history: int = 0,
  delimiter: str = '',
  split: str = 'all',
  given: Any = None,
  fitted: Mapping[str, Any] | None = None,
  seed: int = 0,
  train: bool = True,
) -> Ratings:
  """Ratings -> `user` and `item` int32 [N], `log_q` float32 [N]; held-out ones also have `seen`.

  Of each user with at least 3 ratings, 'test' has the last one and 'valid' the one before; 'train'
  has all others. `seen` has the items that the user rated before, which a model may not propose.
  `log_q` is the logarithm of the item's share of the training ratings. Of several ratings of one
  item by one user, the last counts. A held-out item that training lacks is a miss: `item` is -1.

  With `fitted`, split 'all' of held-out data reads users who ask for items: each user of the
  column `user` once.

  Args:
    path: a folder or a .zip with the files below, or the file of ratings itself (CSV, Parquet, JSON
      lines).
    ratings: file of ratings, in a folder or .zip.
    items: file of items, beside the ratings; '': items have neither titles nor features.
    users: file of users, beside the ratings, for their features.
    user: column of the user's id.
    item: column of the item's id.
    rating: column of the rating; '': an event has none.
    time: column of the time, numbers or ISO dates; '': the order of the file.
    title: column of the titles of items.
    item_features: columns of categories of items; a cell may hold several between `|`.
    user_features: columns of categories of users.
    min_rating: items with a lower rating are seen, and are neither positive nor in `history`.
    history: items that a user rated last before an example: `history` int32 [N, L], newest first,
      padded with -1; 0: none.
    delimiter: between the fields of CSV files; '': a tab in .tsv, otherwise a comma.
    split: 'all', 'train', 'valid' or 'test'.
    given: the ratings, or the users who ask, instead of `path`.
    fitted: `state()` of the training data.
    seed: of the run.
    train: training data.

  Raises:
    InputError: a file or column is missing; an id, rating or time is invalid; a split is empty.
  """
  if split not in LEFT_OUT:
    raise InputError(f'data.split={split!r}: expected one of {", ".join(LEFT_OUT)}')
  check_number('data.history', history, at_least=0)
  words = Words(path, ratings, items, users, user, item, rating, time, title, tuple(item_features),
                tuple(user_features), min_rating, delimiter)  # fmt: skip
  if fitted and split == 'all' and not train:
    return _asking(words, given, fitted, history, seed)
  events, source = read_events(words, given)
  chosen = events.split('train' if split in ('valid', 'test') else split, LEFT_OUT, LEAST)
  catalog = (
    Catalog.restore(fitted['catalog'])
    if fitted
    else read_catalog(words, events.take(chosen), '' if given is not None else source)
  )
  user_of = _numbers(catalog.users, events.user)
  item_of = _numbers(catalog.items, events.item)
  known = (user_of != UNKNOWN) & (item_of != UNKNOWN)
  rows = events.split(split, LEFT_OUT, LEAST) & (user_of != UNKNOWN)
  if train:
    rows &= known
  _log(source, split, events, rows, item_of)
  if not rows.any():
    raise InputError(f'{source}: split={split!r} is empty: expected a user with at least {LEAST} '
                     'ratings')  # fmt: skip
  seen = Histories.of(user_of[known], item_of[known], len(catalog.users))
  liked = known & events.liked
  past = Histories.of(user_of[liked], item_of[liked], len(catalog.users))
  most = int(fitted['most_seen']) if fitted else max(1, seen.longest)
  share = np.log(np.maximum(catalog.counts, 1) / max(sum(catalog.counts), 1))
  arrays = {
    'user': user_of[rows].astype(np.int32),
    'item': item_of[rows].astype(np.int32),
    'log_q': np.where(item_of >= 0, share[item_of], 0.0)[rows].astype(np.float32),
  }
  if history:
    before = _before(user_of, liked)[rows]
    arrays['history'] = past.last(arrays['user'], before, history)
  state = fitted or {
    'catalog': catalog.state(), 'seen': seen.state(), 'past': past.state(), 'most_seen': most,
  }  # fmt: skip
  metadata = {'most_seen': most, 'history': history, 'source': source, **catalog.metadata}
  at = np.flatnonzero(rows).tolist()
  return Ratings(
    arrays, metadata, seed, train, fitted=dict(state), catalog=catalog,
    histories=None if train else seen, before=_before(user_of, known)[rows],
    asked=[events.user[i] for i in at], held_out=() if train else [events.item[i] for i in at],
  )  # fmt: skip


def _asking(
  words: Words, given: Any, fitted: Mapping[str, Any], history: int, seed: int
) -> Ratings:
  """Users who ask for items: all that they rated in the file of training is seen."""
  asked, source = asked_users(words, given)
  catalog = Catalog.restore(fitted['catalog'])
  seen, past = (
    Histories.restore(fitted[key], len(catalog.users), len(catalog.items))
    for key in ('seen', 'past')
  )
  number = _numbers(catalog.users, asked)
  new = [name for name, n in zip(asked, number, strict=True) if n == UNKNOWN]
  if new:
    more = ', ...' if len(new) > SHOWN else ''
    log.warning('%s: %d of %d users have no training rating and get the most popular items: %s',
                source, len(new), len(asked), ', '.join(new[:SHOWN]) + more)  # fmt: skip
  most = int(fitted['most_seen'])
  metadata = {'most_seen': most, 'history': history, 'source': source, **catalog.metadata}
  everything = np.full(len(asked), len(seen.items), np.int64)
  arrays = {'user': number.astype(np.int32)}
  if history:
    arrays['history'] = past.last(arrays['user'], everything, history)
  return Ratings(arrays, metadata, seed, False, fitted=dict(fitted),
                 catalog=catalog, histories=seen, before=everything, asked=asked)  # fmt: skip


def _numbers(known: Sequence[str], ids: Sequence[str]) -> np.ndarray:
  """Numbers of ids, int64 [n]; `UNKNOWN` of those that the training part lacks."""
  place = {name: i for i, name in enumerate(known)}
  return np.array([place.get(i, UNKNOWN) for i in ids], np.int64)


def _before(user: np.ndarray, known: np.ndarray) -> np.ndarray:
  """How many known events of the same user stand before each event, int64 [n]; sorted by user."""
  total = np.concatenate([[0], np.cumsum(known)])[:-1]
  first = np.concatenate([[True], user[1:] != user[:-1]])
  begin = np.maximum.accumulate(np.where(first, np.arange(len(user)), 0))
  return total - total[begin]


def _log(
  source: str,
  split: str,
  events: Events,
  rows: np.ndarray,
  item_of: np.ndarray,
) -> None:
  """Logs the size of a split, and what it cannot use."""
  users, lost = len(set(events.user)), int(events.split(split, LEFT_OUT, LEAST).sum() - rows.sum())
  log.info('%s: %s ratings by %s users; %s has %s', source, f'{len(rows):,}', f'{users:,}', split,
           f'{int(rows.sum()):,}')  # fmt: skip
  if lost:
    log.warning('%s: %d ratings of users or items that the training data lack are left out', source,
                lost)  # fmt: skip
  missed = int((item_of[rows] == UNKNOWN).sum())
  if missed:
    log.warning('%s: %d of %d held-out items have no training rating: each is a miss', source,
                missed, int(rows.sum()))  # fmt: skip
