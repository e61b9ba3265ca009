"""The floors of the package: allowed imports, read from the syntax of every file."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / 'bmx'
FILES = sorted(PACKAGE.rglob('*.py'))

# A package may import from lower floors only. Packages of one floor never import each other.
FLOORS = [
  ['core'],
  ['config'],
  ['runtime'],
  ['parallel'],
  ['ops'],
  ['models', 'data', 'optim'],
  ['tasks'],
  ['train'],
  ['adapt', 'compress', 'feedback', 'privacy', 'interpret', 'serve', 'plan', 'export'],
  ['experiment'],
  ['modes'],
  ['arguments'],
  ['main'],
  ['cli'],
  ['__main__'],
]
FLOOR = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
CONFIG_READERS = {'config', 'experiment', 'arguments', 'main'}


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
  """`jax.jit` appears in parallel/sharding.py alone: elsewhere its cache would miss the rules."""
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


def nodes(path: pathlib.Path):
  return ast.walk(ast.parse(path.read_text()))


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_private_names_stay_in_their_package(path):
  """No name that begins with `_` is imported or used from another package of bmx."""
  here = own_room(path)
  modules = {}  # local name -> package, of modules imported from other packages
  for node in nodes(path):
    if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'bmx':
      for alias in node.names:
        there = room(f'{node.module}.{alias.name}')
        assert there == here or not alias.name.startswith('_'), f'{path}: {alias.name}'
        if there != here:
          modules[alias.asname or alias.name] = there
  used = [
    f'{node.value.id}.{node.attr}'
    for node in nodes(path)
    if isinstance(node, ast.Attribute)
    and isinstance(node.value, ast.Name)
    and node.value.id in modules
    and node.attr.startswith('_')
    and not node.attr.startswith('__')
  ]
  assert not used, f'{path} uses {used}'


# Reflection over modules and objects of other libraries: (file, attribute) -> reason. Attributes of
# bmx's own objects are declared: by a dataclass, a runtime_checkable Protocol, or Facts.
REFLECTION = {
  ('runtime/wire.py', 'TCP_KEEPIDLE'): 'absent from the socket module of some systems',
  ('data/text/clean.py', '__name__'): 'functions of the user, and objects that are called',
  ('config/stored.py', '__module__'): 'any object that a stored config may name',
  ('parallel/mesh.py', 'slice_index'): 'devices of jax: only those of TPU slices have it',
  ('data/text/documents.py', 'ndim'): 'values of TFDS: numpy scalars and Python objects',
  ('core/costs.py', 'eqns'): 'parameters of jax equations: jaxprs, closed or not',
  ('core/costs.py', 'jaxpr'): 'parameters of jax equations: jaxprs, closed or not',
  ('core/hardware.py', 'mallopt'): 'functions of the C library',
}


def reflections(path: pathlib.Path) -> set[tuple[str, str]]:
  """(file, attribute) of every getattr and hasattr with a literal name."""
  return {
    (path.relative_to(PACKAGE).as_posix(), node.args[1].value)
    for node in nodes(path)
    if isinstance(node, ast.Call)
    and getattr(node.func, 'id', '') in ('getattr', 'hasattr')
    and isinstance(node.args[1], ast.Constant)
  }


def test_attributes_are_declared_not_guessed():
  found = {pair for path in FILES for pair in reflections(path)}
  assert found == set(REFLECTION), 'declare the attribute, or give a reason in REFLECTION'
