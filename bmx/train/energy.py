"""Energy, money and carbon of a run beside their forecast."""

import logging
from collections.abc import Mapping
from typing import Any

import jax

from bmx.core import chips, hardware, spending
from bmx.core.experiment import Experiment
from bmx.runtime import energy
from bmx.runtime.account import Account
from bmx.runtime.energy import Energy, Estimate, Source
from bmx.runtime.progress import clock
from bmx.train.policy import LoopState

log = logging.getLogger('bmx')
WARM = 2  # the window that a forecast is made from; the first has slower steps


class RunEnergy:
  """Energy, money and carbon of a run over all its starts, with a forecast of the whole.

  The forecast is made before the first step where the speed of the chip is known, else after the
  second log line; a resumed run keeps it unless the number of steps differs.

  Args:
    x: the experiment, with the words `plan.prices`, `plan.watts`, `plan.carbon`.
    units: tokens or examples of a step, by name.
    flops: of a step on all devices.
    loop: host state of the checkpoint; its `forecast` is set.
    account: wall time.

  Raises InputError for prices, watts or a carbon intensity that are invalid.
  """

  def __init__(
    self, x: Experiment, units: Mapping[str, int], flops: float, loop: LoopState, account: Account
  ):
    self.words, self.steps = x.config['plan'], x.steps
    self.units, self.loop, self.account = units, loop, account
    self.device, self.devices = x.layout.mesh.devices.flat[0], x.layout.devices
    self.kind = kind_of(self.device)
    self.spend(0.0)
    self.energy = Energy(sources(x, self.words, account.began), loop.joules)
    self.windows = 0
    if loop.forecast.get('steps') != self.steps:
      loop.forecast = self._before_first_step(x, flops)

  def spend(self, seconds: float, joules: float | None = None) -> spending.Spending:
    """Returns what the devices take, see `spending.spend`."""
    return spending.spend(self.words, self.kind, self.devices, seconds, joules)

  def _before_first_step(self, x: Experiment, flops: float) -> dict[str, float]:
    chip = hardware.chip(self.device)
    if chip is None or not flops:
      return {}
    peak = chip.peak(x.choices.get('dtype', 'float32')) * self.devices
    return self._forecast(0, self.steps * flops / peak / chip.efficiency)

  def _forecast(self, step: int, seconds: float, joules: float | None = None) -> dict[str, float]:
    spent = self.spend(seconds, joules)
    known = {'kwh': spent.kwh, 'usd': spent.usd, 'kg_co2e': spent.kg}
    made = {'step': step, 'steps': self.steps, 'seconds': seconds}
    return {k: float(v) for k, v in (made | known).items() if v is not None}

  def line(self, step: int, rates: Mapping[str, float]) -> dict[str, float]:
    """Returns values of a log line: power and energy of the window, sums of the run.

    Args:
      step: completed steps.
      rates: of the window; {} if it is too short to be timed: then only sums are returned.
    """
    made = self._of_window(step, rates['step_seconds']) if rates else {}
    return made | {k: v for k, v in self._sums().items() if v is not None}

  def _of_window(self, step: int, step_seconds: float) -> dict[str, float]:
    self.windows += 1
    power = self.energy.watts()
    if self.windows == WARM and not self.loop.forecast:
      self._forecast_from(step, step_seconds, power)
    if power is None:
      return {}
    each = {f'joules_per_{k[:-1]}': power * step_seconds / n for k, n in self.units.items()}
    return {'watts': power, **each}

  def _forecast_from(self, step: int, step_seconds: float, power: float | None) -> None:
    """Sets the forecast: use until now, and the steps that remain at this speed and power."""
    left = (self.steps - step) * step_seconds
    joules = None if power is None else self._joules() + power * left
    self.loop.forecast = self._forecast(step, self._seconds() + left, joules)
    if step < self.steps:
      log.info('forecast   %s', self.forecast_text())

  def _seconds(self) -> float:
    return sum(self.account.parts().values())

  def _joules(self) -> float:
    return sum(self.energy.parts().values())

  def _sums(self) -> dict[str, float | None]:
    parts = self.energy.parts()
    known = set(parts) != {energy.UNKNOWN}
    spent = self.spend(self._seconds(), sum(parts.values()))
    return {
      'kwh': spent.kwh if known else None,
      'usd': spent.usd,
      'kg_co2e': spent.kg if known else None,
    }

  def facts(self, step: int) -> dict[str, Any]:
    """Returns the energy of the run until now, for summary.json.

    `joules_per_token` here has all of it, start, compilation and evaluations too.
    """
    parts, sums = self.energy.parts(), self._sums()
    joules = sum(parts.values())
    known, done = sums['kwh'] is not None, step or 1
    each = {f'joules_per_{k[:-1]}': joules / (done * n) for k, n in self.units.items() if known}
    return {
      'source': '; '.join([*(s.text for s in self.energy.sources), *self._earlier(parts)]),
      'measured': known and not {energy.ESTIMATE, energy.UNKNOWN} & set(parts),
      'joules_by_source': {k: v for k, v in parts.items() if k != energy.UNKNOWN},
      'joules': round(joules, 3) if known else None,
      **sums,
      **each,
      'forecast': dict(self.loop.forecast),
    }

  def _earlier(self, parts: Mapping[str, float]) -> list[str]:
    """Names sources of earlier starts that this one lacks."""
    own = {s.name for s in self.energy.sources}
    return [f'earlier starts: {name}' for name in parts if name not in own]

  def forecast_text(self) -> str:
    """Formats the forecast: time, energy, money, carbon, and what it was made from."""
    made = self.loop.forecast
    if not made:
      return f'after {WARM} log lines: the speed of {self.device.device_kind} is not known'
    parts = [clock(made['seconds'])]
    units = {'kwh': 'kWh', **energy.UNITS}
    parts += [f'{made[k]:.4g} {unit}' for k, unit in units.items() if k in made]
    return f'{", ".join(parts)} ({self._origin(made)})'

  def _origin(self, made: Mapping[str, float]) -> str:
    if made['step']:
      return f'from the speed until step {made["step"]:,.0f}, without later evaluations'
    chip = hardware.chip(self.device)
    share = f'{chip.efficiency:.0%} of the peak of {self.kind}' if chip else 'an earlier machine'
    return f'likely: {share}, boards alone'


def kind_of(device: Any) -> str:
  """Returns the kind of `spending.KINDS` of a device; '' for another."""
  return spending.CPU if device.platform == 'cpu' else chips.named(hardware.chip(device))


def sources(x: Experiment, words: Mapping[str, Any], began: float) -> list[Source]:
  """Returns the sources of the energy of a run on this machine, the best there are.

  Args:
    x: the experiment.
    words: `prices`, `watts`, `carbon`.
    began: when this start began, in seconds of `time.perf_counter`.
  """
  device, kind = x.layout.mesh.devices.flat[0], kind_of(x.layout.mesh.devices.flat[0])
  found, why = energy.rapl()
  counters: list[Source] = [found] if found else []
  if device.platform == 'cpu':
    return counters or [_estimate(words, kind, x.layout.devices, began, why)]
  if device.platform == 'gpu':
    local = [d for d in x.layout.mesh.devices.flat if d.process_index == jax.process_index()]
    ordinals = [d.local_hardware_id for d in local]
    boards, why = energy.nvml(ordinals, x.layout.devices / len(local))
    if boards:
      return [boards, *counters]
  else:
    why = 'chips without a counter'
  return [_estimate(words, kind, x.layout.devices, began, why), *counters]


def _estimate(
  words: Mapping[str, Any], kind: str, devices: int, began: float, why: str
) -> Estimate:
  """Returns an estimate: a constant power of every chip, if one is known."""
  watts, count = spending.watts(words, kind), spending.boards(kind, devices)
  if not watts:
    name = kind or 'the chip'
    text = f'unknown: {why}; plan.watts={name}=WATTS gives an estimate'
  else:
    text = f'estimate, {watts:g} W × {count:g} at all times (assumed); {why}'
  return Estimate(watts * count, text, began)
