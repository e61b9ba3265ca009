"""Steps that clean documents: their type, and checks of their arguments."""

import math
from collections.abc import Callable
from typing import Any

from bmx.core.errors import InputError

Step = Callable[[list[str]], list[str]]


def check_between(step: Any, least: float, most: float, *names: str) -> None:
  """Raises InputError unless the named arguments of a step lie within `least` and `most`."""
  for name in names:
    value = getattr(step, name)
    if not least <= value <= most:
      expected = f'at least {least}' if most == math.inf else f'{least} to {most}'
      raise InputError(f'{type(step).__name__}: {name}={value}, expected {expected}')


def check_range(step: Any, least: str, most: str) -> None:
  """Raises InputError unless two arguments of a step, from 0 on, are in ascending order."""
  check_between(step, 0, math.inf, least, most)
  low, high = getattr(step, least), getattr(step, most)
  if low > high:
    raise InputError(f'{type(step).__name__}: {least}={low} is above {most}={high}')
