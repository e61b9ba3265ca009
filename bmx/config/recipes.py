"""Recipes: finding a recipe's file and loading its config."""

import ast
import pathlib
import runpy
from collections.abc import Sequence
from typing import Any, NamedTuple

from bmx.config.overrides import apply
from bmx.core.errors import InputError, did_you_mean
from bmx.core.paths import local


def folder() -> pathlib.Path:
  """The folder of bmx's recipes: bmx/configs of a wheel, configs/ of a checkout."""
  package = pathlib.Path(__file__).parent.parent
  installed = package / 'configs'
  return installed if installed.is_dir() else package.parent / 'configs'


def names() -> list[str]:
  """Names of bmx's recipes."""
  return sorted(path.stem for path in folder().glob('*.py') if path.stem != '__init__')


def find(recipe: str) -> pathlib.Path:
  """The file of a recipe.

  Args:
    recipe: a name such as 'gpt_char', or the path of a file.

  Raises:
    InputError: the recipe or file does not exist.
  """
  path = local(recipe)
  if path.suffix == '.py' or len(path.parts) > 1:
    if path.is_file():
      return path
    known = [*names(), *sorted(map(str, path.parent.glob('*.py')))]
    known = [path.stem] if path.stem in names() else known
  else:
    if recipe and (folder() / f'{recipe}.py').is_file():
      return folder() / f'{recipe}.py'
    known = names()
  if recipe and path.is_dir():
    fix = f'; the directory of a run is given as --workdir={recipe}'
  elif path.is_file():
    fix = f'; a file of data is given as --config.data.path={recipe}, beside a recipe'
  elif path.stem in known:
    fix = f'; did you mean {path.stem!r}, the recipe of bmx?'
  else:
    fix = did_you_mean(recipe, known)
  raise InputError(f'--config={recipe}: expected a recipe or a file{fix}')


class About(NamedTuple):
  """A recipe of bmx, as its docstring describes it.

  Attributes:
    name: for `--config`.
    variants: ':tiny' and others.
    description: the first sentence.
    reaches: the paragraph that begins with 'Reaches'; '' without one.
  """

  name: str
  variants: tuple[str, ...]
  description: str
  reaches: str


def about(name: str) -> About:
  """Reads the docstring and the variants of a recipe, without running it."""
  tree = ast.parse(find(name).read_text())
  paragraphs = [' '.join(p.split()) for p in (ast.get_docstring(tree) or '').split('\n\n')]
  reaches = next((p for p in paragraphs if p.startswith('Reaches')), '')
  checks = [
    node
    for node in ast.walk(tree)
    if isinstance(node, ast.Call)
    and isinstance(node.func, ast.Name)
    and node.func.id == 'check_variant'
  ]
  known = [a.value for node in checks for a in node.args[1:] if isinstance(a, ast.Constant)]
  return About(name, tuple(map(str, known)), paragraphs[0], reaches)


def load(path: str, overrides: Sequence[str] = ()) -> tuple[Any, str]:
  """Loads a recipe; returns its config and its name.

  Args:
    path: a recipe's name or file, optionally with ':VARIANT', such as 'gpt_char:tiny'.
    overrides: 'a.b=value' texts.

  Raises:
    InputError: an unknown recipe or variant; an override of an unknown word or of another type.
  """
  recipe, _, variant = path.partition(':')
  file = find(recipe)
  get_config = runpy.run_path(str(file)).get('get_config')
  if get_config is None:
    raise InputError(f'--config={path}: expected a recipe; define get_config(variant) in {file}')
  config = get_config(variant)
  apply(config, overrides)
  return config, file.stem + (f'-{variant}' if variant else '')


def check_variant(given: str, *known: str) -> str:
  """Returns `given` if it is '' or known. Raises InputError otherwise."""
  if given and given not in known:
    raise InputError(f'unknown variant {given!r}{did_you_mean(given, known)}')
  return given
