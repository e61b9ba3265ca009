"""A checkpoint belongs to one step of one run; nothing else in its folder is used or removed."""

import concurrent.futures
import errno
import json
import os
import pathlib
import shutil
import time
import types

import jax
import jax.numpy as jnp
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core.errors import InputError
from bmx.core.metrics import Window
from bmx.runtime import storage
from bmx.runtime.writer import Silent
from bmx.train import hooks, manifest, stepdirs
from bmx.train.checkpoint import Checkpoints
from bmx.train.manifest import MANIFEST
from bmx.train.policy import LoopState
from bmx.train.rundir import RunDir
from bmx.train.state import TrainState
from tests.conftest import ROOT

STATE = TrainState(
  step=jnp.int32(3), params={'w': jnp.ones(4)}, opt_state={}, collections={}, key=jnp.uint32(0),
  consecutive_skips=jnp.int32(0), grad_norm_ema=jnp.zeros(2), ema=None,
)  # fmt: skip


def save(workdir: pathlib.Path, run: str, *steps: int) -> Checkpoints:
  """Checkpoints of a run directory with an identity."""
  workdir.mkdir(parents=True, exist_ok=True)
  (workdir / 'config.json').write_text(json.dumps({'run': run} if run else {}))
  checkpoints = Checkpoints(workdir / 'checkpoints', last=9)
  for step in steps:
    checkpoints.save(STATE, {'best_step': None}, step)
  checkpoints.close()
  return checkpoints


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """Two runs of the same shapes, with checkpoints of steps 10 and 20."""
  folder = tmp_path_factory.mktemp('saved')
  for run in ('a', 'b'):
    save(folder / run, run, 10, 20)
  return folder


@pytest.fixture
def runs(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'runs')
  return tmp_path / 'runs'


def newest(runs):
  return Checkpoints(runs / 'a/checkpoints').newest_valid()


def edit(path, change):
  facts = json.loads(path.read_text())
  change(facts)
  path.write_text(json.dumps(facts))


EDITS = {
  'a shape': lambda facts: facts['leaves']['params/w'].__setitem__(0, [5]),
  'a step': lambda facts: facts.update(step=21),
  'a run': lambda facts: facts.update(run='c'),
  'no files': lambda facts: facts.update(files={}),
  'one file less': lambda facts: facts['files'].pop('loop.json'),
  'constants': lambda facts: facts.update(constants={'frozen': '0' * 64}),
  'no seal': lambda facts: facts.pop('sha256'),
  'another seal': lambda facts: facts.update(sha256='0' * 64),
  'an entry more': lambda facts: facts.update(more=1),
}


@pytest.mark.parametrize('change', EDITS.values(), ids=EDITS)
def test_an_edited_manifest_is_damage(change, runs):
  edit(runs / 'a/checkpoints/20' / MANIFEST, change)
  assert newest(runs) == 10


def test_every_flipped_bit_of_a_manifest_is_damage(runs):
  """Layout that means nothing is the exception: content is compared, not bytes."""
  path = runs / 'a/checkpoints/20' / MANIFEST
  content = path.read_bytes()
  facts = json.loads(content)
  checkpoints = Checkpoints(runs / 'a/checkpoints')
  for i in range(0, len(content), 7):
    flipped = bytearray(content)
    flipped[i] ^= 1 << i % 8
    path.write_bytes(flipped)
    try:
      same = json.loads(bytes(flipped)) == facts
    except ValueError:
      same = False
    assert same or checkpoints.verify(20), i


def test_a_checkpoint_of_another_step_or_run_is_not_used(runs):
  folder = runs / 'a/checkpoints'
  (folder / '20').rename(folder / '30')
  assert newest(runs) == 10
  (folder / '10').rename(folder / '20')  # nothing is left where it was
  with pytest.raises(InputError, match='every checkpoint .* is damaged'):
    newest(runs)
  shutil.rmtree(folder)
  shutil.copytree(runs / 'b/checkpoints', folder)
  lines = Checkpoints(folder).verify(20)
  assert lines == [f"{MANIFEST} has run='b', expected 'a': it is of another place"]
  with pytest.raises(InputError, match='damaged'):
    Checkpoints(folder).choose_whole('latest')


@pytest.mark.parametrize('files', [{}, {'loop.json': '0' * 64}, {'../../config.json': ''}, 7])
def test_a_sealed_manifest_without_the_index_is_damage(files, runs):
  """Somebody who recomputes the seal cannot leave out files that Orbax needs."""
  path = runs / 'a/checkpoints/20' / MANIFEST
  facts = json.loads(path.read_text())
  del facts['sha256']
  facts['files'] = files
  path.write_text(json.dumps(facts | {'sha256': manifest.seal(facts)}))
  assert newest(runs) == 10


@pytest.mark.parametrize('name', ['../30/loop.json', '/etc/hostname', 'link'])
def test_files_elsewhere_are_not_read(name, runs):
  step = runs / 'a/checkpoints/20'
  shutil.copytree(step, runs / 'a/checkpoints/30')
  (step / 'link').symlink_to('/etc/hostname')
  facts = json.loads((step / MANIFEST).read_text())
  del facts['sha256']
  facts['files'] |= {name: manifest.sha256(pathlib.Path(step, name))}
  (step / MANIFEST).write_text(json.dumps(facts | {'sha256': manifest.seal(facts)}))
  assert f'{name} is not a file of this folder' in Checkpoints(step.parent).verify(20)


def test_no_manifest_without_the_index(tmp_path):
  (tmp_path / '5').mkdir()
  manifest.write_part(tmp_path / '5', 0)
  with pytest.raises(FileNotFoundError, match=r'_METADATA, manifest\.ocdbt'):
    manifest.join(tmp_path / '5', 1, step=5, leaves={}, constants={})
  assert not (tmp_path / '5' / MANIFEST).exists()


def test_files_are_on_disk_before_their_manifest(tmp_path, monkeypatch):
  """Every file of the checkpoint, and every folder that leads to one."""
  synced, fsync, replace = [], os.fsync, pathlib.Path.replace

  def noted(descriptor):
    synced.append(pathlib.Path(f'/proc/self/fd/{descriptor}').readlink())
    fsync(descriptor)

  def replaced(source, target):
    if target.name == MANIFEST:
      synced.append(target)
    return replace(source, target)

  monkeypatch.setattr(os, 'fsync', noted)
  monkeypatch.setattr(pathlib.Path, 'replace', replaced)
  save(tmp_path, 'a', 10)
  step = tmp_path / 'checkpoints/10'
  before = set(synced[: synced.index(step / MANIFEST)])
  files = {step / name for name in manifest.read(step)['files']}
  assert len(files) > 4
  assert before >= files | {p.parent for p in files} | {step.parent}


def test_a_process_that_cannot_write_its_part_ends_the_wait(tmp_path, monkeypatch):
  monkeypatch.setattr(manifest, 'PATIENCE', 20.0)
  write = manifest.write_json

  def full(path, value):
    if path.name == 'digests.1.json':
      raise OSError(errno.ENOSPC, 'No space left on device')
    write(path, value)

  monkeypatch.setattr(manifest, 'write_json', full)
  manifest.write_part(tmp_path, 0)
  with pytest.raises(OSError, match='No space'):
    manifest.write_part(tmp_path, 1)
  began = time.monotonic()
  with pytest.raises(OSError, match=r'processes \[1\] could not write'):
    manifest.join(tmp_path, 2)
  assert time.monotonic() - began < 10


def test_a_process_that_cannot_tell_of_its_failure_ends(tmp_path, monkeypatch):
  """Its end ends the others, which would wait; every other failure is reported and tried again."""
  checkpoints = save(tmp_path, 'a')
  error = OSError(errno.EROFS, 'Read-only file system')

  def refused(*_, **__):
    raise error

  monkeypatch.setattr(manifest, 'write_json', refused)
  monkeypatch.setattr(pathlib.Path, 'touch', refused)
  checkpoints = Checkpoints(tmp_path / 'checkpoints')
  checkpoints.save(STATE, {'best_step': None}, 10)
  with pytest.raises(manifest.Untold, match='process 0 cannot write its part'):
    checkpoints.wait()
  checkpoints.close()
  future = concurrent.futures.Future()
  future.set_exception(error)
  checkpoints.pending = future, tmp_path
  checkpoints.wait()
  assert checkpoints.failed_at


@pytest.mark.parametrize('elsewhere', [False, True])
def test_a_save_that_failed_elsewhere_is_repeated_by_all(elsewhere, monkeypatch):
  """A process that left the loop would leave the others in the barriers of the next attempt."""
  answers = [elsewhere, elsewhere, False, False]
  monkeypatch.setattr('bmx.train.checkpoint.anywhere', lambda flag: flag or answers.pop(0))
  monkeypatch.setattr(hooks, 'examine', lambda event: None)
  monkeypatch.setattr(hooks, 'RETRY_SECONDS', 0.0)
  saves = []
  saver = Checkpoints.__new__(Checkpoints)
  saver.saved, saver.failed_at, saver.pending = 5, 0.0, None
  saver.save = lambda state, loop, step: saves.append(step)
  loop = LoopState()
  run = types.SimpleNamespace(
    checkpoints=saver,
    loop=loop,
    window=Window({}),
    account=types.SimpleNamespace(parts=dict),
    count_spent=lambda: None,
    writer=Silent(),
  )
  hooks.save_at_last(types.SimpleNamespace(run=run, step=5, state=None))
  assert saves == [5] * elsewhere


@pytest.mark.parametrize('name', ['a[1]', 'a*', 'a?', 'back\\slash'])
def test_paths_that_orbax_cannot_read_are_refused_before_training(name, tmp_path):
  config, _ = recipes.load(str(ROOT / 'configs/digits_mlp.py:tiny'), ['mesh.data=1'])
  x = experiment.build(config, 'digits', jax.devices()[:1])
  with pytest.raises(InputError, match='expected a path without any of'):
    RunDir(tmp_path / name / 'run', x)
  with pytest.raises(InputError, match='expected a path without any of'):
    Checkpoints(tmp_path / name / 'checkpoints')
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  'name', ['a b', "it's", '{a,b}', 'ü%41#~', '$HOME', 'a|b;c', 'zwei\nzeilen']
)
def test_other_strange_paths_work(name, tmp_path):
  checkpoints = save(tmp_path / name, 'a', 10)
  assert checkpoints.newest_valid() == 10
  found = Checkpoints(tmp_path / name / 'checkpoints').restore(10, jax.eval_shape(lambda: STATE))
  assert found.params['w'].tolist() == [1, 1, 1, 1]


OTHERS = ('20.bak', '20 (copy)', '020', 'notes', '٢٠', '-20', '20.after', '20.orbax', '1' * 30)


def test_only_what_bmx_made_is_removed(tmp_path):
  """Folders, links and files of people stay, with and without a manifest in them."""
  folder, precious = tmp_path / 'run/checkpoints', tmp_path / 'precious'
  for place in (precious, *(folder / name for name in OTHERS)):
    place.mkdir(parents=True)
    (place / MANIFEST).write_text('{}')
  (folder / '30').symlink_to(precious)
  (folder / '40.orbax-checkpoint-tmp').symlink_to(precious)
  (folder / 'notes.txt').touch()
  (folder / '50.orbax-checkpoint-tmp-7').mkdir()
  (folder / '60.after.json').touch()
  before = {p.name for p in folder.iterdir()}
  checkpoints = save(tmp_path / 'run', 'a', 1, 2, 3)
  checkpoints = Checkpoints(folder, last=2)
  checkpoints.save(STATE, {'best_step': None}, 4)
  checkpoints.close()
  assert checkpoints.steps() == [3, 4]
  gone = {'50.orbax-checkpoint-tmp-7', '60.after.json'}
  assert {p.name for p in folder.iterdir()} == before - gone | {'3', '4'}
  assert [p.name for p in precious.iterdir()] == [MANIFEST]


def test_a_folder_with_the_name_of_a_step_is_refused(tmp_path):
  (tmp_path / '20').mkdir()
  (tmp_path / '20/thesis.txt').touch()
  with pytest.raises(InputError, match='20: expected a checkpoint of bmx'):
    stepdirs.check_names(tmp_path)
  stepdirs.clean(tmp_path, tmp_path / '20')
  assert (tmp_path / '20/thesis.txt').exists()


@pytest.mark.parametrize('remove', [
  lambda folder: stepdirs.remove(folder, 10),
  lambda folder: stepdirs.clean(folder, folder / '10'),
])  # fmt: skip
def test_a_removal_that_is_cut_short_leaves_no_step(remove, tmp_path, monkeypatch):
  """SIGKILL after the marks of a step are gone and before its other files are."""
  save(tmp_path, 'a', 10, 20)
  folder, rmtree = tmp_path / 'checkpoints', storage.shutil.rmtree

  class Killed(BaseException):
    pass

  def die(path):
    for name in (MANIFEST, stepdirs.ORBAX_METADATA):
      (path / name).unlink(missing_ok=True)
    raise Killed

  monkeypatch.setattr(storage.shutil, 'rmtree', die)
  with pytest.raises(Killed):
    remove(folder)
  monkeypatch.setattr(storage.shutil, 'rmtree', rmtree)
  stepdirs.check_names(folder)
  assert stepdirs.steps(folder) == [20]
  save(tmp_path, 'a', 10)  # the next save of the same step, which removes the rest
  assert stepdirs.steps(folder) == [10, 20]
  assert not list(folder.glob('*tmp*'))


def test_an_old_step_that_cannot_be_removed_is_not_a_failed_save(tmp_path, monkeypatch):
  """Else the next attempt would remove the newest checkpoint first."""
  save(tmp_path, 'a', 10, 20)

  def fail(folder, step):
    raise PermissionError(13, 'not permitted')

  monkeypatch.setattr(stepdirs, 'remove', fail)
  checkpoints = Checkpoints(tmp_path / 'checkpoints', last=2)
  checkpoints.save(STATE, {'best_step': None}, 30)
  checkpoints.close()
  assert not checkpoints.failed_at
  assert checkpoints.steps() == [10, 20, 30]


@pytest.mark.parametrize('which', ['²', '٢٠', '1e1', '0x14', '', ' 20', '9' * 5000])
def test_a_step_is_named_as_it_was_written(which, runs):
  with pytest.raises(InputError, match='no checkpoint of step'):
    Checkpoints(runs / 'a/checkpoints').choose(which)


@pytest.mark.parametrize('text', ['', '[1]', '{"best_step": ', '[' * 100000])
def test_a_damaged_host_state_is_one_message(text, runs):
  (runs / 'a/checkpoints/20/loop.json').write_text(text)
  with pytest.raises(InputError, match=r'loop\.json: expected the state of a run'):
    Checkpoints(runs / 'a/checkpoints').choose('best')
