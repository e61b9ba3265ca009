"""Whole runs: a teacher from its folder, pruning in training, resumed to the same bits."""

import functools
import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

import bmx
from bmx import config as recipes
from bmx import experiment, modes
from bmx.adapt import restore
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.modes import Request, start
from bmx.train.run import restored
from bmx.train.state import eval_variables, state_spec

WORDS = ['mesh.data=1', 'task.model.dropout=0.0']
STEPS = ['steps=10', 'every.save=5', 'every.log=5', 'every.eval=10', 'ema=0.9']


def dense(*overrides):
  return recipes.load('digits_mlp:tiny', [*WORDS, *overrides])[0]


def build(config):
  return experiment.build(config, 'run', jax.devices()[:1])


@pytest.fixture(scope='module')
def teacher(tmp_path_factory):
  folder = tmp_path_factory.mktemp('teacher') / 'run'
  bmx.train(build(dense('steps=40')), folder)
  return folder


def student(folder, **optimizer):
  """Half the width, pruned to 80 %, distilled."""
  c = dense(*STEPS)
  c.init.teacher = str(folder)
  inner = c.task.to_dict()
  inner['model']['widths'] = (16, 8)
  c.task = {
    'call': 'bmx.compress.distill:Distill',
    'inner': inner,
    'teacher': {'call': 'bmx.adapt.restore:model', 'path': c.init.get_ref('teacher')},
    'hidden': {'dense_0': 'dense_0'},
  }
  optimizer = {'sparsity': 0.8, 'end': 0.7, 'every': 2, **optimizer}
  inner = c.optimizer.to_dict()
  c.optimizer = {'call': 'bmx.compress.prune:prune', 'inner': inner, **optimizer}
  return c


def test_a_pruned_student_resumes_to_the_same_bits(teacher, tmp_path):
  straight, again = tmp_path / 'straight', tmp_path / 'again'
  summary = bmx.train(build(student(teacher)), straight)
  assert {'kl', 'hidden', 'task_loss'} <= set(summary['metrics'])
  assert (straight / 'constants/teacher/manifest.json').is_file()
  leaves = json.loads((straight / 'checkpoints/10/manifest.json').read_text())['leaves']
  assert not [k for k in leaves if 'teacher' in k]
  shutil.copytree(straight, again)
  shutil.rmtree(again / 'checkpoints/10')
  for name in ('summary.json', 'metrics.jsonl'):
    (again / name).unlink()
  second = bmx.train(build(student(teacher)), again)
  assert second['state_digest'] == summary['state_digest']
  # The stored config builds the model of the teacher without its folder; the zeros are exported.
  stored = recipes.from_stored(json.loads((straight / 'config.json').read_text())['config'])
  assert stored.task.teacher.call == 'bmx.models.mlp:MLP'
  made = build(stored)
  state, _ = restored(made, straight, 'latest')
  plain = tree.named(made.task.merged_params(eval_variables(state)))
  assert plain.keys() == {f'{k}/{m}' for k in ('dense_0', 'dense_1', 'head')
                          for m in ('bias', 'kernel')}  # fmt: skip
  # Others start from the student.
  c = dense('steps=4')
  c.task.model.widths, c.init.path = (16, 8), str(straight)
  for name, x in tree.named(build(c).init().params).items():
    np.testing.assert_array_equal(x, plain[name])
  for name, x in plain.items():
    share = float((np.asarray(x) == 0).mean())
    assert share == pytest.approx(0.8, abs=0.02) if name.endswith('kernel') else True


def compressed(monkeypatch, workdir, output, *words):
  monkeypatch.setattr(start, 'start', lambda request: pathlib.Path(request.workdir))
  monkeypatch.setattr(jax, 'devices', lambda *_: jax.local_devices()[:1])
  config = recipes.from_stored(json.loads((workdir / 'config.json').read_text())['config'])
  recipes.apply(config, [f'compress.{w}' for w in words])
  modes.run('compress', Request(config, 'run', workdir=str(workdir), output=str(output)))
  return json.loads((output / 'compress.json').read_text())['after']


def weights(workdir):
  stored = recipes.from_stored(json.loads((workdir / 'config.json').read_text())['config'])
  state, _ = restored(build(stored), workdir, 'latest')
  return tree.named(jax.device_get(state.params))


def test_the_mode_prunes_and_shrinks(teacher, tmp_path, monkeypatch):
  """The shrunk run has another model, and the loss of the pruned one."""
  run = functools.partial(compressed, monkeypatch)
  pruned = run(teacher, tmp_path / 'pruned', 'method=magnitude', 'pattern=neurons')
  small = run(tmp_path / 'pruned', tmp_path / 'small', 'method=shrink')
  assert small['eval/test/loss'] == pytest.approx(pruned['eval/test/loss'], rel=1e-6)
  assert small['parameters'] < 0.52 * pruned['parameters']
  assert weights(tmp_path / 'small')['dense_1/kernel'].shape == (16, 8)
  run(teacher, tmp_path / 'wanda', 'method=wanda', 'pattern=2:4', 'examples=64')
  for name, x in weights(tmp_path / 'wanda').items():
    if name.endswith('kernel'):
      assert ((x.reshape(-1, 4, x.shape[1]) != 0).sum(1) <= 2).all()
  with pytest.raises(InputError, match='compress.sparsity=1.5: expected 0 <= sparsity < 1'):
    run(teacher, tmp_path / 'bad', 'method=magnitude', 'sparsity=1.5')
  with pytest.raises(InputError, match='expected at least 1 for compress.method=wanda;'):
    run(teacher, tmp_path / 'bad', 'method=wanda', 'examples=0')


def test_a_folder_of_other_outputs_or_none(teacher):
  with pytest.raises(InputError, match="init.teacher='': expected the folder of the weights"):
    c = student(teacher)
    c.task.teacher = recipes.plain(dense()).get('task')['model']
    c.init.teacher = ''
    build(c).init()
  with pytest.raises(InputError, match='fits no|does not fit the model'):
    c = student(teacher)
    c.task.teacher = {**recipes.plain(dense())['task']['model'], 'widths': (33, 16)}
    build(c).init()


def test_classes_of_a_teacher_in_another_order(tmp_path):
  """Its head would teach other classes."""
  path, run = tmp_path / 'a.csv', str(tmp_path / 'run')
  rows = [f'{n % 7},{n % 5},{"ab"[n % 2]}' for n in range(40)]
  path.write_text('\n'.join(['x,y,target', *rows]) + '\n')
  words = [f'data.path={path}', 'data.target=target', 'epochs=0', 'steps=1', 'mesh.data=1']
  c, _ = recipes.load('table', [*words, 'batch_size=8', 'keep.metric='])
  c.eval = {}
  bmx.train(build(c), run)
  c.init.teacher = run
  model = {'call': 'bmx.adapt.restore:model', 'path': run}
  c.task = {'call': 'bmx.compress.distill:Distill', 'inner': c.task.to_dict(), 'teacher': model}
  made = build(c)
  made.init()
  with pytest.raises(InputError, match=re.escape(f"init.teacher='{run}': its outputs are the")):
    restore.start(made.task, state_spec(made), recipes.plain(c)['init'], ('b', 'a'))
