"""The floors of the house: what may import what, read from the syntax of every file."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / 'bmx'
FILES = sorted(PACKAGE.rglob('*.py'))

# A room may import from lower floors only. Rooms of one floor never import each other.
FLOORS = [
  ['core'],
  ['config'],
  ['runtime'],
  ['parallel'],
  ['ops'],
  ['models', 'data', 'optim'],
  ['tasks'],
  ['train'],
  ['adapt', 'compress', 'privacy', 'interpret', 'serve', 'plan'],
  ['experiment'],
  ['modes'],
  ['main'],
  ['cli'],
  ['__main__'],
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
CONFIG_READERS = {'config', 'experiment', 'main'}


def room(module: str) -> str:
  """'bmx.core.tree' -> 'core'; '' for bmx itself."""
  return (module.split('.') + [''])[1]


def imports(path: pathlib.Path) -> list[str]:
  """Modules that a file imports anywhere: in functions and under TYPE_CHECKING too."""
  found = []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f'{path}: relative import'
      names = [f'{node.module}.{a.name}' for a in node.names] if node.module == 'bmx' else []
      found += names or [node.module or '']
  return found


def own_room(path: pathlib.Path) -> str:
  first = path.relative_to(PACKAGE).parts[0]
  return first.removesuffix('.py')


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
  here = own_room(path)
  if here == '__init__':
    assert not [module for module in imports(path) if module.split('.')[0] == 'bmx']
    return
  for module in imports(path):
    there = room(module)
    if module.split('.')[0] != 'bmx' or there == here or there == '__version__':
      continue
    assert FLOOR[there] < FLOOR[here], f'{here} (floor {FLOOR[here]}) imports {module}'


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_short(path):
  assert len(path.read_text().splitlines()) <= 400


def test_config_stops_at_the_door():
  for path in FILES:
    if own_room(path) in CONFIG_READERS:
      continue
    bad = {'ml_collections', 'argparse', 'absl.flags'} & set(imports(path))
    assert not bad, f'{path} imports {bad}'


def test_no_room_for_leftovers():
  assert not [p for p in FILES if p.name in ('utils.py', 'helpers.py', 'misc.py')]


def test_one_jit():
  """`jax.jit` appears in parallel/sharding.py alone: elsewhere its cache would not see the
  rules."""
  users = {
    path.relative_to(PACKAGE).as_posix()
    for path in FILES
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Attribute)
    and node.attr in ('jit', 'pjit')
    and isinstance(node.value, ast.Name)
    and node.value.id == 'jax'
  }
  assert users == {'parallel/sharding.py'}


def test_no_print():
  calls = [
    path
    for path in FILES
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'print'
  ]
  assert not calls
