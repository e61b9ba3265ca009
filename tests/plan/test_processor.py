"""This CPU as hardware, and a plan whose step runs on it."""

import itertools
import json
import os

import jax
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core.errors import InputError
from bmx.modes import Request
from bmx.modes import plan as mode
from bmx.plan import processor, topology
from bmx.plan.compile import compile_step
from tests.conftest import ROOT

MLP = str(ROOT / 'configs/digits_mlp.py:tiny')


def test_peaks_come_from_the_clock(monkeypatch):
  """A clock of one second a reading: a product of side n has 2 n³ FLOP/s, a copy two arrays."""
  monkeypatch.setattr(processor, 'SIDES', (16, 32))
  monkeypatch.setattr(processor, 'LARGE', 1000)
  clock = itertools.count().__next__
  chip = processor.this_cpu(clock)
  assert chip.float32 == chip.flops == 2 * 32**3
  assert chip.bandwidth == 2 * 4000
  pages = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
  assert chip.memory == pages
  assert chip.usable < chip.memory
  assert 0 < chip.efficiency < 1


def test_a_step_runs_and_its_state_advances():
  """The program of a plan trains: its steps change the state that the next call gets."""
  config, name = recipes.load(MLP, ['mesh.data=1'])
  x = experiment.build(config, name, topology.devices('cpu'), read=False)
  made = compile_step(x)
  seen = []

  def program(state, batch, secret):
    seen.append(int(state.step))
    assert np.all(np.asarray(batch['weights']) == 1)
    return made.program(state, batch, secret)

  clock = itertools.count().__next__
  assert processor.step_seconds(x, program, clock) == 1
  assert seen == list(range(len(seen)))
  assert len(seen) > processor.STEPS
  sizes = made.program.memory_analysis()
  assert made.peak >= sizes.argument_size_in_bytes + sizes.temp_size_in_bytes


def test_a_plan_for_this_machine(tmp_path, monkeypatch, capsys):
  """The measured time replaces the likely one; the next plan measures it anew."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  runs = []

  def step_seconds(x, program):
    runs.append(x)
    return 0.25 * len(runs)

  monkeypatch.setattr(processor, 'step_seconds', step_seconds)
  monkeypatch.setattr(processor, 'SIDES', (64,))
  words = ('steps=7200', 'plan.watts=cpu=100', 'plan.prices=cpu=2')
  for times in (1, 2):
    config, name = recipes.load(MLP, list(words))
    request = Request(
      config, name, recipe=MLP, overrides=words, topology='cpu', output=str(tmp_path / 'out')
    )
    assert mode.run(request) == 0
    answer = json.loads((tmp_path / 'out/plan.json').read_text())['answer']
    assert answer['measured']['step_seconds'] == pytest.approx(0.25 * times)
    assert answer['measured']['hours'] == pytest.approx(0.5 * times)
    assert answer['assumed']['usd'] == pytest.approx(times)
    assert answer['assumed']['kwh'] == pytest.approx(0.05 * times)
    assert 'likely' not in answer
  assert len(runs) == 2
  printed = capsys.readouterr().err
  assert 'step s (measured)' in printed
  assert 'ran on this machine' in printed
  planned, _ = recipes.load(str(tmp_path / 'out/planned.py'))
  assert experiment.build(planned, devices=jax.devices()[:1], read=False).steps == 7200


def test_other_names():
  with pytest.raises(InputError, match='cpu is this machine'):
    topology.devices('cpu:4')
