"""Examples of README, docs and docstrings run; commands are in test_commands.py."""

import ast
import doctest
import importlib
import json
import pkgutil
import re
import runpy

import pytest

import bmx as package
from bmx import config as recipes
from bmx.core import hardware
from bmx.data.text.tokenizer_train import trained
from tests.conftest import ROOT
from tests.test_architecture import FLOOR

README = (ROOT / 'README.md').read_text()
MODULES = [m.name for m in pkgutil.walk_packages(package.__path__, 'bmx.')]


@pytest.mark.parametrize('name', MODULES)
def test_docstring_examples(name):
  result = doctest.testmod(importlib.import_module(name))
  assert result.failed == 0


def test_every_module_imports_without_a_warning():
  assert len(MODULES) > 30


def test_map_names_every_room():
  """The table of packages, each on its floor."""
  rooms = {p.stem if p.is_file() else p.name for p in (ROOT / 'bmx').iterdir() if p.name[0] != '_'}
  page = (ROOT / 'docs/architecture.md').read_text()
  floors = re.findall(r'^\| (\w+) \| `bmx/(\w+)', page, re.MULTILINE)
  assert rooms - {'py'} == {name for _, name in floors}
  for floor in {floor for floor, _ in floors}:
    named = {FLOOR[name] for other, name in floors if other == floor and name != 'arguments'}
    assert len(named) == 1, floor
  order = [FLOOR[name] for _, name in floors if name != 'arguments']
  assert order == sorted(order, reverse=True)


@pytest.mark.parametrize('code', re.findall(r'```python\n(.*?)```', README, re.DOTALL))
def test_python_of_the_readme(code, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  scope: dict = {}
  exec(compile(code, 'README.md', 'exec'), scope)
  assert len(scope['rows']) == 360
  assert (tmp_path / 'runs/python/report.html').is_file()


def test_the_notebook_runs(tmp_path, monkeypatch):
  """Its stored outputs are those of now, but for numbers."""
  script = runpy.run_path(str(ROOT / 'scripts/notebook.py'))
  notebook = json.loads((ROOT / 'docs/first_run.ipynb').read_text())
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  values = script['execute'](notebook)
  words = lambda data: {k: re.findall('[a-z_/]{3,}', ''.join(v)) for k, v in data.items()}
  for cell, value in zip(script['codes'](notebook), values, strict=True):
    (stored,) = cell['outputs']
    if 'text/html' not in stored['data']:
      assert words(stored['data']) == words(script['shown'](value))
  table, built, summary, metrics, rows, curve = values
  assert built[0] > 100 and summary['eval/valid/accuracy'] > 0.8
  assert metrics['eval/valid/loss'] <= summary['eval/valid/loss'] + 1e-6
  assert [row['prediction'] for row in rows] == ['class_0', 'class_0']
  assert curve.data.count('<polyline') == 2


def test_results_of_the_readme_are_those_of_the_page():
  """A number in the README's column stands in a row of the same recipe."""
  page = (ROOT / 'docs/recipes.md').read_text()
  section = README.partition('## Recipes')[2].partition('\n## ')[0]
  rows = [line for line in section.splitlines() if line.startswith('| `')]
  assert len(rows) >= 9
  for row in rows:
    names, reached = re.findall(r'`(\w+)`', row), row.split('|')[3]
    lines = [line for line in page.splitlines() if any(f'`{name}`' in line for name in names)]
    assert lines, row
    for value in re.findall(r'\d+(?:\.\d+)?', reached):
      assert any(value in line for line in lines), (row, value)


def python_of(page: str) -> list[str]:
  return re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / page).read_text(), re.DOTALL)


PYTHON = {p.name: python_of(p.name) for p in (ROOT / 'docs').glob('*.md')}


def test_every_block_of_python_is_tested():
  """Blocks of words here; others here, in test_language.py, adapt/, interpret/, privacy/, ..."""
  executed = {page for page, code in PYTHON.items() if any(c[:2] != 'c.' for c in code)}
  assert executed <= {
    'adapt.md',
    'chat.md',
    'feedback.md',
    'federated.md',
    'interpret.md',
    'language.md',
    'own_parts.md',
    'tables.md',
  }


def parts(value):
  """Every part of a config: a dict with `call`."""
  if isinstance(value, dict):
    if 'call' in value:
      yield value
    for inner in value.values():
      yield from parts(inner)


@pytest.mark.parametrize(
  ('page', 'code'), [(p, c) for p, blocks in PYTHON.items() for c in blocks if c[:2] == 'c.']
)
def test_parts_of_a_page_take_their_words(page, code):
  """What a block assigns to a word of the config `c`: callees exist, and have these parameters."""
  c, _ = recipes.load('gpt_char:tiny')
  for statement in ast.parse(code).body:
    with c.unlocked():
      exec(compile(ast.Module([statement], []), page, 'exec'), {'c': c})
    target = ast.unparse(statement.targets[0])
    known = {'call', 'every'} if target.startswith('c.hooks.') else {'call'}
    value = eval(target, {'c': c})
    for part in parts(value.to_dict() if hasattr(value, 'to_dict') else value):
      words = recipes.parameters(recipes.resolve(part['call']), part['call'])
      open_ended = any(p.kind is p.VAR_KEYWORD for p in words.values())
      assert open_ended or {*part} - known <= {*words}, part['call']


def test_python_of_your_own_parts():
  (code,) = python_of('own_parts.md')
  exec(compile(code, 'own_parts.md', 'exec'), {})


@pytest.fixture
def here(tmp_path, monkeypatch):
  """A folder with the files that the pages name."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  (tmp_path / 'a.jsonl').write_text('{"text": "One text, and some words of it."}\n' * 9)
  (tmp_path / 'DIR').mkdir()
  coder = trained('bpe', 300, ('a.jsonl',))
  (tmp_path / 'DIR/tokenizer.json').write_text(coder.text)
  hub_config = {'model_type': 'gpt2', 'vocab_size': 300, 'n_positions': 8, 'n_embd': 8,
                'n_layer': 1, 'n_head': 2, 'architectures': ['GPT2LMHeadModel']}  # fmt: skip
  (tmp_path / 'DIR/config.json').write_text(json.dumps(hub_config))


def test_parts_of_the_language_page_are_built(here):
  """Every part that a block assigns to a word of the config `c`."""
  blocks = [code for code in python_of('language.md') if code.startswith('c.')]
  assert len(blocks) >= 3
  for code in blocks:
    c, _ = recipes.load('gpt_char:tiny')
    c.init.path = 'DIR'
    for statement in ast.parse(code).body:
      assert isinstance(statement, ast.Assign)
      with c.unlocked():
        exec(compile(ast.Module([statement], []), 'language.md', 'exec'), {'c': c})
      part = eval(ast.unparse(statement.targets[0]), {'c': c}).to_dict()
      settled = recipes.settle(part, hardware.preset('cpu', 'float32'))
      assert recipes.build(settled, ast.unparse(statement.targets[0])) is not None


def test_python_of_the_table_page(here):
  frame = {'age': [*range(20, 84)], 'churned': ['yes', 'no', 'no', 'no'] * 16}
  scope: dict = {'frame': frame, 'new_frame': {'age': [30, 40]}}
  for code in python_of('tables.md'):
    exec(compile(code, 'tables.md', 'exec'), scope)
  assert 0 <= scope['metrics']['eval/valid/accuracy'] <= 1
