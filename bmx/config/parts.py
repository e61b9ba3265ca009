"""Parts: 'package.module:name' with keyword arguments, and the objects they describe."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from bmx.core.errors import InputError, did_you_mean


def resolve(path: str) -> Callable[..., Any]:
  """The object that 'package.module:name' names.

  Raises InputError if the path is malformed, or the module or the name does not exist.
  """
  module_name, colon, name = path.partition(':')
  if not colon or not name:
    raise InputError(f"{path!r}: expected an import path 'package.module:name'")
  try:
    module = importlib.import_module(module_name)
  except (ImportError, ValueError, TypeError) as error:
    raise InputError(f'{path!r} cannot be imported: {error}') from None
  if not hasattr(module, name):
    known = [n for n in vars(module) if not n.startswith('_')]
    raise InputError(f'module {module_name} has no {name!r}{did_you_mean(name, known)}')
  return getattr(module, name)


def parameters(fn: Callable[..., Any], path: str) -> dict[str, inspect.Parameter]:
  """Parameters of `fn`, by name, without those that linen adds to every module.

  Raises InputError if `fn` is not callable or has no signature.
  """
  if not callable(fn):
    raise InputError(f'{path} is not callable')
  skip = ('parent', 'name') if _is_linen(fn) else ()
  try:
    found = inspect.signature(fn, eval_str=True).parameters
  except (NameError, AttributeError, TypeError, SyntaxError):  # annotations of a checker only
    found = inspect.signature(fn).parameters
  except ValueError:
    raise InputError(f'{path} has no signature, and cannot be a part') from None
  return {k: p for k, p in found.items() if k not in skip}


def _is_linen(fn: Any) -> bool:
  return isinstance(fn, type) and any(c.__module__.startswith('flax.linen') for c in fn.__mro__)


def takes_anything(known: Mapping[str, inspect.Parameter]) -> bool:
  """Whether the parameters include **keywords."""
  return any(p.kind is p.VAR_KEYWORD for p in known.values())


def _built(value: Any, where: str, injected: Mapping[str, Any]) -> Any:
  """The object of a part, or of every part of a mapping of parts (sources of a mixture)."""
  is_part = lambda v: isinstance(v, Mapping) and 'call' in v
  if is_part(value):
    return build(value, where, **injected)
  if isinstance(value, Mapping) and value and all(is_part(v) for v in value.values()):
    return {k: build(v, f'{where}.{k}', **injected) for k, v in value.items()}
  return value


def build(part: Mapping[str, Any], where: str, **injected: Any) -> Any:
  """The object that a part describes; parts inside it are built first.

  Args:
    part: 'call' and keyword arguments.
    where: the part's name in the config, for messages.
    injected: given to every part inside that takes a parameter of that name and does not set it.

  Raises:
    InputError: an unknown callee, an argument it does not take, a missing one, a bad value.
  """
  if 'call' not in part:
    raise InputError(f"{where}: expected a part with 'call'; it has {sorted(part)}")
  path = part['call']
  fn = resolve(path)
  known = parameters(fn, path)
  given = {k: v for k, v in part.items() if k != 'call'}
  for key in given:
    if key not in known and not takes_anything(known):
      raise InputError(
        f'{where}: {path} takes no argument {key!r}{did_you_mean(key, known)}\n'
        f'it takes ({", ".join(known)})'
      )
  arguments = {k: v for k, v in injected.items() if k in known and k not in given}
  for key, value in given.items():
    arguments[key] = _built(value, f'{where}.{key}', injected)
  needed = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
  missing = [
    k for k, p in known.items() if p.default is p.empty and p.kind in needed and k not in arguments
  ]
  if missing:
    raise InputError(f'{where}: {path} needs {", ".join(missing)}; add it to the recipe')
  try:
    return fn(**arguments)
  except InputError:
    raise
  except (TypeError, ValueError, ArithmeticError, RecursionError) as error:
    raise InputError(f'{where}: {path} rejected its arguments: {error}') from error
