"""Stored things are data: whatever a run directory holds, a result or one message."""

import copy
import io
import json
import random
import re
import sys
import zipfile

import jax
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.adapt import restore
from bmx.core.errors import InputError
from bmx.core.events import Selection
from bmx.core.paths import local
from bmx.core.typed import fits
from bmx.data.arrays import arrays
from bmx.data.tfds import tfds_source
from bmx.modes import Request, start
from bmx.runtime import cache
from bmx.train.policy import LoopState, loop_state
from bmx.train.rundir import RunDir, read_config
from tests.test_bad_input import DIGITS, call, message_of

BOMB = json.loads('[' * 300 + ']' * 300)
VALUES = (
  None, True, False, -1, 0, 3, 3_000_000_000, 10**400, 1e308, -0.5, '', 'x', 'auto', '\x1b[2J',
  'a\0b', '\ud800', '/nowhere/x', [], [1], ['a', 'b'], [[1, 2], [3]], {}, {'a': 1}, {'call': 7},
  {'call': 'bmx.models.mlp:MLP'}, {'call': 'os:system'}, BOMB, '~', 'gs://a/b', 'x' * 5000,
)  # fmt: skip
BASES = tuple(f'{name}:tiny' for name in ('digits_mlp', 'gpt_char', 'mnist_cnn', 'adult_mlp'))


def nodes(value, path=()):
  """Paths of all words of a config, parts among them."""
  if isinstance(value, dict):
    for key, inner in value.items():
      yield (*path, key)
      yield from nodes(inner, (*path, key))


def mutate(config, others, draw):
  """Replaces, removes or adds one word; a part may come from another recipe."""
  *folders, leaf = draw.choice(list(nodes(config)))
  place, value = config, draw.choice(VALUES)
  for key in folders:
    place = place[key]
  if draw.random() < 0.2:
    other = draw.choice(others)
    for key in draw.choice(list(nodes(other))):
      other = other[key]
    value = copy.deepcopy(other)
  if draw.random() < 0.1:
    del place[leaf]
  elif draw.random() < 0.1:
    place[f'{leaf}x'] = value
  else:
    place[leaf] = value


def open_stored(folder):
  """What every mode does with a run directory, without training."""
  stored = read_config(folder)
  config = recipes.from_stored(stored['config'])
  return experiment.build(config, 'stored', jax.devices()[:1])


@pytest.fixture(scope='module')
def bases():
  plain = [recipes.plain(recipes.load(name)[0]) for name in BASES]
  return [json.loads(json.dumps(p)) for p in plain]


@pytest.mark.parametrize('mutations', [1, 3])
def test_300_stored_configs_of_wrong_types(mutations, bases, tmp_path):
  draw, refused = random.Random(mutations), 0
  for i in range(150):
    config = copy.deepcopy(bases[i % len(bases)])
    for _ in range(mutations):
      mutate(config, bases, draw)
    (tmp_path / 'config.json').write_text(json.dumps({'config': config, 'name': 'x'}))
    try:
      open_stored(tmp_path)
    except InputError as error:
      assert str(error)
      refused += 1
  assert refused > 75


@pytest.mark.parametrize('name', recipes.names())
def test_every_recipe_is_accepted_when_it_is_stored(name):
  config = recipes.load(name)[0]
  plain = recipes.plain(config)
  again = recipes.from_stored(json.loads(json.dumps(plain)))
  assert recipes.plain(again) == plain


FILES = [
  '',
  '{',
  '[]',
  '7',
  'null',
  '{"config": 3}',
  '{"config": []}',
  '[' * 10**5,
  '\x00',
  '\ufeff{',
]


@pytest.mark.parametrize('text', FILES)
def test_a_config_json_that_is_none(text, tmp_path):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(InputError, match=r'config\.json: expected the config of a run'):
    read_config(tmp_path)


def test_a_nested_bomb_in_a_config(bases, tmp_path):
  bomb = json.loads('{"a":' * 900 + '1' + '}' * 900)
  text = json.dumps({'config': bases[0] | {'more': bomb}})
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(InputError, match='nested too deeply'):
    open_stored(tmp_path)


def test_where_programs_are_kept_is_never_read_from_a_stored_config(bases):
  for word in ('/somebody/elses', 'off', 7):
    assert recipes.from_stored(bases[0] | {'cache': '/x'}).cache == '', word


def header(shape, path):
  """A numpy archive whose `x` says that it has so many items."""
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    file, {'descr': '<f8', 'fortran_order': False, 'shape': shape}
  )
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('x.npy', file.getvalue() + bytes(80))


@pytest.mark.parametrize('shape', [(10**12,), (10**30,), (11,), (-1,), (2**62, 8)])
def test_an_archive_that_says_it_is_large(shape, tmp_path):
  header(shape, tmp_path / 'x.npz')
  with pytest.raises(InputError, match='is not a numpy archive'):
    arrays(str(tmp_path / 'x.npz'))


def test_a_model_that_is_read_from_itself(bases, tmp_path):
  """At the top, through another run, and inside another part."""
  own = {'call': 'bmx.adapt.restore:model', 'path': str(tmp_path / 'a')}
  other = {'call': 'bmx.adapt.restore:model', 'path': str(tmp_path / 'b')}
  inside = {'call': 'bmx.models.bert:Classifier', 'num_outputs': 2, 'encoder': own}
  for name, model in (('a', other), ('b', own), ('c', inside)):
    (tmp_path / name / 'checkpoints').mkdir(parents=True)
    config = bases[0] | {'task': bases[0]['task'] | {'model': model}}
    (tmp_path / name / 'config.json').write_text(json.dumps({'config': config}))
  for name in 'abc':
    with pytest.raises(InputError):
      restore.model(str(tmp_path / name))
    with pytest.raises(InputError):
      open_stored(tmp_path / name)


BEYOND = (
  ['steps=3000000000'], ['steps=0', 'epochs=1e300'], ['steps=0', 'epochs=1e400'],
  ['batch_size=3000000000'],
)  # fmt: skip


@pytest.mark.parametrize('words', BEYOND)
def test_numbers_beyond_int32(words):
  config, name = recipes.load(DIGITS, words)
  with pytest.raises(InputError, match=f'{words[-1].partition("=")[0]}.*: expected'):
    experiment.build(config, name, jax.devices()[:1])


FIELDS = [{'step': 3}, {'done': 'log'}, {'best': []}, {'waited': True}, {'window': {'a': 'b'}}]


@pytest.mark.parametrize('values', FIELDS, ids=str)
def test_a_host_state_of_wrong_types(values):
  with pytest.raises(InputError, match='expected the state of a run'):
    loop_state(values, 'checkpoint 3')
  assert loop_state({'best_step': None, 'seconds': 3}, '') == LoopState(seconds=3)


SUMMARIES = [
  '{',
  '',
  '[]',
  '{"steps": 3}',
  '{"steps": "x", "metrics": {}, "seconds": 1}',
  '[' * 10**5,
]


@pytest.mark.parametrize('text', SUMMARIES)
def test_a_damaged_summary_is_not_the_end_of_a_run(text, tmp_path, caplog):
  config, name = recipes.load(DIGITS, ['mesh.data=1'])
  x = experiment.build(config, name, jax.devices()[:1])
  (tmp_path / 'config.json').write_text(json.dumps({'config': x.config}))
  (tmp_path / 'summary.json').write_text(text)
  with caplog.at_level('WARNING', logger='bmx'):
    assert RunDir(tmp_path, x).summary() is None
  assert 'summary.json IS DAMAGED' in caplog.text


@pytest.mark.parametrize(
  'name', ['huggingface:glue', 'kaggle:x', 'a:b/c', '../x', 'a b', '', 'x:1.0/../y']
)
def test_names_that_tfds_reads_from_the_network(name):
  with pytest.raises(InputError, match='expected a name such as'):
    tfds_source(name, 'train')


OWN = ('lock', 'metrics.jsonl', 'checkpoints', 'report.html', 'data.json', 'tensorboard')


@pytest.mark.parametrize('name', OWN)
def test_links_of_a_foreign_run_are_refused(name, tmp_path):
  config, recipe = recipes.load(DIGITS, ['mesh.data=1'])
  x = experiment.build(config, recipe, jax.devices()[:1])
  precious = tmp_path / 'precious'
  precious.write_text('precious')
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / name).symlink_to(precious)
  with pytest.raises(InputError, match=f'{name} is a symbolic link'):
    RunDir(tmp_path / 'run', x)
  assert precious.read_text() == 'precious'
  (tmp_path / 'link').symlink_to(tmp_path / 'elsewhere')  # the user's own
  (tmp_path / 'elsewhere').mkdir()
  RunDir(tmp_path / 'link', x)


@pytest.mark.parametrize('address', ['gs://bucket/x', 's3://bucket/x', 'hdfs://x/y'])
def test_cloud_storage_is_refused_by_name(address, tmp_path, monkeypatch, capsys):
  """Before compilation, and without a local folder of that name; gs:// without its extra."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  scheme = address.partition(':')[0]
  here = f'bmx does not read or write {scheme}: storage'
  why = 'gcsfs; pip install "bmx-jax[gcs]"' if scheme == 'gs' else here
  for words in ([f'--workdir={address}'], ['--workdir=run', f'--config.init.path={address}']):
    assert call([f'--config={DIGITS}', *words]) == 2
    assert why in message_of(capsys.readouterr().err)
  with pytest.raises(InputError, match=here):
    cache.enable(address)
  assert not list(tmp_path.iterdir())
  for part in (
    {'call': 'bmx.data.tables:table', 'target': 'y'}, {'call': 'bmx.data.arrays:arrays'},
    {'call': 'bmx.data.text.windows:tokens', 'length': 3, 'vocab_size': 3},
    {'call': 'bmx.data.text.windows:text', 'length': 3},
    {'call': 'bmx.data.text.tokenizer:load'},
  ):  # fmt: skip
    with pytest.raises(InputError, match=re.escape(why)):
      recipes.build(part | {'path': f'{address}.jsonl'}, 'data')


def test_home_directories_are_expanded(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert local('~/run') == tmp_path / 'run'
  np.savez(tmp_path / 'x.npz', x=np.ones((4, 2)), label=np.arange(4) % 2)
  assert arrays('~/x.npz').size == 4
  assert start.default_workdir(Request(None, 'x', '~/run')) == tmp_path / 'run'
  for path in ('~nobody-of-this-name/x', 'a\0b', '\ud800', 'x' * 300):
    with pytest.raises(InputError):
      local(path)


def test_default_workdirs_are_unique():
  request = Request(None, 'sweep')
  assert len({start.default_workdir(request) for _ in range(100)}) == 100


def test_a_platform_that_is_not_there(bmx, tmp_path):
  done = bmx(f'--config={DIGITS}', f'--workdir={tmp_path / "run"}', env={'JAX_PLATFORMS': 'cuda'})
  assert done.returncode == 2
  assert '\nerror: JAX_PLATFORMS=cuda: expected a platform of this machine' in done.stderr
  assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(('value', 'hint', 'right'), [
  (1, float, True), (1.5, int, False), (True, int, False), ([1, 'a'], tuple[int, str], True),
  ([1], tuple[int, str], False), (['a', 1], tuple[str, ...], False), (None, int | None, True),
  ({'a': [1]}, dict[str, list[float]], True), ({'a': 1}, dict[str, str], False),
  (3, Selection, True),
])  # fmt: skip
def test_types(value, hint, right):
  assert fits(value, hint) is right
