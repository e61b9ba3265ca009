"""Weights of the records of a table: a column of it, and a weight for each class."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from bmx.core.errors import InputError, did_you_mean
from bmx.core.types import HostBatch
from bmx.data.records import Record, number


def row_weights(records: Sequence[Record], name: str, path: str) -> HostBatch:
  """Returns `weights` float32 [N] of the column `name`; {} without one, or in a file to predict.

  Raises InputError naming the first record whose weight is not a finite number of at least 0.
  """
  if not name or all(name not in r for r in records):
    return {}
  values = [number(r.get(name)) for r in records]
  for row, value in enumerate(values, 1):
    if value is None or not math.isfinite(value) or value < 0:
      raise InputError(
        f'{path}, record {row}: weight {records[row - 1].get(name)!r}; expected a number of at '
        'least 0'
      )
  return {'weights': np.array(values, np.float32)}


def class_weights_of(
  label: np.ndarray | None, names: Sequence[str], given: str | Mapping[str, float]
) -> np.ndarray:
  """Returns the weight of each class, float32 [classes].

  Args:
    label: int [N] of the training data.
    names: of the classes.
    given: 'balanced' (every class has the same total weight, all together N), or class -> weight.

  Raises:
    InputError: a regression, an unknown word or class, a class without a weight, or a weight
      below 0.
  """
  if label is None or not names:
    raise InputError(f'class_weights={given!r}: expected a table with classes; use weights=COLUMN')
  if isinstance(given, str):
    if given != 'balanced':
      raise InputError(f"class_weights={given!r}: expected 'balanced' or a weight for each class")
    counts = np.bincount(label, minlength=len(names))
    return (len(label) / (len(names) * np.maximum(counts, 1))).astype(np.float32)
  for name, weight in given.items():
    if name not in names:
      raise InputError(
        f'class_weights: {name!r} is not a class of the data{did_you_mean(name, names)}'
      )
    if not math.isfinite(weight) or weight < 0:
      raise InputError(f'class_weights.{name}={weight}: expected a finite number of at least 0')
  missing = [name for name in names if name not in given]
  if missing:
    raise InputError(f'class_weights: expected a weight for every class; {missing[0]!r} has none')
  return np.array([given[name] for name in names], np.float32)
