"""Energy that a run has used: counters of boards (NVML) and processors (RAPL), else an estimate."""

import importlib
import logging
import os
import pathlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

log = logging.getLogger('bmx')
POWERCAP = pathlib.Path('/sys/class/powercap')
ESTIMATE, UNKNOWN = 'estimate', 'unknown'
UNITS = {'usd': 'USD', 'kg_co2e': 'kg CO2e'}
POLL = 30.0  # seconds between two readings: RAPL counters wrap around after 10 minutes or more


class Source(Protocol):
  """A part of the energy of this process.

  Attributes:
    name: of the part: 'NVML', 'RAPL', `ESTIMATE` or `UNKNOWN`.
    text: where the figure is from, for people.
    wraps: whether it must be read every `POLL` seconds.
  """

  name: str
  text: str
  wraps: bool

  def joules(self) -> float:
    """Returns the energy since the source was made."""
    ...


class Rapl:
  """Counters of the processors (and memory) of this machine, which Intel and AMD keep.

  They count the work of everybody on the machine. A counter wraps around at
  `max_energy_range_uj`; a reading at least once in a range keeps the sum right.

  Args:
    root: the folder /sys/class/powercap, or one that resembles it.

  Raises:
    OSError: it has no counter, or this user may not read it (Linux 5.10 on: root alone).
  """

  name, wraps = 'RAPL', True

  def __init__(self, root: pathlib.Path = POWERCAP):
    zones = sorted(z for z in root.glob('*rapl*:*') if _counts(z))
    if not zones:
      raise OSError(f'{root} has no counter')
    self.ranges = {z: int((z / 'max_energy_range_uj').read_text()) for z in zones}
    self.last = {z: _microjoules(z) for z in zones}
    self.sum = 0
    self.text = f'RAPL of {", ".join(_label(z) for z in zones)}, all work of this machine'

  def joules(self) -> float:
    """Returns the energy since the source was made. Raises OSError if a counter is lost."""
    for zone, before in self.last.items():
      now = _microjoules(zone)
      self.sum += now - before if now >= before else now - before + self.ranges[zone]
      self.last[zone] = now
    return self.sum / 1e6


def _counts(zone: pathlib.Path) -> bool:
  """Whether a zone is a package or its memory; parts of a package are counted with it.

  A zone is listed once by its own name; interfaces by MMIO count what the others do.
  """
  if 'mmio' in zone.name or not (zone / 'energy_uj').exists():
    return False
  return _label(zone).startswith('package') or _label(zone) == 'dram'


def _label(zone: pathlib.Path) -> str:
  return (zone / 'name').read_text().strip()


def _microjoules(zone: pathlib.Path) -> int:
  return int((zone / 'energy_uj').read_text())


class Nvml:
  """Counters of the NVIDIA boards that this process computes on (Volta and later).

  Args:
    ordinals: of the devices among those that the process sees.
    nvml: the module `pynvml`, or one that resembles it.
    visible: CUDA_VISIBLE_DEVICES.
    times: devices of the run for each of this process, whose boards are taken to use as much.

  Raises OSError if a board cannot be found or has no counter.
  """

  name, wraps = 'NVML', False

  def __init__(self, ordinals: Sequence[int], nvml: Any, visible: str = '', times: float = 1):
    self.nvml, self.times = nvml, times
    try:
      nvml.nvmlInit()
      self.handles = [self._handle(i, [v for v in visible.split(',') if v]) for i in ordinals]
      self.first = self._joules()
    except IndexError:
      raise OSError(f'NVML: CUDA_VISIBLE_DEVICES={visible} lacks a device') from None
    except nvml.NVMLError as error:
      raise OSError(f'NVML: {error}') from None
    self.text = f'NVML of {len(self.handles)} board{"s" if len(self.handles) > 1 else ""}'
    self.text += f', times {times:g} for all processes' if times != 1 else ''

  def _handle(self, ordinal: int, visible: list[str]) -> Any:
    if not visible:
      return self.nvml.nvmlDeviceGetHandleByIndex(ordinal)
    name = visible[ordinal]
    if name.isdigit():
      return self.nvml.nvmlDeviceGetHandleByIndex(int(name))
    return self.nvml.nvmlDeviceGetHandleByUUID(name.encode())

  def _joules(self) -> float:
    return sum(map(self.nvml.nvmlDeviceGetTotalEnergyConsumption, self.handles)) / 1e3

  def joules(self) -> float:
    """Returns the energy since the source was made. Raises OSError if a board is lost."""
    try:
      return (self._joules() - self.first) * self.times
    except self.nvml.NVMLError as error:
      raise OSError(f'NVML: {error}') from None


class Estimate:
  """A constant power at all times.

  Args:
    watts: of all chips.
    text: where they are from; with 0 watts, why the energy is unknown.
    began: time from which on it is counted, in seconds of `time.perf_counter`.
  """

  wraps = False

  def __init__(self, watts: float, text: str, began: float):
    self.watts, self.began = watts, began
    self.name, self.text = ESTIMATE if watts else UNKNOWN, text

  def joules(self) -> float:
    """Returns the energy since `began`."""
    return self.watts * (time.perf_counter() - self.began)


def rapl(root: pathlib.Path | None = None) -> tuple[Rapl | None, str]:
  """Returns the counters of the processors, or None and why there are none.

  Args:
    root: see `Rapl`; None: this machine's.
  """
  root = POWERCAP if root is None else root
  try:
    return Rapl(root), ''
  except PermissionError:
    return None, f'RAPL cannot be read: {root}/*/energy_uj is for root'
  except (OSError, ValueError) as error:
    return None, f'RAPL is absent: {error}'


def nvml(ordinals: Sequence[int], times: float = 1) -> tuple[Nvml | None, str]:
  """Returns the counters of NVIDIA boards, see `Nvml`, or None and why there are none."""
  try:
    module = importlib.import_module('pynvml')
  except ImportError:
    return None, "NVML needs pip install 'bmx-jax[energy]'"
  try:
    return Nvml(ordinals, module, os.environ.get('CUDA_VISIBLE_DEVICES', ''), times), ''
  except OSError as error:
    return None, str(error)


class Energy:
  """Sums of several sources over all starts of a run.

  A thread reads counters that wrap around every `POLL` seconds.

  Args:
    sources: of this start.
    before: joules by name of a source, of the earlier starts, up to the checkpoint.
    now: () -> the time in seconds.
  """

  def __init__(
    self,
    sources: Sequence[Source],
    before: Mapping[str, float] | None = None,
    now: Callable[[], float] = time.perf_counter,
  ):
    self.sources, self.before, self.now = sources, dict(before or {}), now
    self.lock, self.closed = threading.Lock(), threading.Event()
    self.newest: dict[str, float] = {}
    self.failed: set[str] = set()
    self.mark = now(), self._own()
    if any(source.wraps for source in sources):
      threading.Thread(target=self._poll, daemon=True).start()

  def _poll(self) -> None:
    while not self.closed.wait(POLL):
      self._own()

  def _own(self) -> dict[str, float]:
    """Reads the sources; one that fails keeps its last value, and the training continues."""
    with self.lock:
      for source in self.sources:
        try:
          self.newest[source.name] = source.joules()
        except (OSError, ValueError) as error:
          self.newest.setdefault(source.name, 0.0)
          if source.name not in self.failed:
            log.warning('the energy that follows is not counted: %s', error)
          self.failed.add(source.name)
      return dict(self.newest)

  def parts(self) -> dict[str, float]:
    """Returns the joules of every source, over all starts."""
    own = self._own()
    names = dict.fromkeys([*self.before, *own])
    return {k: round(self.before.get(k, 0.0) + own.get(k, 0.0), 3) for k in names}

  def watts(self) -> float | None:
    """Returns the mean power since the last call; None where nothing is known."""
    (began, before), own, now = self.mark, self._own(), self.now()
    if now <= began or set(own) == {UNKNOWN}:
      return None
    self.mark = now, own
    return (sum(own.values()) - sum(before.values())) / (now - began)

  def close(self) -> None:
    """Ends the thread."""
    self.closed.set()


def text(facts: Mapping[str, Any]) -> str:
  """Formats the energy of a run as one line; see `train.energy.RunEnergy.facts`."""
  parts = [facts['source'] if facts['kwh'] is None else f'{facts["kwh"]:.4g} kWh']
  parts += [f'{v:.4g} J a {k.removeprefix("joules_per_")} in all'
            for k, v in facts.items() if k.startswith('joules_per_')]  # fmt: skip
  parts += [f'{facts[k]:.4g} {unit}' for k, unit in UNITS.items() if facts[k] is not None]
  if facts['kwh'] is not None:
    parts.append(facts['source'])
  return '; '.join(parts)


def achieved(facts: Mapping[str, Any], seconds: float) -> str:
  """Formats what a run took beside its forecast; '' without one."""
  made = facts['forecast']
  if not made:
    return ''
  parts = [f'{seconds / made["seconds"]:.2f} of the time']
  if facts['kwh'] is not None and made.get('kwh'):
    parts.append(f'{facts["kwh"] / made["kwh"]:.2f} of the energy')
  if facts['usd'] is not None and made.get('usd'):
    parts.append(f'{facts["usd"] / made["usd"]:.2f} of the money')
  return f'{", ".join(parts)} that step {made["step"]:,.0f} forecast'
