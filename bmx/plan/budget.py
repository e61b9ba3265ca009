"""What a user wants to spend: hours, money or energy."""

import math
import re
from typing import NamedTuple

from bmx.core.errors import InputError
from bmx.core.spending import Spending

EXAMPLES = {'usd': '500usd', 'h': '24h', 'kwh': '30kwh', 'flops': '1e21flops'}
UNITS = {'usd': 'US dollars', 'h': 'hours', 'kwh': 'kWh'}


class Budget(NamedTuple):
  """An amount of one of `UNITS`."""

  amount: float
  unit: str

  def allows(self, spending: Spending) -> bool:
    """Returns whether a training stays within the budget."""
    needed = spending._asdict()[self.unit]
    return needed is not None and needed <= self.amount


def parse(text: str, units: tuple[str, ...] = tuple(UNITS)) -> Budget:
  """Reads '500usd', '24h' or '30kwh', or other units.

  >>> parse('24h'), parse('1e21flops', ('h', 'flops'))
  (Budget(amount=24.0, unit='h'), Budget(amount=1e+21, unit='flops'))

  Raises InputError for another text, or an amount that trains nothing.
  """
  match = re.fullmatch(rf'([\d.,]+(?:e\+?\d+)?)\s*({"|".join(units)})', text.strip().lower())
  amount = _number(match.group(1)) if match else 0.0
  if not match or not 0 < amount < math.inf:
    *most, last = (EXAMPLES[unit] for unit in units)
    raise InputError(
      f'--budget={text!r}: expected an amount above 0, such as {", ".join(most)} or {last}'
    )
  return Budget(amount, match.group(2))


def _number(text: str) -> float:
  try:
    return float(text.replace(',', ''))
  except ValueError:
    return 0.0
