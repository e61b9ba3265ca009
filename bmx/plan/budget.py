"""Hours, money and energy of a training, and what a user wants to spend."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from bmx.core import chips
from bmx.core.errors import InputError, did_you_mean

UNITS = {'usd': 'US dollars', 'h': 'hours', 'kwh': 'kWh'}


class Spending(NamedTuple):
  """What a training takes, at the likely speed.

  Attributes:
    h: hours.
    usd: US dollars; None without a price.
    kwh: of the boards alone; None without a power.
    kg: CO2e; None without a power or a carbon intensity.
  """

  h: float
  usd: float | None
  kwh: float | None
  kg: float | None


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


def by_kind(text: str, word: str) -> dict[str, float]:
  """Reads 'v5p=4.2,h100=3' -> {'v5p': 4.2, 'h100': 3.0}. Raises InputError for another text."""
  found = {}
  for item in filter(None, text.replace(' ', '').split(',')):
    kind, equals, amount = item.partition('=')
    value = _number(amount) if equals else 0.0
    if kind not in chips.KINDS:
      raise InputError(f'{word}={text!r}: unknown chip {kind!r}{did_you_mean(kind, chips.KINDS)}')
    if not 0 < value < math.inf:
      raise InputError(f'{word}={text!r}: expected a number above 0 for {kind}, as in {kind}=2.5')
    found[kind] = value
  return found


def spend(words: Mapping[str, Any], kind: str, devices: int, seconds: float) -> Spending:
  """Returns what devices of a kind take in so many seconds.

  Args:
    words: of the config: `prices`, `watts`, `carbon`.
    kind: of `chips.KINDS`.
    devices: of jax; a tpu7x chip is two.
    seconds: of the whole training.
  """
  hours = seconds / 3600
  parts = devices / 2 if kind == 'tpu7x' else devices
  price = by_kind(words['prices'], 'plan.prices').get(kind)
  watts = by_kind(words['watts'], 'plan.watts').get(kind) or chips.KINDS[kind].power
  kwh = watts * parts * hours / 1000 if watts else None
  carbon = words['carbon']
  kg = kwh * carbon / 1000 if kwh is not None and carbon else None
  return Spending(hours, None if price is None else price * parts * hours, kwh, kg)
