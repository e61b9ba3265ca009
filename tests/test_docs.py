"""README and docstrings say what runs."""

import ast
import doctest
import importlib
import json
import pathlib
import pkgutil
import re
import shlex

import pytest

import bmx as package
from bmx import arguments as argument_parser
from bmx import cli, modes
from bmx import config as recipes
from bmx.core import hardware
from bmx.data.text.tokenizer_train import trained
from tests.conftest import ROOT

README = (ROOT / 'README.md').read_text()
MODULES = [m.name for m in pkgutil.walk_packages(package.__path__, 'bmx.')]


def blocks(language: str) -> list[str]:
  return re.findall(rf'```{language}\n(.*?)```', README, re.DOTALL)


@pytest.mark.parametrize('name', MODULES)
def test_docstring_examples(name):
  result = doctest.testmod(importlib.import_module(name))
  assert result.failed == 0


def test_every_module_imports_without_a_warning():
  assert len(MODULES) > 30


@pytest.mark.parametrize('code', blocks('python'))
def test_python_of_the_readme(code):
  exec(compile(code, 'README.md', 'exec'), {})


def test_map_names_every_room():
  rooms = {p.stem if p.is_file() else p.name for p in (ROOT / 'bmx').iterdir() if p.name[0] != '_'}
  named = set(re.findall(r'\| `bmx/(\w+)', README))
  assert rooms - {'py'} == named


def test_commands_of_the_readme_name_what_exists():
  commands = [line for block in blocks('bash') for line in block.splitlines()]
  recipes = [
    w for c in commands for w in shlex.split(c, comments=True) if w.startswith('--config=')
  ]
  assert recipes
  for word in recipes:
    assert (ROOT / word.removeprefix('--config=').partition(':')[0]).is_file(), word


def test_short_commands_of_the_readme_are_understood():
  """Lines that begin with `bmx`: the mode and the recipe exist, and every word can be set."""
  lines = [line for block in blocks('bash') for line in block.splitlines()]
  commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith('bmx ')]
  assert commands
  for command in commands:
    arguments = cli.translate(command)
    given = dict(word.removeprefix('--').split('=', 1) for word in arguments)
    assert given['mode'] in modes.MODES
    words = [f'{k.removeprefix("config.")}={v}' for k, v in given.items() if 'config.' in k]
    assert {k for k in given if 'config.' not in k} <= set(argument_parser.FLAGS)
    if 'config' in given:
      recipes.load(given['config'], words)


START = r'(?:bmx|python -m bmx\.main|RUN=1 scripts/\S+ run)'
COMMAND = re.compile(rf'^(?:    )?({START} .*)$|`({START} [^`]*)`', re.MULTILINE)
DOCS = {
  p.name: [a or b for a, b in COMMAND.findall(p.read_text())] for p in (ROOT / 'docs').glob('*.md')
}


@pytest.mark.parametrize('page', sorted(name for name, commands in DOCS.items() if commands))
def test_commands_of_the_docs_are_understood(page):
  """Mode, flags, recipe and words exist; the words of a run's own recipe are those of gpt_char."""
  for command in DOCS[page]:
    words = shlex.split(command, comments=True)
    flagged = [word for word in words if word.startswith('--')]
    arguments = cli.translate(words[1:]) if words[0] == 'bmx' else flagged
    args, overrides = argument_parser.parse(arguments, 'bmx')
    if args.mode == 'sweep':
      overrides, _ = recipes.split(overrides)
    if args.config or overrides:
      recipes.load(args.config or 'gpt_char', overrides)
    flags = args.step, args.input, tuple(args.prompt), args.topology, args.words, tuple(args.run)
    modes.check_flags(args.mode, modes.Request(None, '', args.workdir, *flags))


def python_of(page: str) -> list[str]:
  return re.findall(r'```python\n(.*?)```', (ROOT / 'docs' / page).read_text(), re.DOTALL)


def test_every_page_with_python_is_tested():
  """Blocks of language.md that import are executed in test_language.py."""
  pages = [p.name for p in (ROOT / 'docs').glob('*.md')]
  assert {p for p in pages if python_of(p)} == {'language.md', 'report.md', 'tables.md'}


def test_parts_of_the_report_page_take_their_words():
  (code,) = python_of('report.md')
  c, _ = recipes.load('gpt_char:tiny')
  with c.unlocked():
    exec(code, {'c': c})
  assert len(c.writers) == 2
  for part in c.writers.values():
    words = recipes.parameters(recipes.resolve(part.call), part.call)
    assert {*part} - {'call'} <= {*words}


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


def test_run_commands_of_the_readme(bmx, tmp_path):
  """The block under 'A run', shortened, in a folder of its own."""
  block = next(b for b in blocks('bash') if '--workdir=runs/first' in b)
  for line in block.splitlines():
    words = [w for w in shlex.split(line, comments=True)[3:] if not w.startswith('--config.steps')]
    words = [w.replace('runs/first', str(tmp_path / 'first')) for w in words]
    words = [w.replace('gpt_char.py', 'gpt_char.py:tiny') for w in words]
    words = [w.replace('--step=best', '--step=latest') for w in words]
    result = bmx(*words, '--config.every.save=10' if 'configs' in line else '--step=20')
    assert result.returncode == 0, (words, result.stderr)
  (path,) = pathlib.Path(tmp_path, 'first', 'predictions').glob('valid.*.jsonl')
  predicted = path.read_text().splitlines()
  assert len(predicted) > 1000
