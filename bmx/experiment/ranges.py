"""Ranges of numbers in a config."""

import math
from collections.abc import Mapping
from typing import Any

from bmx.core.errors import InputError

# leaf -> (least, bound): least <= value < bound
RANGES = {
  'seed': (0, 2**32),
  'steps_per_call': (0, math.inf),
  'ema': (0, 1),
  'every.log': (0, math.inf),
  'every.eval': (0, math.inf),
  'every.save': (0, math.inf),
  'guard.patience': (0, math.inf),
  'guard.spike': (0, math.inf),
  'profile.start': (1, math.inf),
  'profile.steps': (0, math.inf),
  'watchdog.seconds': (0, math.inf),
  'keep.last': (1, math.inf),
}


def check_ranges(c: Mapping[str, Any]) -> None:
  """Raises InputError naming the first number outside its range."""
  for name, (least, bound) in RANGES.items():
    word, _, leaf = name.partition('.')
    value = c[word][leaf] if leaf else c[word]
    if not least <= value < bound:
      limit = '' if bound == math.inf else f' and below {bound}'
      raise InputError(f'--config.{name}={value}: expected at least {least}{limit}')
