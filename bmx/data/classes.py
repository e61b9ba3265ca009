"""Classes: their names, in one order for every file format and every process."""

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import HostBatch
from bmx.data.records import number

log = logging.getLogger('bmx')
SHOWN = 6  # classes that a line names


def class_names(values: Iterable[str | None]) -> tuple[str, ...]:
  """Returns distinct names: those that are finite numbers by value, then all others by text.

  Names that are numbers of equal value ('1' and '1.0') are two classes; missing names are ignored.

  >>> class_names(['10', '9', '9']), class_names(['nan', 'eng', '2'])
  (('9', '10'), ('2', 'eng', 'nan'))
  """
  distinct = {v for v in values if v not in (None, '')}
  return tuple(sorted(distinct, key=_by_number))


def class_line(names: Sequence[str], values: Sequence[str | None]) -> str:
  """Describes classes by their shares, and the accuracy of predicting the largest one.

  >>> class_line(('no', 'yes'), ['no', 'no', 'no', 'yes'])
  '2 classes, no (75%), yes (25%); the largest alone: accuracy 0.750'
  """
  counts = Counter(v for v in values if v)
  shown = ', '.join(f'{n} ({counts[n] / len(values):.0%})' for n in names[:SHOWN])
  more = f' and {len(names) - SHOWN} more' if len(names) > SHOWN else ''
  largest = max(counts.values()) / len(values)
  return f'{len(names)} classes, {shown}{more}; the largest alone: accuracy {largest:.3f}'


def warn_unseen(names: Iterable[str], training: Iterable[str | None], source: str) -> None:
  """Logs the classes that held-out records alone have: a model never learns them.

  Classes are those of all records, so that such a record counts as a mistake, not as an error.

  Args:
    names: of all records.
    training: of each training record.
    source: of the records.
  """
  known = set(training)
  unseen = [name for name in names if name not in known]
  if unseen:
    shown = ', '.join(unseen[:SHOWN]) + (', ...' if len(unseen) > SHOWN else '')
    log.warning('%s: held-out records alone have %s: training never sees it', source, shown)


def ordered_names(
  found: Sequence[str], classes: Sequence[str], fitted: Mapping[str, Any] | None
) -> tuple[str, ...]:
  """Names in the order of the numbers of classes.

  Args:
    found: those of a training file, in its order.
    classes: the wanted order, which may hold more names; () takes `found`.
    fitted: `state()` of the training data, which decides.

  Raises InputError if a name stands twice in `classes`.
  """
  if fitted and 'class_names' in fitted:
    return tuple(fitted['class_names'])
  if len(set(classes)) < len(classes) or not all(isinstance(c, str) for c in classes):
    raise InputError(f'classes={tuple(classes)}: expected different names')
  return tuple(classes or found)


def _by_number(name: str) -> tuple[float, str]:
  value = number(name)
  return (value if value is not None and math.isfinite(value) else math.inf), name


def encode_classes(given: Sequence[str | None], names: Sequence[str], path: str) -> HostBatch:
  """Returns `label` int32 [N]; {} if no record has a class (a file to predict).

  Raises InputError naming the first record whose class is missing or unknown.
  """
  if all(v in (None, '') for v in given):
    return {}
  place = {name: i for i, name in enumerate(names)}
  for row, value in enumerate(given, 1):
    if value not in place:
      raise InputError(
        f'{path}, record {row}: class {value!r}; expected one of {", ".join(map(str, names))}'
      )
  return {'label': np.array([place[str(v)] for v in given], np.int32)}
