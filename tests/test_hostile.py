"""Hostile input: whatever is given, an InputError or a result; nothing else, and nothing hangs."""

import json
import pathlib
import string

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bmx import config as recipes
from bmx.core.errors import InputError
from bmx.data import tables as source
from bmx.data.text import windows as text
from bmx.train.checkpoint import Checkpoints
from bmx.train.rundir import flatten, read_config
from tests.conftest import ROOT
from tests.data.batched import batched

FUZZ = settings(
  max_examples=400,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
RECIPE = str(ROOT / 'configs/gpt_char.py:tiny')
LEAVES = sorted(flatten(recipes.plain(recipes.load(RECIPE)[0])))
WORDS = st.text(string.ascii_letters + '._', min_size=1, max_size=12)
VALUES = st.one_of(
  st.text(max_size=20),
  st.integers().map(str),
  st.floats().map(str),
  st.lists(st.integers()).map(lambda x: str(tuple(x))),
  st.sampled_from(['None', 'True', '(', "('fsdp',", '__import__("os")', '9' * 400, '[' * 200]),
)


@FUZZ
@given(st.one_of(st.sampled_from(LEAVES), WORDS), VALUES)
def test_overrides(name, value):
  """An override leaves every leaf of the type it had, or is refused."""
  config, _ = recipes.load(RECIPE)
  before = flatten(recipes.plain(config))
  try:
    recipes.apply(config, [f'{name}={value}'])
  except InputError:
    return
  after = flatten(recipes.plain(config))
  assert {k: type(after[k]) for k in before} == {k: type(v) for k, v in before.items()}
  assert all(type(v) in (bool, int, float, str, tuple) for v in after.values())


def check(load, path: pathlib.Path, content: bytes):
  path.write_bytes(content)
  try:
    data = load(str(path))
  except InputError as error:
    assert str(error)
    return
  rows = data.rows(data.indices(0)[0], np.arange(data.batch_size))
  floats = [v for v in rows.values() if np.issubdtype(v.dtype, np.floating)]
  assert all(np.isfinite(v).all() for v in floats)


CELL = st.one_of(
  st.sampled_from(['1', '2.5', 'nan', 'inf', '-', '?', '', 'a', '"', '1e999']), WORDS
)
TABLE = st.lists(st.lists(CELL, min_size=1, max_size=4).map(','.join), max_size=6)
BYTES = st.binary(max_size=60)


@FUZZ
@given(st.one_of(BYTES, TABLE.map(lambda rows: '\n'.join(['a,b,c', *rows]).encode())))
def test_csv(tmp_path, content):
  check(lambda p: batched(source.table, 2, p, 'c'), tmp_path / 'x.csv', content)


JSON = st.recursive(
  st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from('abc'), inner),
  max_leaves=5,
)

LINES = st.lists(JSON, max_size=5).map(lambda x: '\n'.join(map(json.dumps, x)).encode())


@FUZZ
@given(st.one_of(BYTES, LINES))
def test_json_lines(tmp_path, content):
  check(lambda p: batched(source.table, 2, p, 'c'), tmp_path / 'x.jsonl', content)


@FUZZ
@given(st.one_of(BYTES, LINES))
def test_text(tmp_path, content):
  check(lambda p: batched(text.text, 2, 4, p, field='a'), tmp_path / 'x.jsonl', content)
  check(lambda p: batched(text.text, 2, 4, p), tmp_path / 'x.txt', content)


@FUZZ
@given(st.one_of(BYTES, JSON.map(lambda x: json.dumps(x).encode())))
def test_directories(tmp_path, content):
  """config.json and the manifest of a checkpoint are anything."""
  (tmp_path / 'config.json').write_bytes(content)
  step = tmp_path / 'checkpoints/3'
  step.mkdir(parents=True, exist_ok=True)
  (step / 'manifest.json').write_bytes(content)
  with pytest.raises(InputError):
    recipes.check_calls(read_config(tmp_path)['config'])
    raise InputError('a config that is a dict of anything is for `build` to refuse')
  assert Checkpoints(tmp_path / 'checkpoints').verify(3)


def test_a_stored_config_calls_no_strange_code():
  config = recipes.plain(recipes.load(RECIPE)[0])
  recipes.check_calls(config)
  for path in ('os:system', 'bmxevil:run', 'flax.core:freeze', 'optaxy.x:y'):
    config['task']['model']['call'] = path
    with pytest.raises(InputError, match=f'{path!r}.*--allow='):
      recipes.check_calls(config)
  config['task']['model']['call'] = 'mine.models:Net'
  recipes.trust(['mine'])
  recipes.check_calls(config)
  recipes.trust([])


def test_the_cache_folder_of_a_stored_config_is_not_used():
  """Compiled programs in it would be executed."""
  config = recipes.plain(recipes.load(RECIPE)[0]) | {'cache': '/somebody/elses'}
  assert recipes.from_stored(config).cache == ''


FOREIGN = (
  'bmx.config:load',  # runs a file
  'bmx.adapt.export:save_file',  # what a module of ours has imported
  'bmx.data.text.corpus:_write',
  'bmx.data.text.documents:json',
  'bmx.main:main',
  'bmx.runtime.cache:sweep',
)


@pytest.mark.parametrize('path', FOREIGN)
def test_what_is_stored_calls_parts_only(path):
  config = {
    'task': {'model': {'call': 'bmx.models.gpt:GPT', 'vocab_size': {'call': path, 'path': 'x'}}}
  }
  with pytest.raises(InputError, match='the stored config calls'):
    recipes.check_calls(config)
