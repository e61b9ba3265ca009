"""Recipes: where they are loaded, overridden and turned into objects. Imports no jax.

A recipe is a file with `get_config(variant='') -> ConfigDict`. A *part* of it is a dict with
`call`, an import path 'package.module:name'; its other keys are keyword arguments.
"""

import ast
import difflib
import importlib
import inspect
import pathlib
import runpy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from bmx.core.errors import InputError, did_you_mean
from bmx.core.layout import AXES, RULES


def base(about: str = '') -> Any:
  """The words every recipe shares, with their defaults."""
  c = ConfigDict()
  c.about = about  # one line for people
  c.seed = 0
  c.steps = 0  # updates; or
  c.epochs = 0.0  # passes over the data
  c.batch_size = 64  # global: all devices, all processes
  c.dtype = 'float32'  # of the computation; parameters are float32
  c.task = ConfigDict()  # part: what is minimised
  c.data = ConfigDict()  # part
  c.eval = ConfigDict()  # name -> what differs from `data`; `metrics` are functions of predictions
  c.optimizer = ConfigDict()  # part
  c.schedule = ConfigDict()  # part
  c.grad = ConfigDict()  # part, around the gradient; wrappers nest by `inner`
  c.init = {
    'path': '',  # weights to start from: a run of bmx, or a Hugging Face directory
    'fresh': '',  # regex of the parameters that start anew all the same
  }
  c.generate = {
    'tokens': 100,  # at most, for each prompt
    'temperature': 1.0,  # 0 is greedy: always the likeliest
    'top_k': 0,  # of the likeliest tokens only; 0 is all
    'top_p': 1.0,  # of the fewest tokens that have this probability together
    'penalty': 1.0,  # divides the scores of tokens that there are already
    'beams': 1,  # texts that are followed at a time; above 1 nothing is drawn
    'stop': (),  # texts that end it
    'stream': True,  # print as it is made
  }
  c.mesh = {axis: 1 for axis in AXES} | {'data': -1}
  c.rules = dict(RULES)  # where dimensions are stored
  c.compute = ConfigDict()  # where they are computed with, if not as stored without fsdp
  c.every = {'log': 50, 'eval': 0, 'save': 0}  # steps; 0 is only at the end
  c.ema = 0.0  # decay of the parameters' moving average
  c.guard = {
    'patience': 10,  # non-finite steps in a row before the run ends; 0 is never
    'spike': 0.0,  # refuse a gradient norm above this many times its running mean; 0 refuses none
  }
  c.watchdog = {'seconds': 0.0}  # without a finished step, and the run ends; 0 is never
  c.stop = {'metric': '', 'mode': 'min', 'patience': 3}  # early stopping
  c.keep = {
    'last': 2,
    'metric': '',
    'mode': 'min',
  }  # checkpoints: the newest, and the best by metric
  c.dispatch = 0  # steps per jitted call; 0 chooses
  c.cache = ''  # folder of compiled programs; '' is in the user's cache folder, 'off' is none
  return c


def check_variant(given: str, *known: str) -> str:
  """`given`, if it is '' or known. Raises InputError otherwise."""
  if given and given not in known:
    raise InputError(f'unknown variant {given!r}{did_you_mean(given, known)}')
  return given


def recipes_folder() -> pathlib.Path:
  """The folder of bmx's recipes: beside the modules of a wheel, or configs/ of a checkout."""
  package = pathlib.Path(__file__).parent
  installed = package / 'configs'
  return installed if installed.is_dir() else package.parent / 'configs'


def find(recipe: str) -> pathlib.Path:
  """The file of a recipe: a path to a file, or the name of a recipe of bmx.

  Raises InputError if there is no such file or recipe.
  """
  path = pathlib.Path(recipe)
  folder = recipes_folder()
  if path.suffix == '.py' or len(path.parts) > 1:
    if path.is_file():
      return path
    near = sorted(map(str, path.parent.glob('*.py'))) + sorted(p.stem for p in folder.glob('*.py'))
  else:
    if recipe and (folder / f'{recipe}.py').is_file():
      return folder / f'{recipe}.py'
    near = sorted(p.stem for p in folder.glob('*.py') if p.stem != '__init__')
  raise InputError(f'--config={recipe}: expected a recipe or a file{did_you_mean(recipe, near)}')


def load(path: str, overrides: Sequence[str] = ()) -> tuple[Any, str]:
  """-> (config, name). `path` is a recipe's name or file, with :VARIANT after it or not; an
  override is 'a.b=value'.

  Raises:
    InputError: no such recipe or variant; an override of what is not there, or of another type.
  """
  recipe, _, variant = path.partition(':')
  file = find(recipe)
  found = runpy.run_path(str(file)).get('get_config')
  if found is None:
    raise InputError(f'--config={path}: expected a recipe; define get_config(variant) in {file}')
  config = found(variant)
  apply(config, overrides)
  return config, file.stem + (f'-{variant}' if variant else '')


def apply(config: Any, overrides: Sequence[str]) -> None:
  """Sets leaves from 'a.b=value' texts, each of the type it has."""
  for override in overrides:
    name, equals, text = override.partition('=')
    if not equals:
      raise InputError(f'--config.{name} has no value; write --config.{name}=VALUE')
    *folders, leaf = name.split('.')
    place: Any = config
    for depth, folder in enumerate(folders):
      if folder not in place or not isinstance(place[folder], ConfigDict):
        raise _unknown('.'.join(folders[: depth + 1]), folder, place, config)
      place = place[folder]
    if leaf not in place:
      raise _unknown(name, leaf, place, config)
    with place.unlocked():
      place[leaf] = _parse(name, text, place[leaf])


def _unknown(name: str, key: str, place: Any, config: Any) -> InputError:
  """An argument that the callee has but the recipe lacks is another mistake than a misspelt one."""
  near = difflib.get_close_matches(key, place, n=1, cutoff=0.75)
  if 'call' in place and not near and key in parameters(resolve(place['call']), place['call']):
    return InputError(
      f'--config.{name}: {place["call"]} has an argument {key!r}, but the recipe does not set it; '
      f'add it to the recipe'
    )
  known = list(place)
  if 'call' in place:
    known += parameters(resolve(place['call']), place['call'])
  return InputError(f'unknown config key {name!r}{did_you_mean(key, set(known))}')


def _parse(name: str, text: str, old: Any) -> Any:
  """The value that `text` says, of the type of `old`. Raises InputError for another type."""
  expected = type(old).__name__
  if isinstance(old, str):
    return text
  if isinstance(old, ConfigDict):
    raise InputError(f'--config.{name} is a part with keys {sorted(old)}; set one of them')
  try:
    value = ast.literal_eval({'true': 'True', 'false': 'False'}.get(text, text))
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    value = text
  if isinstance(old, tuple) and isinstance(value, str):
    value = (value,)  # --config.rules.embed=fsdp
  if isinstance(old, tuple) and isinstance(value, tuple) and _kinds(value) - _kinds(old):
    known = _kinds(old)
    if known and not (known == {float} and _kinds(value) <= {int, float}):
      raise InputError(f'--config.{name}={text}: expected a tuple such as {old!r}')
  if isinstance(old, float) and type(value) is int and abs(value) < 2**53:
    value = float(value)
  if type(value) is not type(old):
    raise InputError(f'--config.{name}={text}: expected {expected} such as {old!r}')
  return value


def _kinds(values: tuple[Any, ...]) -> set[type]:
  return {type(v) for v in values}


def resolve(path: str) -> Callable[..., Any]:
  """'package.module:name' -> the object. Raises InputError where there is none."""
  module_name, colon, name = path.partition(':')
  if not colon or not name:
    raise InputError(f"{path!r} is no import path; write 'package.module:name'")
  try:
    module = importlib.import_module(module_name)
  except (ImportError, ValueError, TypeError) as error:
    raise InputError(f'{path!r} cannot be imported: {error}') from None
  if not hasattr(module, name):
    known = [n for n in vars(module) if not n.startswith('_')]
    raise InputError(f'module {module_name} has no {name!r}{did_you_mean(name, known)}')
  return getattr(module, name)


def parameters(fn: Callable[..., Any], path: str) -> dict[str, inspect.Parameter]:
  """What `fn` can be given by name. Raises InputError where it cannot be called."""
  if not callable(fn):
    raise InputError(f'{path} is not callable')
  skip = ('parent', 'name') if hasattr(fn, '__linen__') or _is_linen(fn) else ()
  try:
    found = inspect.signature(fn).parameters
  except ValueError:
    raise InputError(f'{path} does not tell its arguments, and cannot be a part') from None
  return {k: p for k, p in found.items() if k not in skip}


def _is_linen(fn: Any) -> bool:
  return any(c.__module__.startswith('flax.linen') for c in getattr(fn, '__mro__', ()))


def build(part: Mapping[str, Any], where: str, **injected: Any) -> Any:
  """The object a part describes; parts inside it are built first.

  Args:
    injected: given to every part inside that takes an argument of that name and does not set it.

  Raises:
    InputError: no such callee, an argument it does not take, one that is missing.
  """
  if 'call' not in part:
    raise InputError(f"{where} is no part: it has no 'call' ({sorted(part)})")
  path = part['call']
  fn = resolve(path)
  known = parameters(fn, path)
  anything = any(p.kind is p.VAR_KEYWORD for p in known.values())
  given = {k: v for k, v in part.items() if k != 'call'}
  for key in given:
    if key not in known and not anything:
      raise InputError(
        f'{where}: {path} takes no argument {key!r}{did_you_mean(key, known)}\n'
        f'it takes ({", ".join(known)})'
      )
  arguments = {k: v for k, v in injected.items() if k in known and k not in given}
  for key, value in given.items():
    inner = isinstance(value, Mapping) and 'call' in value
    arguments[key] = build(value, f'{where}.{key}', **injected) if inner else value
  needed = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
  missing = [k for k, p in known.items()
             if p.default is p.empty and p.kind in needed and k not in arguments]  # fmt: skip
  if missing:
    raise InputError(f'{where}: {path} needs {", ".join(missing)}; add it to the recipe')
  try:
    return fn(**arguments)
  except InputError:
    raise
  except (TypeError, ValueError, ArithmeticError) as error:
    raise InputError(f'{where}: {path} cannot be made of its arguments: {error}') from error


def plain(config: Any) -> dict[str, Any]:
  """The config as nested dicts of scalars, strings and tuples, references followed."""
  return config.to_dict()


def settle(
  values: Mapping[str, Any], choices: Mapping[str, Any], where: str = ''
) -> dict[str, Any]:
  """A plain config whose 'auto' leaves say what was chosen.

  Raises InputError for an 'auto' that nobody chooses.

  >>> settle({'model': {'attention': 'auto', 'width': 8}}, {'attention': 'xla'})
  {'model': {'attention': 'xla', 'width': 8}}
  """

  def one(key, value):
    if isinstance(value, Mapping):
      return settle(value, choices, f'{where}{key}.')
    if value != 'auto':
      return value
    if key not in choices:
      raise InputError(f"--config.{where}{key}='auto': only {', '.join(choices)} can be 'auto'")
    return choices[key]

  return {key: one(key, value) for key, value in values.items()}


# Rooms whose functions build parts and touch no file but those that a part names.
TRUSTED = (
  'bmx.models.', 'bmx.tasks.', 'bmx.data.', 'bmx.optim.', 'bmx.train.step:', 'bmx.train.gradients:',
  'bmx.adapt.restore:model', 'bmx.adapt.restore:encoder', 'bmx.adapt.hub:model',
  'bmx.adapt.hub:encoder', 'optax:', 'optax.', 'flax.linen:', 'flax.linen.',
)  # fmt: skip
_allowed: set[str] = set()  # packages that the person who started this process trusts


def trust(packages: Sequence[str]) -> None:
  """Lets stored configs of this process call these packages too."""
  _allowed.update(packages)


def check_calls(config: Mapping[str, Any]) -> None:
  """A stored config may call what bmx builds parts of, optax, flax.linen, and packages that the
  user trusts.

  Raises InputError naming the first other callee; nothing of another package has been imported
  then.
  """
  trusted = (*TRUSTED, *(f'{package}{mark}' for package in _allowed for mark in '.:'))
  for key, value in config.items():
    if isinstance(value, Mapping):
      check_calls(value)
    paths = value if isinstance(value, list | tuple) else [value]
    for path in paths if key in ('call', 'metrics') else ():
      if not str(path).startswith(trusted):
        package = str(path).partition(':')[0].partition('.')[0]
        raise InputError(
          f'the stored config calls {path!r}, and what is stored is data: it may call the parts of '
          f'bmx, optax and flax.linen only. If you trust it: --allow={package}'
        )
      if str(path).startswith('bmx.'):
        _check_own(str(path))


def _check_own(path: str) -> None:
  """What a module of ours has imported, or keeps for itself, is no part."""
  module, _, name = path.partition(':')
  if name.startswith('_') or getattr(resolve(path), '__module__', None) != module:
    raise InputError(f'the stored config calls {path!r}, which is no part of a recipe')


def complete(values: Mapping[str, Any]) -> dict[str, Any]:
  """A stored config with the default of every word that bmx did not have when it was stored."""
  known = plain(base())
  words = {k: {**v, **values[k]} for k, v in known.items() if v and isinstance(v, Mapping)
           and isinstance(values.get(k), Mapping)}  # fmt: skip
  return known | dict(values) | words


def from_plain(values: Mapping[str, Any]) -> Any:
  """The config that a config.json holds: JSON's lists are tuples again."""

  def tuples(value):
    if isinstance(value, Mapping):
      return {k: tuples(v) for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value

  return ConfigDict(tuples(values))
