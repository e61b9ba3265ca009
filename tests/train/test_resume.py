"""Killed and started again is never stopped: the same state to the last bit, the same metrics.

Real processes, SIGKILL, at a step drawn by a fixed seed and in the middle of a save.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from bmx.runtime.writer import TIMES, read_metrics
from tests.conftest import CACHE, FLAGS, ROOT

EIGHT = {
  'digits_mlp': ['mesh.fsdp=2'],
  'mnist_cnn': ['mesh.fsdp=2'],
  'gpt_char': ['mesh.fsdp=2', 'mesh.model=2'],
}
MORE = {
  'digits_mlp': ['steps=1500', 'every.log=25', 'every.eval=250', 'every.save=150', 'ema=0.99'],
  'mnist_cnn': ['steps=60', 'every.log=3', 'every.eval=20', 'every.save=8'],
  'gpt_char': ['steps=50', 'every.log=3', 'every.save=8', 'task.model.dropout=0.1',
               'data.path=LICENSE'],
}  # fmt: skip
NIGHTLY = pytest.mark.nightly


class Run:
  """A run that can be started, killed and started again."""

  def __init__(self, recipe: str, devices: int, folder: pathlib.Path):
    overrides = MORE[recipe] + (EIGHT[recipe] if devices == 8 else [])
    self.workdir = folder / 'run'
    self.command = [sys.executable, '-m', 'bmx.main', f'--config=configs/{recipe}.py:tiny']
    # A cache of its own: a killed process may leave a torn entry, which the next one deletes.
    overrides = [*overrides, f'cache={CACHE / "resume"}']
    self.command += [f'--config.{o}' for o in overrides] + [f'--workdir={self.workdir}']
    self.env = {**os.environ, 'XLA_FLAGS': FLAGS.replace('count=8', f'count={devices}')}

  def start(self) -> subprocess.Popen:
    return subprocess.Popen(self.command, cwd=ROOT, env=self.env, stderr=subprocess.PIPE, text=True)

  def finish(self) -> dict:
    process = self.start()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads((self.workdir / 'summary.json').read_text())

  def kill(self, when) -> bool:
    """SIGKILL as soon as `when` holds -> whether it came before the end."""
    process = self.start()
    while process.poll() is None and not when():
      time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL

  def lines(self) -> list[dict]:
    lines = read_metrics(self.workdir / 'metrics.jsonl')
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]

  def saving(self) -> bool:
    return any(self.workdir.glob('checkpoints/*orbax-checkpoint-tmp*'))

  def logged(self, count: int):
    path = self.workdir / 'metrics.jsonl'
    return lambda: path.exists() and path.read_bytes().count(b'\n') >= count


# Every model, and one and eight devices, at every push; the other pairs at night.
@pytest.mark.parametrize(('recipe', 'devices'), [
  pytest.param('digits_mlp', 1, marks=NIGHTLY),  # `mnist_cnn` has statistics besides
  ('mnist_cnn', 1),
  ('gpt_char', 8),
  pytest.param('digits_mlp', 8, marks=NIGHTLY),
  pytest.param('mnist_cnn', 8, marks=NIGHTLY),
  pytest.param('gpt_char', 1, marks=NIGHTLY),
])  # fmt: skip
def test_killed_equals_uninterrupted(recipe, devices, tmp_path):
  straight = Run(recipe, devices, tmp_path / 'straight')
  expected = straight.finish()
  killed = Run(recipe, devices, tmp_path / 'killed')
  count = random.Random(f'{recipe} {devices}').randint(4, len(straight.lines()) - 4)
  assert killed.kill(killed.logged(count)), 'it ended before it was killed'
  killed.kill(killed.saving)
  summary = killed.finish()
  assert summary['state_digest'] == expected['state_digest']
  assert killed.lines() == straight.lines()
  assert summary['metrics'] == expected['metrics']
