"""Checkpoints that can be believed."""

import dataclasses
import gc
import json
import pathlib
import random
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core import tree
from bmx.core.errors import GuardStop, InputError, Stop
from bmx.train import hooks, loop
from bmx.train.checkpoint import Checkpoints
from bmx.train.manifest import MANIFEST
from bmx.train.state import state_spec
from tests.conftest import ROOT

GPT = str(ROOT / 'configs/gpt_char.py:tiny')


def build(mesh, devices, *overrides, recipe=GPT):
  config, name = recipes.load(recipe, overrides)
  config.mesh.update(mesh)
  return experiment.build(config, name, jax.devices()[:devices])


def plan(x):
  return state_spec(x)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A checkpoint of 8 devices, and the values in it."""
  folder = tmp_path_factory.mktemp('saved')
  x = build({'data': 2, 'fsdp': 4}, 8, 'ema=0.9')
  state = x.init()
  checkpoints = Checkpoints(folder)
  for step in (10, 20):
    checkpoints.save(state, {'best_step': None}, step)
  checkpoints.close()
  return folder, {k: np.asarray(v) for k, v in tree.named(state).items()}


@pytest.mark.parametrize(
  ('mesh', 'devices'),
  [({'data': 1}, 1), ({'data': 4}, 4), ({'data': 1, 'fsdp': 8}, 8), ({'data': 2, 'model': 4}, 8)],
)
def test_any_mesh_restores_equal_values(saved, mesh, devices):
  folder, values = saved
  target = plan(build(mesh, devices, 'ema=0.9'))
  state = Checkpoints(folder).restore(20, target.abstract)
  places = tree.named(target.abstract)
  for name, leaf in tree.named(state).items():
    np.testing.assert_array_equal(np.asarray(leaf), values[name])
    assert leaf.sharding.is_equivalent_to(places[name].sharding, leaf.ndim)


def damage(path: pathlib.Path, how: str, seed: int) -> pathlib.Path:
  """Flips one bit of, or cuts, one file of a checkpoint -> that file."""
  draw = random.Random(seed)
  files = sorted(p for p in path.rglob('*') if p.is_file() and p.stat().st_size)
  file = draw.choice([f for f in files if f.name != MANIFEST])
  data = bytearray(file.read_bytes())
  if how == 'cut':
    data = data[: draw.randrange(len(data))]
  else:
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
  file.write_bytes(data)
  return file


@pytest.mark.parametrize('how', ['flip', 'cut'])
def test_damage_is_found_and_the_step_before_is_used(saved, how, tmp_path, caplog):
  for seed in range(30 if how == 'flip' else 10):
    folder = tmp_path / str(seed)
    shutil.copytree(saved[0], folder)
    file = damage(folder / '20', how, seed)
    checkpoints = Checkpoints(folder)
    assert any(file.name in line for line in checkpoints.verify(20))
    with caplog.at_level('WARNING', logger='bmx'):
      assert checkpoints.newest_valid() == 10
    assert f'{file.relative_to(folder / "20")} is damaged' in caplog.text


def test_damage_that_another_process_found_is_told_too(saved, monkeypatch, caplog):
  answers = iter([True, False])
  monkeypatch.setattr('bmx.train.checkpoint.anywhere', lambda flag: next(answers))
  with caplog.at_level('WARNING', logger='bmx'):
    assert Checkpoints(saved[0]).newest_valid() == 10
  assert 'CHECKPOINT 20 IS DAMAGED' in caplog.text
  assert 'another process found it' in caplog.text


def test_a_run_never_starts_afresh_by_itself(saved, tmp_path):
  shutil.copytree(saved[0], tmp_path / 'c')
  damage(tmp_path / 'c/20', 'flip', 1)
  damage(tmp_path / 'c/10', 'flip', 2)
  with pytest.raises(InputError, match='every checkpoint .* is damaged'):
    Checkpoints(tmp_path / 'c').newest_valid()
  assert Checkpoints(tmp_path / 'none').newest_valid() is None


def test_a_damaged_manifest_is_found(saved, tmp_path):
  shutil.copytree(saved[0], tmp_path / 'c')
  (tmp_path / 'c/20' / MANIFEST).write_text('{"files": ')
  assert Checkpoints(tmp_path / 'c').newest_valid() == 10


def test_what_does_not_fit_is_listed(saved):
  wider = plan(build({'data': 1}, 1, 'ema=0.9', 'task.model.width=32'))
  with pytest.raises(InputError, match='does not fit the model') as error:
    Checkpoints(saved[0]).restore(20, wider.abstract)
  assert 'differs  params/embed/table: has [[256, 64]' in str(error.value)
  plain = plan(build({'data': 1}, 1))
  with pytest.raises(InputError, match='extra    ema/params/embed/table'):
    Checkpoints(saved[0]).restore(20, plain.abstract)


def test_dtype_mismatch_is_an_error(saved):
  target = plan(build({'data': 1}, 1, 'ema=0.9')).abstract
  at = target.consecutive_skips.sharding
  half = target.replace(consecutive_skips=jax.ShapeDtypeStruct((), np.int16, sharding=at))
  with pytest.raises(
    InputError, match="differs  consecutive_skips: has .*'int32'.*, expected .*'int16'"
  ):
    Checkpoints(saved[0]).restore(20, half)


def test_newest_and_best_are_kept(tmp_path):
  x = build({'data': 1}, 1, recipe=str(ROOT / 'configs/digits_mlp.py:tiny'))
  state, checkpoints = x.init(), Checkpoints(tmp_path, last=2)
  for step in range(1, 7):
    checkpoints.save(state, {'best_step': 2 if step > 1 else None}, step)
  checkpoints.close()
  assert checkpoints.steps() == [2, 5, 6]


def test_an_unfinished_save_is_ignored_and_removed(tmp_path, caplog):
  x = build({'data': 1}, 1, recipe=str(ROOT / 'configs/digits_mlp.py:tiny'))
  loop.run(x, tmp_path / 'run')
  folder = tmp_path / 'run/checkpoints'
  (folder / '20' / MANIFEST).unlink()
  (folder / '30.orbax-checkpoint-tmp').mkdir()
  checkpoints = Checkpoints(folder)
  assert checkpoints.newest_valid() == 10
  checkpoints.save(x.init(), {'best_step': None}, 20)
  checkpoints.close()
  assert checkpoints.steps() == [10, 20]
  assert not list(folder.glob('*tmp*'))


def test_the_manifest_lists_every_leaf(saved):
  manifest = json.loads((saved[0] / '20' / MANIFEST).read_text())
  assert set(manifest['leaves']) == set(saved[1])


def test_a_damaged_step_is_written_anew(tmp_path):
  """The run walks back, repeats the steps, and ends as if nothing had happened."""
  recipe = str(ROOT / 'configs/digits_mlp.py:tiny')
  expected = loop.run(build({'data': 1}, 1, recipe=recipe), tmp_path / 'run')
  damage(tmp_path / 'run/checkpoints/20', 'flip', 0)
  (tmp_path / 'run/summary.json').unlink()
  summary = loop.run(build({'data': 1}, 1, recipe=recipe), tmp_path / 'run')
  assert summary['state_digest'] == expected['state_digest']
  assert Checkpoints(tmp_path / 'run/checkpoints').verify(20) == []


@pytest.fixture
def small_disk(tmp_path):
  """Makes a run directory whose checkpoints lie on their own, nearly full disk -> (it, filler)."""
  place = tmp_path / 'run/checkpoints'
  place.mkdir(parents=True)
  command = ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', str(place)]
  if subprocess.run(command, capture_output=True).returncode:
    pytest.skip('no right to mount a small disk')
  filler = place / 'filler'
  filler.write_bytes(b'0' * ((1 << 20) - 16384))
  yield tmp_path / 'run', filler
  gc.collect()  # what Orbax's failed threads left is not the next test's
  subprocess.run(['umount', '--lazy', str(place)], check=True)


# Orbax leaves its event loops to the garbage collector where a save fails.
UNRAISABLE = 'ignore::pytest.PytestUnraisableExceptionWarning'


@pytest.mark.filterwarnings(UNRAISABLE)
def test_a_full_disk_does_not_end_the_training(small_disk, caplog, monkeypatch):
  """Saving step 10 fails; somebody makes room; the last one is written."""
  workdir, filler = small_disk
  x = build({'data': 1}, 1, recipe=str(ROOT / 'configs/digits_mlp.py:tiny'))
  monkeypatch.setattr(hooks, 'RETRY_SECONDS', 0.01)
  report = Checkpoints._report

  def make_room(self, path, error):
    report(self, path, error)
    filler.unlink(missing_ok=True)

  monkeypatch.setattr(Checkpoints, '_report', make_room)
  with caplog.at_level('ERROR', logger='bmx'):
    summary = loop.run(x, workdir)
  assert 'FAILED, and will be tried again' in caplog.text
  assert summary['steps'] == 20
  assert Checkpoints(workdir / 'checkpoints').newest_valid() == 20


@pytest.mark.filterwarnings(UNRAISABLE)
def test_a_disk_that_stays_full_is_said(small_disk, monkeypatch):
  workdir, _ = small_disk
  x = build({'data': 1}, 1, recipe=str(ROOT / 'configs/digits_mlp.py:tiny'))
  monkeypatch.setattr(hooks, 'RETRY_SECONDS', 0.01)
  with pytest.raises(Stop, match='checkpoint of step 20 cannot be written'):
    loop.run(x, workdir)
  assert len((workdir / 'metrics.jsonl').read_text().splitlines()) == 6


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
  """An update can overflow though its gradient is finite."""
  recipe = str(ROOT / 'configs/digits_mlp.py:tiny')
  x = build({'data': 1}, 1, recipe=recipe)
  tx = optax.chain(optax.scale(1e30), optax.scale(1e30))
  with pytest.raises(GuardStop, match='IS NOT FINITE') as stop:
    loop.run(dataclasses.replace(x, tx=tx, guard=x.guard | {'patience': 0}), tmp_path / 'run')
  assert stop.value.code == 76
  assert Checkpoints(tmp_path / 'run/checkpoints').steps() == []


@pytest.mark.parametrize('patience', [0, 2])
def test_the_mark_that_finds_a_bad_state_ends_the_run(patience, tmp_path):
  """The update of step 13 overflows: the evaluation after step 16 finds it, or the guard's end."""
  recipe = str(ROOT / 'configs/digits_mlp.py:tiny')
  x = build({'data': 1}, 1, 'every.save=10', 'every.eval=4', 'steps_per_call=1', recipe=recipe)
  tx = optax.scale_by_schedule(lambda count: jnp.where(count == 12, jnp.inf, -0.01))
  x = dataclasses.replace(x, tx=tx, guard=x.guard | {'patience': patience})
  with pytest.raises(GuardStop, match=r'STATE OF STEP 1\d IS NOT FINITE .* first params/') as stop:
    loop.run(x, tmp_path / 'run')
  assert stop.value.code == 76
  assert f'from step 10, with --config.init.path={tmp_path / "run"}' in str(stop.value)
  assert Checkpoints(tmp_path / 'run/checkpoints').newest_valid() == 10


def test_a_run_starts_with_finite_weights(tmp_path):
  x = build({'data': 1}, 1, recipe=str(ROOT / 'configs/digits_mlp.py:tiny'))

  def init(spec):
    state = x.init(spec)
    return state.replace(params=jax.tree.map(lambda p: p * jnp.nan, state.params))

  with pytest.raises(InputError, match='expected finite weights; params/dense_0/bias'):
    loop.run(dataclasses.replace(x, init=init), tmp_path / 'run')
