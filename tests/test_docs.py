"""README and docstrings say what runs."""

import doctest
import importlib
import pathlib
import pkgutil
import re
import shlex

import pytest

import bmx as package
from bmx import cli, main, modes
from bmx import config as recipes
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
    assert {k for k in given if 'config.' not in k} <= set(main.FLAGS)
    if 'config' in given:
      recipes.load(given['config'], words)


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
  predicted = pathlib.Path(tmp_path, 'first', 'predictions.jsonl').read_text().splitlines()
  assert len(predicted) > 1000
