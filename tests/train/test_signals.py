"""Runs that are asked to stop, once or twice, and runs that hang."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bmx.data.arrays import ArrayData
from tests.conftest import ROOT

LONG = ['steps=200000', 'every.log=20', 'every.eval=0', 'every.save=0']
BATCH = 64  # of the recipe
RECIPE = 'configs/digits_mlp.py:tiny'


def start(workdir, recipe=RECIPE, overrides=LONG):
  command = [sys.executable, '-m', 'bmx.main', f'--config={recipe}', f'--workdir={workdir}']
  command += [f'--config.{o}' for o in overrides]
  env = {**os.environ, 'PYTHONPATH': str(ROOT)}
  return subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)


def await_lines(process, workdir, count):
  path = workdir / 'metrics.jsonl'
  while process.poll() is None and not (path.exists() and path.read_text().count('\n') >= count):
    time.sleep(0.01)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_asks_to_run_again(number, tmp_path):
  process = start(tmp_path / 'run')
  await_lines(process, tmp_path / 'run', 4)
  process.send_signal(number)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 75, errors
  saved = max(int(p.parent.name) for p in (tmp_path / 'run').glob('checkpoints/*/manifest.json'))
  assert f'saved at step {saved};' in errors


class SlowData:
  """Examples whose rows take a while; from step 8 on they never come."""

  def __init__(self, inner):
    self.inner, self.size, self.metadata, self.spec = inner, inner.size, inner.metadata, inner.spec

  def rows(self, indices, positions):
    time.sleep(600 if positions[0] >= 8 * BATCH else 0.01)
    return self.inner.rows(indices, positions)


def slow():
  x = np.ones((BATCH, 8, 8, 1), np.float32)
  arrays = {'image': x, 'label': np.arange(BATCH, dtype=np.int32) % 10}
  return SlowData(ArrayData(arrays, {'num_classes': 10}))


STUCK = """
import runpy
def get_config(variant=''):
  c = runpy.run_path('configs/digits_mlp.py')['get_config']('tiny')
  c.data = {'call': 'tests.train.test_signals:slow'}
  c.eval = {}
  c.steps_per_call = 1
  return c
"""


@pytest.fixture
def stuck(tmp_path):
  (tmp_path / 'stuck.py').write_text(STUCK)
  return tmp_path / 'stuck.py'


def test_the_watchdog_shows_where_a_run_hangs(stuck, tmp_path):
  process = start(tmp_path / 'run', stuck, ['watchdog.seconds=8', 'every.log=1'])
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 77, errors
  assert 'no step has finished in 8 s' in errors
  assert errors.count('Thread 0x') > 1
  assert 'test_signals.py' in errors  # the line that sleeps


def test_a_second_interrupt_stops_at_once(stuck, tmp_path):
  """The first one waits for a step that never comes."""
  process = start(tmp_path / 'run', stuck, ['every.log=1'])
  await_lines(process, tmp_path / 'run', 5)
  for _ in range(2):
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
  _, errors = process.communicate(timeout=30)
  assert process.returncode == 130
  assert 'interrupt again to stop at once' in errors
