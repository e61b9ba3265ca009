"""Counters of energy on trees and modules that stand for machines, and sums over starts."""

import os
import pathlib
import time
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmx.runtime import energy

RANGE = 1000  # microjoules at which a counter of these trees wraps around


def zone(root, name, label, value, largest=RANGE):
  folder = root / name
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'name').write_text(f'{label}\n')
  (folder / 'energy_uj').write_text(f'{value}\n')
  (folder / 'max_energy_range_uj').write_text(f'{largest}\n')


def tree(root, value=0):
  """A machine of two packages, one with memory; the rest is part of them or a second view."""
  (root / 'intel-rapl').mkdir(parents=True)
  zone(root, 'intel-rapl:0', 'package-0', value)
  zone(root, 'intel-rapl:0:0', 'core', 7 * value)
  zone(root, 'intel-rapl:0:1', 'dram', value, 2 * RANGE)
  zone(root, 'intel-rapl:1', 'package-1', value)
  zone(root, 'intel-rapl:2', 'psys', 9 * value)
  zone(root, 'intel-rapl-mmio:0', 'package-0', value)
  return root


def add(root, name, microjoules):
  """Counts on as the hardware does: from the largest value to zero."""
  path, most = root / name / 'energy_uj', int((root / name / 'max_energy_range_uj').read_text())
  path.write_text(str((int(path.read_text()) + microjoules) % most))


def test_packages_and_memory_are_counted_once(tmp_path):
  root = tree(tmp_path / 'powercap', 100)
  found = energy.Rapl(root)
  assert found.joules() == 0
  used = {'intel-rapl:0': 30, 'intel-rapl:0:0': 20, 'intel-rapl:0:1': 5, 'intel-rapl:1': 7,
          'intel-rapl:2': 60, 'intel-rapl-mmio:0': 30}  # fmt: skip
  for name, more in used.items():
    add(root, name, more)
  assert found.joules() == pytest.approx(42e-6)
  assert 'package-0, dram, package-1' in found.text


@settings(max_examples=30, deadline=None)
@given(
  start=st.integers(0, RANGE - 1), more=st.lists(st.integers(0, RANGE - 1), min_size=1, max_size=9)
)
def test_a_counter_that_wraps_around(tmp_path_factory, start, more):
  root = tmp_path_factory.mktemp('powercap')
  zone(root, 'intel-rapl:0', 'package-0', start)
  found = energy.Rapl(root)
  for i, step in enumerate(more, 1):
    add(root, 'intel-rapl:0', step)
    assert found.joules() == pytest.approx(sum(more[:i]) / 1e6)


def test_machines_without_counters_say_why(tmp_path, monkeypatch):
  assert energy.rapl(tmp_path / 'nothing')[0] is None
  assert 'has no counter' in energy.rapl(tmp_path)[1]
  root = tree(tmp_path / 'powercap')
  (root / 'intel-rapl:0/energy_uj').write_text('none')
  assert 'RAPL is absent' in energy.rapl(root)[1]
  read = pathlib.Path.read_text

  def refuse(path, *args, **kwargs):
    if path.name == 'energy_uj':
      raise PermissionError(13, 'Permission denied')
    return read(path, *args, **kwargs)

  monkeypatch.setattr(pathlib.Path, 'read_text', refuse)
  found, why = energy.rapl(root)
  assert found is None
  assert why == f'RAPL cannot be read: {root}/*/energy_uj is for root'


def test_a_long_window_reads_a_counter_in_between(tmp_path, monkeypatch):
  """Twice around between two log lines: a thread has seen the first time."""
  root = tmp_path / 'powercap'
  zone(root, 'intel-rapl:0', 'package-0', 0)
  monkeypatch.setattr(energy, 'POLL', 0.01)
  source = energy.Rapl(root)
  found = energy.Energy([source])
  for _ in range(4):
    add(root, 'intel-rapl:0', 600)
    before = source.sum
    while source.sum == before:
      time.sleep(0.005)
  assert found.parts() == {'RAPL': round(2400e-6, 3)}
  assert source.sum == 2400
  found.close()


class NVMLError(Exception):
  pass


def boards(millijoules):
  """A module like pynvml, of boards with counters."""

  def total(handle):
    if millijoules[handle] is None:
      raise NVMLError('Not Supported')
    return millijoules[handle]

  return types.SimpleNamespace(
    NVMLError=NVMLError,
    nvmlInit=lambda: None,
    nvmlDeviceGetHandleByIndex=lambda i: list(millijoules)[i],
    nvmlDeviceGetHandleByUUID=lambda name: name.decode(),
    nvmlDeviceGetTotalEnergyConsumption=total,
  )


@pytest.mark.parametrize(
  ('visible', 'ordinals', 'expected'),
  [('', [0, 1], 3.0), ('2,0', [0], 4.0), ('GPU-b', [0], 2.0), ('GPU-b,GPU-c', [1], 4.0)],
)
def test_boards_that_the_process_sees(visible, ordinals, expected):
  counted = {'GPU-a': 5000, 'GPU-b': 6000, 'GPU-c': 7000}
  found = energy.Nvml(ordinals, boards(counted), visible)
  counted.update({'GPU-a': 6000, 'GPU-b': 8000, 'GPU-c': 11_000})
  assert found.joules() == pytest.approx(expected)


def test_boards_of_all_processes_are_taken_to_use_as_much():
  counted = {'GPU-a': 0, 'GPU-b': 0}
  found = energy.Nvml([0, 1], boards(counted), times=4)
  counted['GPU-a'] = 1000
  assert found.joules() == pytest.approx(4)
  assert found.text == 'NVML of 2 boards, times 4 for all processes'


def test_boards_without_a_counter():
  with pytest.raises(OSError, match='Not Supported'):
    energy.Nvml([0], boards({'GPU-a': None}))
  with pytest.raises(OSError, match='lacks a device'):
    energy.Nvml([1], boards({'GPU-a': 0}), 'GPU-a')


@pytest.mark.skipif(os.path.exists('/dev/nvidia0'), reason='this machine has a board')
def test_the_library_without_a_board():
  pytest.importorskip('pynvml', reason='the extra `energy` is not installed')
  found, why = energy.nvml([0])
  assert found is None
  assert why == 'NVML: NVML Shared Library Not Found'


class Given:
  name, text, wraps = 'RAPL', 'given', False

  def __init__(self):
    self.value: float | None = 0.0

  def joules(self):
    if self.value is None:
      raise OSError('gone')
    return self.value


def test_sums_over_starts_and_a_counter_that_is_lost(caplog):
  source, clock = Given(), iter([0.0, 10.0, 12.0])
  found = energy.Energy([source], {'RAPL': 100.0, 'estimate': 3.0}, now=lambda: next(clock))
  source.value = 50.0
  assert found.watts() == pytest.approx(5)
  assert found.parts() == {'RAPL': 150.0, 'estimate': 3.0}
  source.value = None
  assert found.watts() == 0
  assert found.parts() == {'RAPL': 150.0, 'estimate': 3.0}
  assert [r.getMessage() for r in caplog.records] == [
    'the energy that follows is not counted: gone'
  ]
  found.close()
