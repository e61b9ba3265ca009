"""Benchmark scripts at a size for any CPU: they must run when they are needed."""

import json
import os
import runpy
import subprocess
import sys

import jax
import pytest

from bmx import config as recipes
from bmx import experiment
from tests.conftest import CACHE, FLAGS, ROOT


@pytest.mark.nightly  # five processes for a script of machines that have a GPU
@pytest.mark.parametrize('name', ['small GPT-2', 'small Llama'])
def test_gpu_script_runs(name):
  command = [sys.executable, 'experiments/bench/gpu.py', '--small', name]
  env = {**os.environ, 'XLA_FLAGS': FLAGS.replace('count=8', 'count=1')}
  env['JAX_COMPILATION_CACHE_DIR'] = str(CACHE)
  env['TORCH_COMPILE_DISABLE'] = '1'  # a minute of g++, which is not under test
  said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
  assert not said.returncode, said.stderr
  results = json.loads(said.stdout[said.stdout.index('{') :])
  ours = results[name]['bmx']
  assert ours['tokens_per_second'] > 0
  assert ours['losses'][-1] < 6  # log 256 = 5.5
  assert {'compile_seconds', 'peak_memory_bytes', 'data_wait_fraction'} <= ours.keys()
  assert results['matmul']['64'] > 0
  assert all(rate > 0 for rates in results['attention'].values() for rate in rates.values())
  # bfloat16, with 8 bits, against float32.
  assert all(0 < error < 0.02 for error in results['attention_error'].values())


def test_the_loop_beside_its_bare_program():
  script = runpy.run_path(str(ROOT / 'experiments/bench/loop.py'))
  found = script['ratio']('digits_mlp.py:tiny', ['epochs=0.0'], 20, 4)
  assert len(found['framework/bare']) == 3
  assert min(found['framework/bare']) > 0
  assert found['steps_a_dispatch'] == 20
  shares = script['shares']('digits_mlp.py:tiny', [])
  assert 0 < shares['save_stall'] < 1
  assert 0 <= shares['data_wait'] <= 1


@pytest.mark.parametrize('count', [pytest.param(1, marks=pytest.mark.nightly), 3])
def test_the_guard_holds_no_second_state(count):
  """Compiled memory with and without it; a guard that selects on the new state needs more."""
  script = runpy.run_path(str(ROOT / 'experiments/bench/guard.py'))
  overrides = [*script['ONE_ROW'], 'task.model.depth=1', 'task.model.scan=False']
  config, _ = recipes.load(str(ROOT / 'configs/gpt_char.py:tiny'), overrides)
  x = experiment.build(config, devices=jax.devices()[:1])
  extra = script['extra_memory'](x, count)['extra_over_state']
  assert extra['guarded'] < 0.02
  assert extra['selecting'] > 0.3
