"""What a user wants to spend: hours, money or energy."""

import re
from typing import NamedTuple

from bmx.core.errors import InputError
from bmx.core.spending import Spending

UNITS = {'usd': 'US dollars', 'h': 'hours', 'kwh': 'kWh'}


class Budget(NamedTuple):
  """An amount of one of `UNITS`."""

  amount: float
  unit: str

  def allows(self, spending: Spending) -> bool:
    """Returns whether a training stays within the budget."""
    needed = spending._asdict()[self.unit]
    return needed is not None and needed <= self.amount


def parse(text: str) -> Budget:
  """Reads '500usd', '24h' or '30kwh'.

  >>> parse('24h')
  Budget(amount=24.0, unit='h')

  Raises InputError for another text, or an amount that trains nothing.
  """
  match = re.fullmatch(r'([\d.,]+(?:e\d+)?)\s*(usd|h|kwh)', text.strip().lower())
  amount = _number(match.group(1)) if match else 0.0
  if not match or not amount > 0:
    raise InputError(f'--budget={text!r}: expected an amount above 0, such as 500usd, 24h or 30kwh')
  return Budget(amount, match.group(2))


def _number(text: str) -> float:
  try:
    return float(text.replace(',', ''))
  except ValueError:
    return 0.0
