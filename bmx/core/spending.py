"""Hours, money, energy and carbon of devices, from the words `plan.prices`, `watts`, `carbon`."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from bmx.core import chips
from bmx.core.errors import InputError, did_you_mean

CPU = 'cpu'  # kind of a machine that computes on its processors
KINDS = (*chips.KINDS, CPU)  # that have a price and a power
JOULES = 3.6e6  # of a kWh


class Spending(NamedTuple):
  """What a training takes.

  Attributes:
    h: hours.
    usd: US dollars; None without a price.
    kwh: of energy; None if unknown.
    kg: CO2e; None without energy or a carbon intensity.
  """

  h: float
  usd: float | None
  kwh: float | None
  kg: float | None

  def scaled(self, factor: float) -> 'Spending':
    """Returns what a training of `factor` times the duration takes."""
    usd, kwh, kg = (None if v is None else factor * v for v in self[1:])
    return Spending(factor * self.h, usd, kwh, kg)


def by_kind(text: str, word: str) -> dict[str, float]:
  """Reads 'v5p=4.2,h100=3' -> {'v5p': 4.2, 'h100': 3.0}. Raises InputError for another text."""
  found = {}
  for item in filter(None, text.replace(' ', '').split(',')):
    kind, equals, amount = item.partition('=')
    value = _number(amount) if equals else 0.0
    if kind not in KINDS:
      raise InputError(f'{word}={text!r}: unknown chip {kind!r}{did_you_mean(kind, KINDS)}')
    if not 0 < value < math.inf:
      raise InputError(f'{word}={text!r}: expected a number above 0 for {kind}, as in {kind}=2.5')
    found[kind] = value
  return found


def _number(text: str) -> float:
  try:
    return float(text)
  except ValueError:
    return 0.0


def carbon(words: Mapping[str, Any]) -> float:
  """Returns grams of CO2e of a kWh; 0: unknown. Raises InputError for a negative number."""
  value = float(words['carbon'])
  if not 0 <= value < math.inf:
    raise InputError(f'plan.carbon={value}: expected grams of CO2e of a kWh, at least 0')
  return value


def boards(kind: str, devices: int) -> float:
  """Returns the number of things that have a price and a power.

  Those are chips (two jax devices of a tpu7x each); a CPU's devices are one machine.
  """
  return {'tpu7x': devices / 2, CPU: 1}.get(kind, devices)


def watts(words: Mapping[str, Any], kind: str) -> float:
  """Returns the watts of a chip: of the word `watts`, else as published; 0: unknown."""
  published = chips.KINDS[kind].power if kind in chips.KINDS else 0.0
  return by_kind(words['watts'], 'plan.watts').get(kind) or published


def spend(
  words: Mapping[str, Any], kind: str, devices: int, seconds: float, joules: float | None = None
) -> Spending:
  """Returns what devices of a kind take in so many seconds.

  Args:
    words: of the config: `prices`, `watts`, `carbon`.
    kind: of `KINDS`; '' for a device that has neither price nor power.
    devices: of jax.
    seconds: of the whole training.
    joules: measured; None: the power of all chips at all times.
  """
  hours, chips_of = seconds / 3600, boards(kind, devices)
  price = by_kind(words['prices'], 'plan.prices').get(kind)
  power = watts(words, kind) * chips_of
  if joules is None and power:
    joules = power * seconds
  kwh = None if joules is None else joules / JOULES
  intensity = carbon(words)
  kg = kwh * intensity / 1000 if kwh is not None and intensity else None
  return Spending(hours, None if price is None else price * chips_of * hours, kwh, kg)
