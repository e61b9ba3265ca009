"""Types of the values in a stored config: those of the shared words, and of parameters of parts."""

import inspect
from collections.abc import Mapping
from typing import Any

from bmx.config.parts import parameters, resolve
from bmx.config.words import NAMED_PARTS, PARTS, base
from bmx.core.errors import InputError, did_you_mean
from bmx.core.typed import fits

OPEN = ('init', 'rules', 'compute')  # shared words with names that a recipe chooses
ENTRY = {'batch_size': int, 'metrics': tuple[str, ...], 'every': int}  # words beside a callee's


def check_types(values: Mapping[str, Any]) -> None:
  """Checks the values of a stored config, as JSON holds them.

  Raises InputError naming the first value of another type than its word.
  """
  for word, default in base().to_dict().items():
    value = values.get(word, default)
    if word in PARTS:
      _check_part(word, value)
    elif word in NAMED_PARTS:
      _check_mapping(word, value)
      inherited = values.get('data') if word == 'eval' else None
      for name, part in value.items():
        _check_part(f'{word}.{name}', part, inherited)
    else:
      _check_like(word, value, default, word in OPEN)


def _check_like(where: str, value: Any, default: Any, extends: bool) -> None:
  """Compares a value with the default of its word."""
  if isinstance(default, dict):
    _check_mapping(where, value)
    for key, inner in value.items():
      if key in default:
        _check_like(f'{where}.{key}', inner, default[key], False)
      elif not extends:
        raise InputError(f'the stored config: {where}.{key} is unknown{did_you_mean(key, default)}')
      elif not fits(inner, str | tuple[str, ...]):
        raise _refused(f'{where}.{key}', inner, 'a text or texts')
  elif not fits(value, tuple[str, ...] if isinstance(default, tuple) else type(default)):
    raise _refused(where, value, f'{type(default).__name__} such as {default!r}')


def _check_mapping(where: str, value: Any) -> None:
  if not isinstance(value, Mapping):
    raise _refused(where, value, 'words with values')


def _check_part(where: str, part: Any, inherited: Any = None) -> None:
  """Compares the arguments of a part with the annotations of its callee."""
  _check_mapping(where, part)
  path = part.get('call', inherited.get('call') if isinstance(inherited, Mapping) else '')
  if not isinstance(path, str):
    raise _refused(f'{where}.call', path, "an import path 'package.module:name'")
  known = parameters(resolve(path), path) if path else {}
  for key, value in part.items():
    if key in known:
      _check_argument(f'{where}.{key}', value, known[key].annotation)
    elif key in ENTRY and not fits(value, ENTRY[key]):
      raise _refused(f'{where}.{key}', value, str(ENTRY[key]))


def _check_argument(where: str, value: Any, hint: Any) -> None:
  if isinstance(value, Mapping) and 'call' in value:
    _check_part(where, value)
  elif isinstance(value, Mapping) and any(_is_part(v) for v in value.values()):
    for key, part in value.items():
      _check_part(f'{where}.{key}', part)
  elif not _allowed(value, hint):
    raise _refused(where, value, hint.__name__ if inspect.isclass(hint) else str(hint))


def _is_part(value: Any) -> bool:
  return isinstance(value, Mapping) and 'call' in value


def _allowed(value: Any, hint: Any) -> bool:
  """Whether a value that is not a part fits an annotation; classes of bmx are for parts only."""
  if value == 'auto' or hint is inspect.Parameter.empty or isinstance(hint, str):
    return True
  ours = inspect.isclass(hint) and hint.__module__ not in ('builtins', 'typing', 'types')
  return not ours and fits(value, hint)


def _refused(where: str, value: Any, expected: str) -> InputError:
  return InputError(f'the stored config: {where}={value!r:.60}: expected {expected}')
