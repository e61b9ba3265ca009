"""Several processes of one run, on this machine, through jax.distributed."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from bmx.runtime.writer import TIMES, read_metrics
from experiments.soak.peers import free_port
from tests.conftest import FLAGS, ROOT

RECIPE = 'configs/gpt_char.py:tiny'
MORE = ['steps=40', 'every.save=10', 'every.log=5', 'task.model.dropout=0.1', 'data.path=LICENSE']


def launch(workdir, processes, devices, overrides=(), own=None, flags=()):
  """Starts all processes of a run, some with overrides of their `own`, on `devices` in all."""
  address = f'localhost:{free_port()}'
  xla = FLAGS.replace('count=8', f'count={devices // processes}')
  command = [sys.executable, '-m', 'bmx.main', f'--config={RECIPE}', f'--workdir={workdir}']
  command += [f'--config.{o}' for o in (*MORE, *overrides)]
  command += [f'--config.cache={workdir.parent / "programs"}']
  if processes > 1:
    command += [f'--processes={processes}', f'--coordinator={address}']
  command += flags
  more = lambda i: [f'--config.{o}' for o in (own or {}).get(i, ())]
  return [
    subprocess.Popen(
      [*command, *more(i), f'--process={i}'], cwd=ROOT, env={**os.environ, 'XLA_FLAGS': xla},
      stderr=subprocess.PIPE, text=True,
    )
    for i in range(processes)
  ]  # fmt: skip


def finish(running, code=0):
  """Waits for all -> their stderr."""
  texts = [process.communicate(timeout=240)[1] for process in running]
  assert [p.returncode for p in running] == [code] * len(running), texts
  return texts


def losses(workdir):
  return [line['loss'] for line in read_metrics(workdir / 'metrics.jsonl') if 'loss' in line]


def summary(workdir):
  return json.loads((workdir / 'summary.json').read_text())


def logged(workdir, count):
  path = workdir / 'metrics.jsonl'
  return path.exists() and path.read_text().count('\n') >= count


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  """One process with four devices."""
  workdir = tmp_path_factory.mktemp('alone') / 'run'
  finish(launch(workdir, 1, 4, ['mesh.fsdp=2']))
  return workdir


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """The same run on two processes."""
  workdir = tmp_path_factory.mktemp('two') / 'run'
  finish(launch(workdir, 2, 4, ['mesh.fsdp=2']))
  return workdir


def assert_equal_one(workdir, alone, processes):
  np.testing.assert_allclose(losses(workdir), losses(alone), rtol=1e-5)
  # Process 0 alone writes metrics; the others have logs of their own.
  logs = {p.name for p in (workdir / 'logs').iterdir()}
  libraries = {'libraries.log', *(f'libraries.{i}.log' for i in range(1, processes))}
  assert logs - libraries == {f'{i}.log' for i in range(1, processes)}


def test_two_processes_equal_one(two, alone):
  assert_equal_one(two, alone, 2)


@pytest.mark.nightly
def test_two_processes_predict_and_evaluate_as_one(two):
  results = []
  for processes in (1, 2):
    for mode in ('predict', 'eval'):
      finish(launch(two, processes, 4, ['mesh.fsdp=2'], flags=[f'--mode={mode}']))
    results.append((two / 'predictions.jsonl').read_text().splitlines())
    results.append(json.loads((two / 'evaluation.40.json').read_text())['metrics'])
  assert len(results[0]) == len(results[2]) > 0
  assert results[3] == pytest.approx(results[1], rel=1e-5)


@pytest.mark.nightly
def test_four_processes_equal_one(alone, tmp_path):
  finish(launch(tmp_path / 'run', 4, 4, ['mesh.fsdp=2']))
  assert_equal_one(tmp_path / 'run', alone, 4)


def test_a_lost_process_is_named_and_the_run_goes_on(two, tmp_path):
  """One of two is killed: the other stops by itself; started again, it ends with the same bits."""
  killed = tmp_path / 'run'
  running = launch(killed, 2, 4, ['mesh.fsdp=2'])
  while not logged(killed, 3) and running[0].poll() is None:
    time.sleep(0.01)
  running[1].send_signal(signal.SIGKILL)
  began = time.monotonic()
  _, text = running[0].communicate(timeout=60)
  assert time.monotonic() - began < 30
  assert running[0].returncode == 78
  assert 'process 1 is missing' in text
  running[1].communicate()
  finish(launch(killed, 2, 4, ['mesh.fsdp=2']))
  assert summary(killed)['state_digest'] == summary(two)['state_digest']
  strip = lambda line: {k: v for k, v in line.items() if k not in TIMES}
  lines = [[strip(x) for x in read_metrics(w / 'metrics.jsonl')] for w in (killed, two)]
  assert lines[0] == lines[1]


def test_a_difference_is_named_before_jax_starts(tmp_path):
  running = launch(tmp_path / 'run', 2, 4, own={0: ['seed=1'], 1: ['seed=2', 'batch_size=32']})
  texts = finish(running, code=2)
  for text in texts:
    assert 'config.batch_size: 16 on process 0, 32 on process 1' in text
    assert 'config.seed: 1 on process 0, 2 on process 1' in text
  assert not list((tmp_path / 'run').iterdir())


def test_sigterm_stops_all_at_one_step_and_another_number_resumes(tmp_path):
  workdir = tmp_path / 'run'
  running = launch(workdir, 2, 4, ['steps=20000', 'mesh.fsdp=2'])
  while not logged(workdir, 5) and running[0].poll() is None:
    time.sleep(0.01)
  running[1].send_signal(signal.SIGTERM)
  texts = finish(running, code=75)
  saved = int(re.search(r'saved at step (\d+)', texts[0])[1])
  steps = saved // 10 * 10 + 20
  finish(launch(workdir, 1, 4, ['mesh.fsdp=2', f'steps={steps}']))
  logged_at = [line['step'] for line in read_metrics(workdir / 'metrics.jsonl') if 'loss' in line]
  assert logged_at == list(range(5, steps + 1, 5))
  assert summary(workdir)['steps'] == steps


def test_several_processes_need_a_workdir(bmx):
  result = bmx(f'--config={RECIPE}', '--processes=2')
  assert result.returncode == 2
  assert 'needs --workdir' in result.stderr
