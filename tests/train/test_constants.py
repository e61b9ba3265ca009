"""Constant collections: once per run, never in checkpoints, and never another run's."""

import json
import shutil

import jax
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.train import loop
from bmx.train.manifest import MANIFEST
from bmx.train.run import restored
from tests.conftest import ROOT

STEPS = ['steps=20', 'every.log=5', 'every.eval=0', 'every.save=10', 'task.inner.model.dropout=0.0']


def build(devices=1, *overrides):
  """Adapters over a frozen base that is drawn anew by `seed`."""
  config, name = recipes.load(str(ROOT / 'configs/gpt_char.py:tiny'), [])
  with config.unlocked():
    config.task = {'call': 'tests.seams.wrappers:LoRA', 'inner': config.task}
  config.eval = {}
  recipes.apply(config, [*STEPS, *overrides])
  if devices > 1:
    config.mesh.fsdp = 2
  return experiment.build(config, name, jax.devices()[:devices])


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """A run of 20 steps and its summary."""
  workdir = tmp_path_factory.mktemp('adapters') / 'run'
  return workdir, loop.run(build(), workdir)


def test_checkpoints_hold_the_digest_and_not_the_arrays(trained):
  workdir, summary = trained
  facts = json.loads((workdir / 'checkpoints/20' / MANIFEST).read_text())
  assert not [name for name in facts['leaves'] if 'frozen' in name]
  state, _ = restored(build(), workdir, 'latest')
  assert tree.digest(state) == summary['state_digest']  # of the whole state
  assert facts['constants'] == {'frozen': tree.digest(state.collections['frozen'])}
  assert sorted(p.name for p in (workdir / 'constants').iterdir()) == ['frozen']


def test_a_resumed_run_merges_them(trained, tmp_path):
  workdir, expected = trained
  shutil.copytree(workdir, tmp_path / 'run')
  (tmp_path / 'run/summary.json').unlink()
  shutil.rmtree(tmp_path / 'run/checkpoints/20')
  written = (tmp_path / 'run/constants/frozen' / MANIFEST).stat().st_mtime_ns
  found = loop.run(build(), tmp_path / 'run')
  assert found['state_digest'] == expected['state_digest']
  assert (tmp_path / 'run/constants/frozen' / MANIFEST).stat().st_mtime_ns == written


def test_another_mesh_reads_them(trained):
  workdir, _ = trained
  one, _ = restored(build(), workdir, 'latest')
  eight, _ = restored(build(8), workdir, 'latest')
  for name, value in tree.named(one.collections).items():
    np.testing.assert_array_equal(tree.named(eight.collections)[name], value)


def test_those_of_another_run_are_refused(trained, tmp_path):
  workdir, _ = trained
  loop.run(build(1, 'seed=7'), tmp_path / 'other')
  shutil.copytree(workdir, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run/constants')
  shutil.copytree(tmp_path / 'other/constants', tmp_path / 'run/constants')
  with pytest.raises(InputError, match='expected the arrays with the digest'):
    restored(build(), tmp_path / 'run', 'latest')


@pytest.mark.parametrize('how', ['flip', 'missing'])
def test_damage_is_refused(how, trained, tmp_path):
  shutil.copytree(trained[0], tmp_path / 'run')
  place = tmp_path / 'run/constants/frozen'
  if how == 'missing':
    shutil.rmtree(place)
  else:
    file = max((p for p in place.rglob('*') if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
  with pytest.raises(InputError, match='constants/frozen is damaged'):
    restored(build(), tmp_path / 'run', 'latest')


def test_a_task_without_them_is_refused(trained):
  config, name = recipes.load(str(ROOT / 'configs/gpt_char.py:tiny'), [])
  plain = experiment.build(config, name, jax.devices()[:1])
  with pytest.raises(InputError, match='does not fit the model'):
    restored(plain, trained[0], 'latest')


def test_a_start_that_was_killed_before_its_first_checkpoint(trained, tmp_path):
  """Whatever it left under `constants` is written again or used."""
  workdir, expected = trained
  shutil.copytree(workdir, tmp_path / 'run')
  (tmp_path / 'run/summary.json').unlink()
  for step in (10, 20):
    shutil.rmtree(tmp_path / f'run/checkpoints/{step}')
  (tmp_path / 'run/constants/frozen' / MANIFEST).unlink()
  found = loop.run(build(), tmp_path / 'run')
  assert found['state_digest'] == expected['state_digest']
