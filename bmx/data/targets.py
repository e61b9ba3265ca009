"""The target of a table: a class or a number."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import HostBatch, Metadata
from bmx.data.classes import class_line, class_names, encode_classes, warn_unseen
from bmx.data.columns import MISSING
from bmx.data.records import number

TargetKind = Literal['auto', 'class', 'number']
MAX_CLASSES = 20  # distinct whole numbers up to which a target is taken for classes


def kind_of_target(values: Sequence[Any]) -> Literal['class', 'number']:
  """Returns the kind of a target: 'number' for fractions, or for whole numbers of many values.

  Everything else is a class, also up to `MAX_CLASSES` distinct whole numbers.

  >>> kind_of_target(['0', '1', '1']), kind_of_target(['1.5', '2']), kind_of_target(['yes', 'no'])
  ('class', 'number', 'class')
  """
  there = [v for v in values if not _is_missing(v)]
  numbers = [number(v) for v in there]
  if not there or None in numbers:
    return 'class'
  whole = all(math.isfinite(v) and v == round(v) for v in numbers if v is not None)
  return 'class' if whole and len(set(numbers)) <= MAX_CLASSES else 'number'


@dataclasses.dataclass(frozen=True)
class Target:
  """The fitted encoder of the target of a table.

  Attributes:
    name: of the column.
    class_names: of its classes, in order; () for a number.
    mean: of a number, over the training part.
    std: standard deviation of a number over the training part; 1 if it is constant.
    strip: characters that are cut from the ends of a class.
    line: the kind of the target, for the log; '' after `restore`.
  """

  name: str
  class_names: tuple[str, ...] = ()
  mean: float = 0.0
  std: float = 1.0
  strip: str = ''
  line: str = ''

  @classmethod
  def fit(
    cls,
    values: Sequence[Any],
    part: np.ndarray,
    name: str,
    kind: TargetKind,
    strip: str,
    source: str,
  ) -> 'Target':
    """Learns a target from its values.

    Args:
      values: of all records; classes are those of all of them.
      part: int [n], the records of the training part; numbers are standardized by them.
      name: of the column.
      kind: 'class', 'number' or 'auto'.
      strip: characters that are cut from the ends of a class.
      source: of the records, for messages.

    Raises:
      InputError: no value, one class only, almost as many classes as records, or a number that is
        missing or not finite.
    """
    if kind not in ('auto', 'class', 'number'):
      raise InputError(f"data.kind={kind!r}: expected 'auto', 'class' or 'number'")
    if all(_is_missing(v) for v in values):
      raise InputError(f'{source}: {name}, the target, has no value; expected classes or numbers')
    if (kind if kind != 'auto' else kind_of_target(values)) == 'number':
      return cls._numbers(numbers(values, name, source), part, name)
    return cls._classes(values, part, name, strip, source)

  @classmethod
  def _numbers(cls, values: np.ndarray, part: np.ndarray, name: str) -> 'Target':
    of_part = values[part].astype(np.float64)
    mean, std = float(of_part.mean()), float(of_part.std())
    std = std if std > 1e-6 * abs(mean) else 1.0
    line = f'{name}: a number, mean {mean:.6g}, deviation {std:.6g}; the mean alone: loss 1'
    return cls(name, mean=mean, std=std, line=line)

  @classmethod
  def _classes(
    cls, values: Sequence[Any], part: np.ndarray, name: str, strip: str, source: str
  ) -> 'Target':
    texts = [clean(v, strip) for v in values]
    names = class_names(texts)
    if len(names) < 2:
      raise InputError(f'{source}: {name}, the target, has one class only, {"".join(names)!r}')
    if len(names) > max(MAX_CLASSES, len(texts) / 2):
      raise InputError(
        f'{source}: {name}, the target, has {len(names)} classes in {len(texts)} records: expected '
        "classes that recur, or numbers (data.kind='number'); is it a name or number of the record?"
      )
    warn_unseen(names, [texts[i] for i in part], f'{source}: {name}')
    line = f'{name}: {class_line(names, texts)}'
    if all(number(n) is not None for n in names):
      line += '; data.kind=number predicts a number instead'
    return cls(name, names, strip=strip, line=line)

  @property
  def metadata(self) -> Metadata:
    """Facts of the target, which tasks are checked against."""
    if self.class_names:
      return {'num_classes': len(self.class_names), 'class_names': self.class_names}
    return {'num_targets': 1, 'target_mean': self.mean, 'target_std': self.std}

  def state(self) -> dict[str, Any]:
    """Returns the fitted values, as JSON holds them."""
    if self.class_names:
      return {'target': self.name, 'class_names': list(self.class_names), 'strip': self.strip}
    return {'target': self.name, 'target_mean': self.mean, 'target_std': self.std}

  @classmethod
  def restore(cls, state: Mapping[str, Any]) -> 'Target':
    """Inverse of `state`."""
    return cls(
      str(state['target']),
      tuple(str(n) for n in state.get('class_names', ())),
      float(state.get('target_mean', 0.0)),
      float(state.get('target_std', 1.0)),
      str(state.get('strip', '')),
    )

  def encode(self, values: Sequence[Any], source: str) -> HostBatch:
    """Returns `label` int32 [N] or `y` float32 [N, 1]; {} without targets (a file to predict).

    Raises InputError naming the first record with an unknown class or an invalid number.
    """
    if self.class_names:
      return encode_classes([clean(v, self.strip) for v in values], self.class_names, source)
    if all(_is_missing(v) for v in values):
      return {}
    return {'y': numbers(values, self.name, source)[:, None]}


def clean(value: Any, strip: str) -> str | None:
  """Returns the text of a class, without blanks and `strip` at its ends; None if it is missing."""
  return None if value is None else str(value).strip(strip + ' ')


def numbers(values: Sequence[Any], name: str, source: str) -> np.ndarray:
  """Converts targets to float32 [N]. Raises InputError naming the first that is not finite."""
  found = [number(v) for v in values]
  for row, value in enumerate(found, 1):
    if value is None or not math.isfinite(value):
      raise InputError(
        f'{source}, record {row}: {name} is {values[row - 1]!r}; expected a finite number; remove '
        'records without a target'
      )
  return np.array(found, np.float32)


def _is_missing(value: Any) -> bool:
  return value in (None, '') or (isinstance(value, str) and value in MISSING)
