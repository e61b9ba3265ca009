"""Recipes: overrides, errors that help, parts, and every recipe in configs/ against its callees."""

import ast
import inspect
import json
import subprocess
import sys
from typing import Literal

import pytest

from bmx import config as recipes
from bmx.core.errors import InputError
from tests.conftest import ROOT

FILES = sorted((ROOT / 'configs').glob('*.py'))

RECIPE = """
from bmx.config import base, check_variant


def get_config(variant: str = ''):
  c = base('a recipe of this test')
  c.length = 8
  c.folder = 'here'
  c.task = {
    'call': 'tests.test_config:Outer',
    'inner': {'call': 'tests.test_config:Inner', 'width': 3, 'length': c.get_ref('length')},
    'rate': 0.5,
    'bias': True,
    'name': 'a',
    'sizes': (1, 2),
    'empty': (),
  }
  c.eval.valid = {'width': 2}
  c.data = {'call': 'tests.test_config:Inner', 'width': 1, 'length': c.get_ref('length')}
  c.path = c.get_ref('folder') + '/file'
  if check_variant(variant, 'tiny', 'large') == 'tiny':
    c.task.inner.width = 1
  return c
"""


class Inner:
  def __init__(self, width: int, length: int, depth=2, seed=0):
    self.width, self.length, self.depth, self.seed = width, length, depth, seed


class Outer:
  def __init__(
    self, inner, rate: float, bias=False, name='', sizes=(), empty=(), *, seed=0,
    maker=print, scale: float = 1, limit: int | None = None, rule: 'int | str' = '',
    axes: tuple[str, ...] | None = None, of: Literal['sum', 'mean'] = 'sum', more=None,
  ):  # fmt: skip
    self.inner, self.rate, self.bias, self.name = inner, rate, bias, name
    self.sizes, self.empty, self.seed = sizes, empty, seed


def anything(**options):
  return options


@pytest.fixture
def load(tmp_path):
  """Overrides of a recipe -> its config."""
  path = tmp_path / 'recipe.py'
  path.write_text(RECIPE)
  return lambda *overrides, variant='': recipes.load(f'{path}{variant}', overrides)[0]


def test_load_names_the_run(tmp_path):
  (tmp_path / 'mine.py').write_text(RECIPE)
  assert recipes.load(str(tmp_path / 'mine.py'))[1] == 'mine'
  config, name = recipes.load(str(tmp_path / 'mine.py:tiny'))
  assert (name, config.task.inner.width) == ('mine-tiny', 1)


VALUES = {
  'steps=12': 12,
  'steps=-12': -12,
  'steps=12_000': 12_000,
  'task.rate=3': 3.0,
  'task.rate=1e-3': 1e-3,
  'task.bias=False': False,
  'task.bias=false': False,
  'task.bias=true': True,
  'task.name=b': 'b',
  'task.name=': '',
  'task.name=12': '12',
  'task.name=a=b': 'a=b',
  'task.name=(1,)': '(1,)',
  'task.sizes=(3,)': (3,),
  'task.sizes=(3, 4, 5)': (3, 4, 5),
  'task.sizes=()': (),
  'task.empty=(1, 2)': (1, 2),
  'rules.embed=()': (),
  'rules.embed=fsdp': ('fsdp',),
  'rules.embed=fsdp,model': ('fsdp', 'model'),
  'rules.embed=Yours, truly': ('Yours, truly',),
  "rules.batch=('data', 'fsdp')": ('data', 'fsdp'),
}


@pytest.mark.parametrize(('override', 'expected'), VALUES.items())
def test_overrides_have_the_type_of_the_leaf(load, override, expected):
  value = load(override)
  for key in override.partition('=')[0].split('.'):
    value = value[key]
  assert value == expected
  assert type(value) is type(expected)


# Words that the recipe does not list: parameters of a callee, by annotation or default; words of a
# data part for an `eval` entry; parts of the shared words.
UNLISTED = {
  'task.inner.depth=3': 3,
  'task.seed=3': 3,
  'task.scale=2': 2.0,
  'task.limit=7': 7,
  'task.rule=7': 7,
  'task.rule=all': 'all',
  'task.axes=data': ('data',),
  'task.of=mean': 'mean',
  'eval.valid.length=9': 9,
  'eval.valid.depth=9': 9,
  'eval.valid.batch_size=5': 5,
  'eval.valid.metrics=a.b:c': ('a.b:c',),
  'eval.valid2.width=4': 4,
  'eval.new.seed=4': 4,
  'init.teacher=DIR': 'DIR',
  'compute.embed=fsdp': ('fsdp',),
  'privacy.call=tests.test_config:anything': 'tests.test_config:anything',
  'hooks.texts.call=tests.test_config:Inner': 'tests.test_config:Inner',
  'task.more.call=tests.test_config:Inner': 'tests.test_config:Inner',
}


@pytest.mark.parametrize(('override', 'expected'), UNLISTED.items())
def test_words_that_the_recipe_does_not_list(load, override, expected):
  value = load(override)
  for key in override.partition('=')[0].split('.'):
    value = value[key]
  assert value == expected
  assert type(value) is type(expected)


def test_a_part_from_the_command_line(load):
  """In any order: callees come first."""
  words = ['grad.inner.width=3', 'grad.bias=true', 'grad.inner.call=tests.test_config:Inner',
           'grad.rate=1', 'grad.inner.length=4', 'grad.call=tests.test_config:Outer']  # fmt: skip
  with pytest.raises(InputError, match="unknown config key 'grad.inner'"):
    load(*words)
  del words[2]
  with pytest.raises(InputError, match=r"'grad.inner'; set --config.grad.inner.call=package"):
    load(*words)
  words.append('grad.inner.call=tests.test_config:Inner')
  built = recipes.build(load(*words).to_dict()['grad'], 'grad')
  assert (built.bias, built.rate, built.inner.width, built.inner.length) == (True, 1.0, 3, 4)


ILL_TYPED = {
  'steps=1.5': 'expected int such as 0',
  'steps=ten': 'expected int',
  'steps=': 'expected int',
  'steps=True': 'expected int',
  'steps=None': 'expected int',
  'task.rate=fast': 'expected float such as 0.5',
  'task.rate=True': 'expected float',
  'task.rate=__import__("os")': 'expected float',
  'task.bias=1': 'expected bool such as True',
  'task.bias=yes': 'expected bool',
  'task.sizes=3': r'expected tuple such as \(1, 2\)',
  'task.sizes=[3, 4]': 'expected tuple',
  'task.sizes={}': 'expected tuple',
  'task.sizes=wide': 'expected',
  'task=3': 'is a part with keys',
}


@pytest.mark.parametrize(('override', 'message'), ILL_TYPED.items())
def test_another_type_is_refused(load, override, message):
  with pytest.raises(InputError, match=message) as caught:
    load(override)
  assert f'--config.{override.partition("=")[0]}' in str(caught.value)


UNKNOWN = {
  'stpes=3': "unknown config key 'stpes'; did you mean 'steps'",
  'task.rat=3': "unknown config key 'task.rat'; did you mean 'rate'",
  'tsak.rate=3': "unknown config key 'tsak'; did you mean 'task'",
  'task.innre.width=3': "unknown config key 'task.innre'; did you mean 'inner'",
  'task.inner.widht=3': "unknown config key 'task.inner.widht'; did you mean 'width'",
  'task.inner.deph=3': "unknown config key 'task.inner.deph'; did you mean 'depth'",
  'task.inner.depth=deep': 'task.inner.depth=deep: expected int such as 2',
  'task.maker=3': 'the type of this argument is not a number, .*set it in the recipe',
  'eval.vaild.split=x': "unknown config key 'eval.vaild'; did you mean 'valid'",
  'eval.valid.widht=3': "unknown config key 'eval.valid.widht'; did you mean 'width'",
  'eval.valid.metrics=3': 'eval.valid.metrics=3: expected tuple',
  'init.paht=x': "unknown config key 'init.paht'; did you mean 'path'",
  'hooks.texts.every=3': r'set --config\.hooks\.texts\.call=',
  'grad.steps=3': "unknown config key 'grad.steps'",
  'compute.embde=fsdp': "unknown config key 'compute.embde'",
  'steps.more=3': "unknown config key 'steps'",
  'xyzzy=3': "unknown config key 'xyzzy'; known: .*batch_size",
  'mesh.modle=3': "unknown config key 'mesh.modle'; did you mean 'model'",
  'steps': r'--config\.steps has no value',
}


@pytest.mark.parametrize(('override', 'message'), UNKNOWN.items())
def test_unknown_keys_help(load, override, message):
  with pytest.raises(InputError, match=message):
    load(override)


def test_unknown_variant(load):
  with pytest.raises(InputError, match="unknown variant 'tinny'; did you mean 'tiny'"):
    load(variant=':tinny')


def test_a_recipe_that_is_not_there(tmp_path):
  (tmp_path / 'recipe.py').write_text(RECIPE)
  with pytest.raises(
    InputError, match='rceipe.py: expected a recipe or a file; did you mean .*recipe.py'
  ):
    recipes.load(str(tmp_path / 'rceipe.py'))
  for path in ('', ':tiny', str(tmp_path), str(tmp_path / 'no' / 'where.py')):
    with pytest.raises(InputError, match='expected a recipe or a file'):
      recipes.load(path)


def test_a_file_that_is_no_recipe(tmp_path):
  (tmp_path / 'other.py').write_text('x = 1\n')
  with pytest.raises(InputError, match=r'other\.py: expected a recipe; define get_config'):
    recipes.load(str(tmp_path / 'other.py'))


def test_ties_hold_after_an_override(load):
  config = load('length=32', 'folder=there')
  assert config.task.inner.length == config.data.length == config.length == 32
  assert config.path == 'there/file'
  assert load('path=elsewhere').path == 'elsewhere'
  assert load('path=elsewhere').folder == 'here'


def test_ties_of_the_recipes():
  config, _ = recipes.load(str(ROOT / 'configs/gpt_char.py'), ['length=48', 'dtype=bfloat16'])
  assert config.task.model.max_seq_len == config.data.length == 48
  assert config.task.model.dtype == 'bfloat16'
  plain = recipes.plain(config)
  assert plain['task']['model']['max_seq_len'] == plain['data']['length'] == 48


def test_a_config_survives_json(load):
  plain = recipes.plain(load('task.sizes=(3,)'))
  again = recipes.from_plain(json.loads(json.dumps(plain)))
  assert recipes.plain(again) == plain
  recipes.apply(again, ['task.sizes=(5, 6)', 'task.rate=2'])
  assert (again.task.sizes, again.task.rate) == ((5, 6), 2.0)


@pytest.mark.parametrize(
  ('path', 'message'),
  [
    ('nonsense', "'nonsense': expected an import path 'package.module:name'"),
    ('json:', 'expected an import path'),
    ('no_such_package:x', 'cannot be imported: No module named'),
    ('json:dmups', "module json has no 'dmups'; did you mean 'dumps'"),
    (':x', 'import'),
    ('.json:x', 'import'),
  ],
)
def test_resolve_says_what_is_wrong(path, message):
  with pytest.raises(InputError, match=message):
    recipes.resolve(path)


def test_resolve_finds():
  assert recipes.resolve('json:dumps') is json.dumps


def part(name, **arguments):
  return {'call': f'tests.test_config:{name}', **arguments}


def test_build_nests_and_injects():
  inner = part('Inner', width=3, length=4)
  built = recipes.build(part('Outer', inner=inner, rate=1.0), 'task', seed=7, unused=1)
  assert (type(built).__name__, type(built.inner).__name__) == ('Outer', 'Inner')
  assert (built.inner.width, built.inner.length, built.inner.depth) == (3, 4, 2)
  assert (built.seed, built.inner.seed) == (7, 7)
  own = recipes.build(part('Inner', width=3, length=4, seed=1), 'task', seed=7)
  assert own.seed == 1


def test_build_of_a_callee_that_takes_anything():
  assert recipes.build(part('anything', a=1, b={'c': 2}), 'x') == {'a': 1, 'b': {'c': 2}}


BAD_PARTS = {
  'wrong keyword': (
    part('Inner', widht=3, length=4),
    r"task: tests.test_config:Inner takes no argument 'widht'; did you mean 'width'\?\n"
    r'it takes \(width, length, depth, seed\)',
  ),
  'missing': (part('Inner', width=3), 'task: tests.test_config:Inner needs length; add it'),
  'missing inside': (
    part('Outer', rate=1.0, inner=part('Inner')),
    r'task\.inner: tests.test_config:Inner needs width, length',
  ),
  'wrong inside': (
    part('Outer', rate=1.0, inner=part('Inner', width=1, length=1, x=2)),
    r"task\.inner: tests.test_config:Inner takes no argument 'x'",
  ),
  'no call': ({'width': 3}, r"task: expected a part with 'call'; it has \['width'\]"),
  'not callable': (part('RECIPE'), 'tests.test_config:RECIPE is not callable'),
  'not there': (part('Innre'), "no 'Innre'; did you mean 'Inner'"),
  'no signature': ({'call': 'builtins:dict'}, 'builtins:dict'),
}


@pytest.mark.parametrize(('bad', 'message'), BAD_PARTS.values(), ids=BAD_PARTS)
def test_build_says_what_is_wrong(bad, message):
  with pytest.raises(InputError, match=message):
    recipes.build(bad, 'task')


def test_linens_own_arguments_are_not_offered():
  with pytest.raises(InputError, match='takes no argument') as caught:
    recipes.build({'call': 'bmx.models.mlp:MLP', 'num_outputs': 3, 'nmae': 'x'}, 'model')
  assert 'parent' not in str(caught.value)


def variants(path):
  """'' and what the recipe's source gives to `check_variant`."""
  calls = [
    node
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'check_variant'
  ]
  assert len(calls) == 1, f'{path.name} does not check its variant'
  return ['', *(argument.value for argument in calls[0].args[1:])]


CASES = [(path.name, variant) for path in FILES for variant in variants(path)]


@pytest.fixture(params=CASES, ids=lambda case: ':'.join(case).rstrip(':'))
def recipe(request):
  """Every recipe and variant, as plain values."""
  name, variant = request.param
  config, _ = recipes.load(str(ROOT / 'configs' / name) + (f':{variant}' if variant else ''))
  return recipes.plain(config)


def leaves(value, name=''):
  if isinstance(value, dict):
    for key, inner in value.items():
      yield from leaves(inner, f'{name}.{key}')
  else:
    yield name, value


def parts(value, name):
  """(name, part) of a part and of every part inside it."""
  if isinstance(value, dict):
    if 'call' in value:
      yield name, value
    for key, inner in value.items():
      yield from parts(inner, f'{name}.{key}')


def evals(config):
  """The parts that the `eval` entries are, and the functions they name."""
  for name, entry in config['eval'].items():
    metrics = entry.pop('metrics', ())
    entry.pop('batch_size', None)  # of the batches, not of the data
    yield name, entry if 'call' in entry else {**config['data'], **entry}, metrics


def test_every_part_of_every_recipe_fits_its_callee(recipe):
  found = [p for word in ('task', 'data', 'optimizer', 'schedule', 'grad')
           for p in parts(recipe[word], word)]  # fmt: skip
  names = {name for name, _ in found}
  assert names >= {'task', 'data', 'optimizer', 'schedule'}
  assert names & {'task.model', 'task.inner.model'}
  for name, entry, metrics in evals(recipe):
    found += parts(entry, f'eval.{name}')
    assert all(callable(recipes.resolve(path)) for path in metrics)
  for name, p in found:
    module, _, attribute = p['call'].partition(':')
    callee = getattr(__import__(module, fromlist=['_']), attribute)
    known = inspect.signature(callee).parameters
    if not any(k.kind is k.VAR_KEYWORD for k in known.values()):
      assert set(p) - {'call'} <= set(known), f'{name}: {p["call"]}'


def test_a_recipe_is_data(recipe):
  """Scalars, strings and flat tuples, which JSON holds; no leaf is None."""
  for name, value in leaves(recipe):
    items = value if isinstance(value, tuple) else (value,)
    assert all(type(x) in (bool, int, float, str) for x in items), name
    assert len({type(x) for x in items}) <= 1, name
  again = recipes.from_plain(json.loads(json.dumps(recipe)))
  assert recipes.plain(again) == recipe


def test_the_words_are_the_same_in_every_recipe(recipe):
  shared = recipes.plain(recipes.base())
  assert set(recipe) >= set(shared)
  facts = {'classes', 'vocab', 'length', 'folder', 'paths', 'field', 'tokenizer', 'data_dir',
           'begin'}  # fmt: skip
  assert set(recipe) - set(shared) <= facts
  for word in ('mesh', 'rules', 'every', 'guard', 'stop', 'keep'):
    assert set(recipe[word]) == set(shared[word])
  assert recipe['description']
  assert bool(recipe['steps']) != bool(recipe['epochs'])


def test_every_recipe_has_a_tiny_variant():
  assert FILES
  assert all('tiny' in variants(path) for path in FILES)


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_a_recipe_refuses_what_it_does_not_have(path):
  with pytest.raises(InputError, match="unknown variant 'tinny'; did you mean 'tiny'"):
    recipes.load(f'{path}:tinny')


def test_reading_a_recipe_imports_no_jax():
  code = (
    'import pathlib, sys; from bmx import config\n'
    'for path in pathlib.Path("configs").glob("*.py"): config.load(f"{path}:tiny", ["seed=1"])\n'
    'assert not {"jax", "flax", "tensorflow"} & set(sys.modules)'
  )
  command = [sys.executable, '-c', code]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(('group', 'word', 'right'), [
  ('watchdog', 'second', 'seconds'),
  ('guard', 'patence', 'patience'),
  ('every', 'sav', 'save'),
  ('generate', 'max_tokens', 'max_new_tokens'),
])  # fmt: skip
def test_a_word_that_a_recipe_misspells(group, word, right):
  config = recipes.base()
  config[group] = {**config[group], word: 1}
  with pytest.raises(InputError, match=f'{group}.{word}=1: .*did you mean {right!r}'):
    recipes.check_words(recipes.plain(config))


def test_a_group_of_words_is_a_mapping():
  with pytest.raises(InputError, match='guard=5: expected words patience, spike'):
    recipes.check_words(recipes.plain(recipes.base()) | {'guard': 5})
