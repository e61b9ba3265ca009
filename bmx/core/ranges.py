"""Ranges of numbers, checked on the host where a part is built."""

import math
from typing import Any

from bmx.core.errors import InputError


def check_number(
  name: str,
  value: Any,
  *,
  at_least: float | None = None,
  above: float | None = None,
  at_most: float | None = None,
  below: float | None = None,
) -> None:
  """Raises InputError unless a number is finite and lies within its bounds.

  >>> check_number('b1', 1.5, at_least=0, below=1)
  Traceback (most recent call last):
    ...
  bmx.core.errors.InputError: b1=1.5: expected 0 <= b1 < 1

  Args:
    name: of the argument, for the message.
    value: that was given.
    at_least: lower bound, included.
    above: lower bound, excluded.
    at_most: upper bound, included.
    below: upper bound, excluded.
  """
  fits = (
    _finite(value)
    and (at_least is None or value >= at_least)
    and (above is None or value > above)
    and (at_most is None or value <= at_most)
    and (below is None or value < below)
  )
  if not fits:
    condition = _condition(name, at_least, above, at_most, below)
    raise InputError(f'{name}={value}: expected {condition}')


def _finite(value: Any) -> bool:
  try:
    return math.isfinite(value)
  except (TypeError, OverflowError):  # no number; an integer beyond the floats
    return False


def _condition(
  name: str,
  at_least: float | None,
  above: float | None,
  at_most: float | None,
  below: float | None,
) -> str:
  low = f'{at_least} <= ' if at_least is not None else f'{above} < ' if above is not None else ''
  high = f' <= {at_most}' if at_most is not None else f' < {below}' if below is not None else ''
  if low and high:
    return f'{low}{name}{high}'
  return f'a finite number, {low}{name}{high}' if low or high else 'a finite number'
