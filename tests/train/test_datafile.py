"""A run keeps what was fitted to its data: it is used without them, and a change is noticed."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core.errors import InputError
from bmx.data.classes import class_names
from bmx.data.encoder import TabularEncoder
from bmx.data.tables import table
from bmx.runtime import processes
from bmx.train import datafile, loop
from tests.conftest import ROOT

RECIPE = """
from bmx.config import base

def get_config(variant=''):
  c = base('a table')
  c.path, c.steps, c.batch_size, c.mesh.data = '', 6, 8, 1
  c.task = {'call': 'bmx.tasks.classification:Classification',
            'model': {'call': 'bmx.models.mlp:MLP', 'num_outputs': 2, 'widths': (4,)}}
  c.data = {'call': 'bmx.data.tables:table', 'path': c.get_ref('path'), 'target': 'kind'}
  c.schedule = {'call': 'bmx.optim.schedules:constant', 'peak': 0.1}
  c.optimizer = {'call': 'bmx.optim.optimizers:adamw'}
  return c
"""
JOBS = ('cook', 'judge', 'pilot')


def written(path, n=40, seed=0, header='age,job,kind'):
  random = np.random.default_rng(seed)
  rows = [f'{random.integers(20, 60)},{random.choice(JOBS)},{random.choice(["a", "b"])}'
          for _ in range(n)]  # fmt: skip
  path.write_text('\n'.join([header, *rows]) + '\n')
  return path


@pytest.fixture
def recipe(tmp_path):
  path = tmp_path / 'table.py'
  path.write_text(RECIPE)
  return path


def build(recipe, path, *words, **options):
  config, name = recipes.load(str(recipe), [f'path={path}', *words])
  return experiment.build(config, name, jax.devices()[:1], **options)


def predicted(bmx, workdir, file, cwd):
  done = bmx(f'--workdir={workdir}', '--mode=predict', f'--input={file}', cwd=cwd)
  assert done.returncode == 0, done.stderr
  newest = max((workdir / 'predictions').iterdir(), key=lambda path: path.stat().st_mtime_ns)
  return newest.read_text(), done.stderr


def test_a_moved_run_predicts_without_its_training_data(recipe, tmp_path, bmx):
  home = tmp_path / 'home'
  home.mkdir()
  train, other = written(home / 'train.csv'), written(tmp_path / 'other.csv', 7, seed=1)
  loop.run(build(recipe, train), home / 'run')
  before, _ = predicted(bmx, home / 'run', other, ROOT)
  away = tmp_path / 'away'
  shutil.move(home / 'run', away)
  shutil.rmtree(home)
  recipe.unlink()
  assert predicted(bmx, away, other, ROOT)[0] == before
  # An unknown category is counted, in other numbers nothing changes.
  other.write_text(other.read_text() + '30,astronaut,a\n')
  after, told = predicted(bmx, away, other, ROOT)
  assert after.startswith(before)
  assert 'categories that the training data lacks, in records: job 1' in told


@pytest.mark.parametrize(('header', 'message'), [
  ('Age,job,kind', "missing 'age'; did you mean 'Age'?, extra 'Age'"),
  ('age,job,kind,height', "extra 'height'"),
  ('age,kind', "missing 'job'"),
])  # fmt: skip
def test_columns_are_those_of_the_training_data(tmp_path, header, message):
  fitted = table(str(written(tmp_path / 'train.csv')), 'kind').state()
  other = tmp_path / 'other.csv'
  other.write_text(f'{header}\n' + ','.join('1' for _ in header.split(',')) + '\n')
  with pytest.raises(InputError) as caught:
    table(str(other), 'kind', fitted=json.loads(json.dumps(fitted)), train=False)
  assert message in str(caught.value)


def test_data_that_changed_end_a_resume(recipe, tmp_path, caplog):
  train = written(tmp_path / 'train.csv')
  loop.run(build(recipe, train), tmp_path / 'run')
  train.write_text(train.read_text() + '33,cook,a\n')
  with pytest.raises(InputError, match=r'train\.csv changed since .* size 40, now 41'):
    loop.run(build(recipe, train, 'steps=9'), tmp_path / 'run')
  written(train, seed=5)
  with pytest.raises(InputError, match='digest .*, now .*allow_changed_data=True'):
    loop.run(build(recipe, train, 'steps=9'), tmp_path / 'run')
  summary = loop.run(build(recipe, train, 'steps=9', 'allow_changed_data=True'), tmp_path / 'run')
  assert summary['steps'] == 9
  assert 'equal rows become other inputs: encoder' in caplog.text
  train.write_text(train.read_text().replace(',b\n', ',c\n'))  # equal arrays: no digest tells
  with pytest.raises(InputError, match=r"expected the classes of .*'a', 'b'.*found .*'a', 'c'"):
    loop.run(build(recipe, train, 'steps=12', 'allow_changed_data=True'), tmp_path / 'run')
  train.unlink()
  with pytest.raises(InputError, match='no file'):
    build(recipe, train)


def test_processes_that_read_other_data_are_told_apart(recipe, tmp_path, monkeypatch):
  """Other rows, and equal rows that other data fitted: found after the data are read."""
  path = written(tmp_path / 'train.csv')
  texts = []
  for seed in (0, 0, 5):
    texts.append(json.dumps(datafile.facts('data', build(recipe, written(path, seed=seed)).data)))
  monkeypatch.setattr(processes, 'gathered', lambda text: texts[:2])
  processes.check_same({})
  monkeypatch.setattr(processes, 'gathered', lambda text: texts)
  with pytest.raises(InputError) as caught:
    processes.check_same({})
  for word in ('digest of data: ', 'digest of what data fitted: ', 'on processes 0, 1, '):
    assert word in str(caught.value)
  assert 'examples of data' not in str(caught.value)


def test_data_json_says_what_was_fitted(recipe, tmp_path):
  x = build(recipe, written(tmp_path / 'train.csv'))
  loop.run(x, tmp_path / 'run')
  stored = datafile.read(tmp_path / 'run')
  assert stored.size == 40 and stored.spec == x.data.spec
  assert stored.state['class_names'] == ['a', 'b']
  assert stored.state['encoder']['categories'] == {'job': list(JOBS)}
  again = build(recipe, 'nowhere.csv', stored=stored)
  assert again.data.metadata['num_classes'] == 2
  with pytest.raises(InputError, match='the data was not read'):
    again.data.rows(np.arange(2), np.arange(2))


@pytest.mark.parametrize('text', ['', '{', '[]', '{"size": 0}', '{"size": "x", "spec": 3}'])
def test_a_data_json_that_is_none(tmp_path, text):
  (tmp_path / 'data.json').write_text(text)
  with pytest.raises(InputError, match=r'data\.json'):
    datafile.read(tmp_path)


@pytest.mark.parametrize('change', [('40', '41'), ('"b"', '"c"'), ('"sha256"', '"sha"')])
def test_a_changed_data_json_is_refused_by_name(recipe, tmp_path, change):
  """By what reads the run, and by a resume."""
  x = build(recipe, written(tmp_path / 'train.csv'))
  datafile.write(tmp_path, x.data)
  assert datafile.read(tmp_path)
  path = tmp_path / 'data.json'
  path.write_text(path.read_text().replace(*change))
  for read in (datafile.read, lambda folder: datafile.check(folder, x.data)):
    with pytest.raises(InputError, match=r'data\.json: expected the content that the run wrote'):
      read(tmp_path)


def test_the_order_of_classes_is_that_of_every_process():
  names = 'c(["zho", "nan", "eng"] * 3), c(map(str, range(12))), c(["1", "1.0", "-inf"])'
  code = f'from bmx.data.classes import class_names as c; print({names})'
  texts = {
    subprocess.run([sys.executable, '-c', code], env={**os.environ, 'PYTHONHASHSEED': seed},
                   cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for seed in ('0', '1', '2')
  }  # fmt: skip
  assert len(texts) == 1
  assert class_names(['zho', 'nan', 'eng', 'nan']) == ('eng', 'nan', 'zho')
  assert class_names(str(i) for i in range(12)) == tuple(map(str, range(12)))
  assert class_names(['1.0', '1', '', None]) == ('1', '1.0')


def test_a_column_that_is_constant_up_to_rounding():
  records = [{'n': '14.62'}] * 1000
  encoder = TabularEncoder.fit(records, (), '?')
  np.testing.assert_allclose(encoder.encode([{'n': '15.62'}], 'here'), [[1.0]], rtol=1e-6)


THEIRS = """
from bmx.data.shapes import shapes
from bmx.data.text.windows import token_spec

def corpus(length, read=True):
  if not read:
    return shapes(token_spec(length), length=length)
  raise AssertionError('read')
"""


def test_texts_of_a_users_package_are_planned_unread(tmp_path, monkeypatch):
  (tmp_path / 'theirs.py').write_text(THEIRS)
  monkeypatch.syspath_prepend(tmp_path)
  config, name = recipes.load('gpt_char:tiny', ['mesh.data=1'])
  config.data = {'call': 'theirs:corpus', 'length': 32}
  x = experiment.build(config, name, jax.devices()[:1], read=False)
  assert x.data.abstract['tokens'].shape == (16, 32)
  with pytest.raises(AssertionError, match='read'):
    experiment.build(config, name, jax.devices()[:1])


MIXED = """
from bmx.config import load

def get_config(variant=''):
  c, _ = load('gpt_char:tiny', ['mesh.data=1', 'steps=12', 'every.save=4'])
  part = c.data.to_dict()
  c.data = {'call': 'bmx.data.mixture:mix', 'weights': {'one': 3.0, 'two': 1.0},
            'sources': {'one': {**part, 'split': 'train'}, 'two': {**part, 'split': 'valid'}}}
  c.eval = {}
  return c
"""


def test_a_recipe_with_a_mixture_resumes_exactly(tmp_path):
  recipe = tmp_path / 'mixed.py'
  recipe.write_text(MIXED)

  def made(steps):
    config, name = recipes.load(str(recipe), [f'steps={steps}'])
    config.schedule = {'call': 'bmx.optim.schedules:constant', 'peak': 1e-3}
    return experiment.build(config, name, jax.devices()[:1])

  straight = loop.run(made(12), tmp_path / 'straight')
  loop.run(made(8), tmp_path / 'stopped')
  assert loop.run(made(12), tmp_path / 'stopped')['state_digest'] == straight['state_digest']
