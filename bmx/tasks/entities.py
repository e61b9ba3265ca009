"""Named entities: spans of words, read from tags of the kind IOB2."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.data import Data
from bmx.core.errors import InputError


def word_tags(
  sentences: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns sentence, predicted tag and true tag of each word, int [W] each.

  Args:
    sentences: 'tags' and 'known' of each.
    names: tags by id; a tag without a name ('O' may be) has the id after the last.
  """
  place = {name: i for i, name in enumerate(names)}
  row = np.repeat(np.arange(len(sentences)), [len(s['known']) for s in sentences])
  columns = [[place.get(t, len(names)) for s in sentences for t in s[k]] for k in ('tags', 'known')]
  return row, np.array(columns[0]), np.array(columns[1])


def tag_parts(data: Data) -> tuple[np.ndarray, np.ndarray]:
  """Returns 'O', 'B' or 'I', and the type, of each tag id: str [K + 1] each, last that of 'O'."""
  if not data.metadata.get('class_names'):
    raise InputError(
      "entity_f1 expects the tags by id as the data's metadata['class_names'], not only "
      f'{sorted(data.metadata)}'
    )
  parts = [name.partition('-') for name in data.metadata['class_names']]
  odd = [''.join(p) for p in parts if p[0] not in ('O', 'B', 'I')]
  if odd:
    raise InputError(f'entity_f1 reads tags O, B-TYPE and I-TYPE; the data has {brief(odd)}')
  return np.array([*(p[0] for p in parts), 'O']), np.array([*(p[2] for p in parts), ''])


def check_tags(ids: np.ndarray, count: int) -> None:
  """Raises InputError if an id is not one of `count` tags."""
  odd = np.unique(ids[(ids < 0) | (ids >= count)])
  if len(odd):
    raise InputError(f'the data names {count} tags, but there are words of tag {brief(odd)}')


def entities(
  ids: np.ndarray, row: np.ndarray, kinds: np.ndarray, types: np.ndarray
) -> set[tuple[int, int, str]]:
  """Returns (first, last, type) of each entity; words are counted through the whole split.

  Args:
    ids: the tag of each word, int [W].
    row: the sentence of each word, int [W].
    kinds: see `tag_parts`.
    types: see `tag_parts`.
  """
  kind, kind_of = kinds[ids], types[ids]
  inside = kind != 'O'
  goes_on = inside[:-1] & (kind[1:] == 'I') & (kind_of[1:] == kind_of[:-1]) & (row[1:] == row[:-1])
  first = np.flatnonzero(inside & ~np.append(False, goes_on))
  last = np.flatnonzero(inside & ~np.append(goes_on, False))
  return set(zip(first.tolist(), last.tolist(), kind_of[first].tolist(), strict=True))


def brief(values: Sequence | np.ndarray) -> str:
  """Joins the first values.

  >>> brief(['S-x', 'E-x'])
  'S-x, E-x'
  """
  return ', '.join(map(str, values[:8])) + (', ...' if len(values) > 8 else '')
