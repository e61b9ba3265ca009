"""What an earlier version wrote is read by this one: see tests/fixtures/README.md."""

import json
import pathlib
import shutil

import jax
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core import tree
from bmx.train import loop
from bmx.train.run import restored
from bmx.train.rundir import read_config

RUNS = sorted((pathlib.Path(__file__).parent.parent / 'fixtures').glob('run-*'))


def build(workdir, *overrides):
  config = recipes.from_plain(read_config(workdir)['config'])
  recipes.apply(config, overrides)
  return experiment.build(config, 'old', jax.devices()[:1])


@pytest.mark.parametrize('run', RUNS, ids=lambda p: p.name)
def test_an_old_run_is_restored_and_goes_on(run, tmp_path):
  shutil.copytree(run, tmp_path / 'run')
  old = json.loads((run / 'summary.json').read_text())
  state, step = restored(build(run), tmp_path / 'run', 'latest')
  assert step == old['steps']
  assert tree.digest(state) == old['state_digest']
  summary = loop.run(build(run, 'steps=30'), tmp_path / 'run')
  assert summary['steps'] == 30
