"""Seams through whole runs, by the command line: adapters on a run's weights, a teacher."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from bmx.runtime.writer import TIMES, read_metrics
from tests.conftest import CACHE, ROOT

TINY = """
from bmx.config import load

def get_config(variant=''):
  c, _ = load('gpt_char:tiny')
  inner = c.task.to_dict()
  c.task = {'call': 'tests.seams.wrappers:LoRA', 'rank': 2, 'inner': inner}
  c.schedule.peak = 5e-3
  c.every.save = 4
  c.every.log = 4
  return c
"""
DISTILLED = """
from bmx.config import load

def get_config(variant=''):
  c, _ = load('gpt_char:tiny')
  inner = c.task.to_dict()
  c.task = {'call': 'tests.seams.wrappers:Distill', 'inner': inner, 'teacher': c.task.to_dict()}
  c.init.teacher = ''
  return c
"""


def lines(workdir: pathlib.Path) -> list[dict]:
  return [{k: v for k, v in line.items() if k not in TIMES}
          for line in read_metrics(workdir / 'metrics.jsonl')]  # fmt: skip


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A run whose weights others start from."""
  folder = tmp_path_factory.mktemp('base')
  command = [sys.executable, '-m', 'bmx.main', '--config=gpt_char:tiny', '--config.steps=30']
  subprocess.run([*command, f'--workdir={folder}/run', '--config.mesh.data=1'], cwd=ROOT,
                 check=True, capture_output=True, env=environment(1))  # fmt: skip
  return folder / 'run'


def environment(devices: int) -> dict[str, str]:
  import os

  from tests.conftest import FLAGS

  flags = FLAGS.replace('count=8', f'count={devices}')
  return {**os.environ, 'XLA_FLAGS': flags, 'XDG_CACHE_HOME': str(CACHE)}


def command(recipe: pathlib.Path, workdir: pathlib.Path, *words: str) -> list[str]:
  start = [sys.executable, '-m', 'bmx.main', f'--config={recipe}', f'--workdir={workdir}']
  return [*start, *(f'--config.{w}' for w in words)]


def finished(arguments: list[str], devices: int = 1) -> subprocess.CompletedProcess:
  done = subprocess.run(arguments, cwd=ROOT, env=environment(devices), capture_output=True,
                        text=True, timeout=300)  # fmt: skip
  assert done.returncode == 0, done.stderr
  return done


@pytest.fixture
def recipe(tmp_path):
  path = tmp_path / 'adapters.py'
  path.write_text(TINY)
  return path


@pytest.mark.nightly  # tests/adapt/test_adapter_runs.py and test_compose.py test it of bmx's own
def test_adapters_of_a_run_train_resume_and_generate(recipe, base, tmp_path, bmx):
  words = [f'init.path={base}', 'steps=16', 'mesh.data=1']
  finished(command(recipe, tmp_path / 'straight', *words))
  summary = json.loads((tmp_path / 'straight/summary.json').read_text())
  before = json.loads((base / 'summary.json').read_text())['metrics']['eval/valid/loss']
  assert summary['metrics']['eval/valid/loss'] < before
  # The checkpoints do not hold the base, which is kept once beside them.
  leaves = json.loads((tmp_path / 'straight/checkpoints/16/manifest.json').read_text())['leaves']
  assert not [k for k in leaves if 'frozen' in k]
  assert {k for k in leaves if k.startswith('params/')} == {
    f'params/stack/blocks/attention/{n}/kernel/{m}' for n in ('query', 'value') for m in 'ab'
  }
  assert (tmp_path / 'straight/constants/frozen/manifest.json').is_file()

  killed = command(recipe, tmp_path / 'killed', *words)
  process = subprocess.Popen(killed, cwd=ROOT, env=environment(1), stderr=subprocess.DEVNULL)
  deadline = time.monotonic() + 120
  while not list((tmp_path / 'killed').glob('checkpoints/4/manifest.json')):
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.wait()
  finished(killed)
  again = json.loads((tmp_path / 'killed/summary.json').read_text())
  assert again['state_digest'] == summary['state_digest']
  assert lines(tmp_path / 'killed') == lines(tmp_path / 'straight')

  shown = bmx(f'--workdir={tmp_path}/straight', '--mode=generate', '--prompt=def ', '--allow=tests',
              '--config.generate.max_new_tokens=5', '--config.generate.temperature=0')  # fmt: skip
  assert shown.returncode == 0, shown.stderr
  assert shown.stdout.startswith('def ')


@pytest.mark.nightly  # adapt/ and compress/ test the same of what bmx has
def test_eight_devices_train_the_same_adapters(recipe, base, tmp_path):
  words = [f'init.path={base}', 'steps=6', 'every.log=1']
  finished(command(recipe, tmp_path / 'one', *words, 'mesh.data=1'))
  finished(command(recipe, tmp_path / 'eight', *words, 'mesh.fsdp=2', 'mesh.model=2'), 8)
  one, eight = ([x['loss'] for x in lines(tmp_path / n) if 'loss' in x] for n in ('one', 'eight'))
  assert one == pytest.approx(eight, rel=1e-5)


@pytest.mark.nightly  # adapt/ and compress/ test the same of what bmx has
def test_a_changed_base_is_refused(recipe, base, tmp_path):
  words = [f'init.path={base}', 'steps=4', 'mesh.data=1']
  finished(command(recipe, tmp_path / 'run', *words))
  manifest = tmp_path / 'run/constants/frozen/manifest.json'
  stored = json.loads(manifest.read_text())
  file = next(p for p in (tmp_path / 'run/constants/frozen').rglob('*') if (p.is_file()
              and p.name in stored['files']) or str(p.relative_to(manifest.parent))
              in stored['files'])  # fmt: skip
  file.write_bytes(file.read_bytes() + b'x')
  more = command(recipe, tmp_path / 'run', *words[:1], 'steps=8', 'mesh.data=1')
  done = subprocess.run(more, cwd=ROOT, env=environment(1), capture_output=True, text=True)
  assert done.returncode == 2
  assert 'constants/frozen' in done.stderr and 'damaged' in done.stderr


@pytest.mark.nightly  # adapt/ and compress/ test the same of what bmx has
def test_a_teacher_has_its_own_folder(base, tmp_path):
  recipe = tmp_path / 'distilled.py'
  recipe.write_text(DISTILLED)
  words = ['steps=6', 'every.log=2', 'mesh.data=1', f'init.teacher={base}']
  finished(command(recipe, tmp_path / 'run', *words))
  kl = [line['kl'] for line in lines(tmp_path / 'run') if 'kl' in line]
  assert kl[-1] < kl[0]
  assert (tmp_path / 'run/constants/teacher/manifest.json').is_file()
  lost = subprocess.run(command(recipe, tmp_path / 'other', 'mesh.data=1'), cwd=ROOT,
                        env=environment(1), capture_output=True, text=True)  # fmt: skip
  assert lost.returncode == 2 and 'init.teacher' in lost.stderr


@pytest.mark.compile
def test_adapters_are_planned(recipe, bmx, tmp_path):
  done = bmx(f'--config={recipe}', '--mode=plan', '--topology=h200:8', '--config.mesh.fsdp=4',
             f'--output={tmp_path}')  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert 'peak_gib' in done.stderr
