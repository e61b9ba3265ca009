"""Runs whose directory is in an object store without rename, append, flock and folders."""

import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment as experiments
from bmx.core.errors import InputError
from bmx.core.events import Hook
from bmx.main import main
from bmx.runtime import locks
from bmx.runtime.storage import place
from bmx.runtime.writer import TIMES, read_metrics
from bmx.train import loop, manifest
from tests.conftest import ROOT

DIGITS = str(ROOT / 'configs/digits_mlp.py:tiny')
WORDS = ('steps=12', 'every.save=4', 'every.eval=6', 'every.log=2')


@pytest.fixture(autouse=True)
def quick_leases(monkeypatch):
  monkeypatch.setattr(locks, 'RENEW', 0.1)
  monkeypatch.setattr(locks, 'STALE', 0.4)


def train(workdir, *overrides, hooks=None):
  config, name = recipes.load(DIGITS, [*WORDS, *overrides])
  return loop.run(experiments.build(config, name), workdir, hooks)


def lines(workdir):
  """The lines of metrics.jsonl without times."""
  found = read_metrics(workdir / 'metrics.jsonl')
  return [{k: v for k, v in line.items() if k not in TIMES} for line in found]


@pytest.fixture(scope='module')
def local(tmp_path_factory):
  """A run on this machine: what every other one is compared with."""
  workdir = tmp_path_factory.mktemp('local') / 'run'
  return train(workdir), workdir


@pytest.fixture(scope='module')
def cloud(gcs):
  """A run in the store, with every state that the store had: what a SIGKILL could leave."""
  gcs.history = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(locks, 'RENEW', 60.0)
    summary = train('gs://runs/whole')
  history, gcs.history = gcs.history, None
  return summary, place('gs://runs/whole'), history


def same(found, want):
  """Whether two runs are the same, bit by bit."""
  (summary, workdir), (expected, folder) = found, want
  assert summary['state_digest'] == expected['state_digest']
  assert summary['metrics'] == expected['metrics']
  assert lines(workdir) == lines(folder)


def test_a_run_is_that_of_this_machine(cloud, local, gcs):
  summary, workdir, _ = cloud
  same((summary, workdir), local)
  there = {p.name for p in workdir.iterdir()}
  assert there == {p.name for p in local[1].iterdir()} - {'lock'}  # the lease is given back
  steps = [{p.name for p in (w / 'checkpoints').iterdir()} for w in (workdir, local[1])]
  assert steps[0] == steps[1]
  for step in ('8', '12'):
    assert manifest.damage(workdir / 'checkpoints' / step) == []
    assert (manifest.read(workdir / 'checkpoints' / step)['leaves']
            == manifest.read(local[1] / 'checkpoints' / step)['leaves'])  # fmt: skip
  assert (workdir / 'report.html').read_text().startswith('<!doctype html>')
  assert not gcs.refused
  assert train(str(workdir))['state_digest'] == summary['state_digest']  # finished: nothing to do


def resumed(gcs, state, bucket):
  """A run that continues from a state of the store, in a bucket of its own."""
  with gcs.lock:
    gcs.objects |= {(bucket, name): v for (b, name), v in state.items() if b == 'runs'}
  workdir = f'gs://{bucket}/whole'
  return train(workdir), place(workdir)


def spread(history, count):
  """`count` of the states, the first and the last but one among them."""
  return [history[i] for i in np.linspace(0, len(history) - 2, count).astype(int)]


def test_after_a_kill_no_line_is_lost_or_doubled(cloud, local, gcs):
  for number, state in enumerate(spread(cloud[2], 4)):
    same(resumed(gcs, state, f'kill-{number}'), local)


@pytest.mark.nightly
def test_after_a_kill_at_every_write(cloud, local, gcs):
  for number, state in enumerate(cloud[2]):
    same(resumed(gcs, state, f'every-{number}'), local)


def test_a_second_trainer_is_refused(cloud, gcs, capsys):
  """While the first one trains: exit code 2 and the holder's name."""
  codes = []

  def second(event):
    codes.append(main([f'--config={DIGITS}', '--workdir=gs://runs/locked', *flags()]))

  train('gs://runs/locked', 'steps=4', hooks={'second': Hook(4, second)})
  assert codes == [2]
  assert 'another process trains here (process ' in capsys.readouterr().err


def flags(*more):
  return [f'--config.{word}' for word in (*WORDS, *more)]


def test_modes(cloud, local, gcs, tmp_path, monkeypatch):
  """Evaluation, predictions of a file in the store, and a run that begins with these weights."""
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  np.savez(tmp_path / 'x.npz', image=np.ones((5, 8, 8, 1), np.float32))
  place('gs://runs/data/x.npz').write_bytes((tmp_path / 'x.npz').read_bytes())
  said = {}
  for workdir, file in (
    (cloud[1], 'gs://runs/data/x.npz'),
    (local[1], tmp_path / 'x.npz'),
  ):
    assert main(['--mode=eval', f'--workdir={workdir}', '--step=8']) == 0
    assert main(['--mode=predict', f'--workdir={workdir}', f'--input={file}']) == 0
    said[workdir] = [
      (workdir / name).read_text() for name in ('evaluation.8.json', 'predictions/x.12.jsonl')
    ]
  assert said[cloud[1]] == said[local[1]]
  first = [train(tmp_path / name, f'init.path={where[1]}')['state_digest']
           for name, where in (('a', cloud), ('b', local))]  # fmt: skip
  assert first[0] == first[1]


def test_what_is_damaged_or_of_others_is_refused(cloud, gcs):
  with gcs.lock:
    copy = {('bad', k[1]): v for k, v in gcs.objects.items() if k[0] == 'runs'}
    gcs.objects |= copy
  name = next(n for n in gcs.names('bad') if '/checkpoints/12/d/' in n)
  gcs.put('bad', name, b'changed')
  assert main(['--mode=eval', '--workdir=gs://bad/whole']) == 2
  assert train('gs://bad/whole', 'steps=14')['steps'] == 14  # from step 8
  gcs.put('bad', 'notes/mine.txt', b'x')
  with pytest.raises(InputError, match='expected a new directory or a run of bmx, found mine.txt'):
    train('gs://bad/notes')
  gcs.put('bad', 'named/checkpoints/7/mine.txt', b'x')
  with pytest.raises(InputError, match='expected a checkpoint of bmx'):
    train('gs://bad/named')
