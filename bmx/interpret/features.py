"""Groups of input elements that people know as one feature: columns of a table, tokens, windows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bmx.core.errors import InputError
from bmx.data.encoder import TabularEncoder
from bmx.data.recommend.categories import FieldEncoder
from bmx.interpret import ablation
from bmx.interpret.subject import input_key

MAX_FEATURES = 1024  # of a table
WINDOWS = 8  # across an image, by default


class Features(NamedTuple):
  """Features of an input.

  Attributes:
    names: of tables; () of images and texts.
    masks: bool [G, ...], the elements of each, see `ablation`.
  """

  names: tuple[str, ...]
  masks: np.ndarray


def of_columns(encoder: TabularEncoder) -> Features:
  """Returns the columns of an encoded table; the categories of a column are one feature."""
  widths = [(name, 1) for name in (*encoder.numeric, *encoder.dates)]
  widths += [(name, len(known)) for name, known in encoder.categories.items()]
  owner = np.repeat(np.arange(len(widths)), [width for _, width in widths])
  there = [(i, name) for i, (name, width) in enumerate(widths) if width]
  masks = owner == np.array([i for i, _ in there])[:, None]
  return Features(tuple(name for _, name in there), masks)


def of_fields(columns: int, state: Mapping[str, Any]) -> Features:
  """Returns the columns of a click model, numbers first.

  Args:
    columns: of numbers and of categories.
    state: fitted values of the data; without names of columns they are numbered.
  """
  if 'fields' not in state:
    return of_elements((columns,))
  encoder = FieldEncoder.restore(state['fields'])
  numbers = *encoder.numbers.numeric, *encoder.numbers.dates
  return Features((*numbers, *encoder.listed, *encoder.hashed), np.eye(columns, dtype=bool))


def of_elements(shape: Sequence[int]) -> Features:
  """Returns every element of an input without names, x0, x1, ...

  Raises InputError for more than `MAX_FEATURES`.
  """
  count = int(np.prod(shape))
  if count > MAX_FEATURES:
    raise InputError(f'explain: expected at most {MAX_FEATURES} features, found {count}')
  masks = np.eye(count, dtype=bool).reshape(count, *shape)
  return Features(tuple(f'x{i}' for i in range(count)), masks)


def features_of(batch: Mapping[str, Any], state: Mapping[str, Any], window: int = 0) -> Features:
  """Returns the features of a batch.

  Args:
    batch: of examples.
    state: fitted values of the data: the encoder of a table, the columns of a click model.
    window: side of the windows of an image, in pixels; 0: an eighth of the shorter side.

  Raises:
    InputError: a window larger than the image, too many features.
  """
  key = input_key(batch)
  shape = batch[key].shape[1:]
  if key == 'image':
    side = window or max(1, min(shape[:2]) // WINDOWS)
    return Features((), ablation.windows(shape, (side, side), (max(1, side // 2),) * 2))
  if window:
    raise InputError(f'explain.window={window}: expected 0 without images')
  if key == 'ids':
    return of_fields(batch['x'].shape[1] + shape[0], state)
  if key == 'tokens':
    return Features((), np.eye(shape[0], dtype=bool)[..., None])
  return (
    of_columns(TabularEncoder.restore(state['encoder']))
    if 'encoder' in state
    else of_elements(shape)
  )
