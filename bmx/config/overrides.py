"""Overrides: 'a.b=value' texts that set words of a config, each of the type that it has.

Besides the words that a recipe lists, an override sets every parameter of a part's callee, every
word of a data part for an `eval` entry, hooks and the parts of the shared words, and collections
of `init`: all that `build` would accept.
"""

import ast
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from bmx.config.describe import lines
from bmx.config.parts import parameters, resolve, takes_anything
from bmx.config.words import DEFAULT_CALLS, NAMED_PARTS, PARTS
from bmx.core.errors import InputError, did_you_mean
from bmx.core.layout import RULES

ZEROS: dict[type, Any] = {bool: False, int: 0, float: 0.0, tuple: (), str: ''}
# Names of other libraries for words of bmx.
ALIASES = {
  'lr': 'peak', 'learning_rate': 'peak', 'bs': 'batch_size', 'max_steps': 'steps',
  'num_steps': 'steps', 'num_epochs': 'epochs', 'num_layers': 'depth', 'layers': 'depth',
  'hidden_size': 'width', 'd_model': 'width', 'num_heads': 'heads', 'block_size': 'length',
  'seq_len': 'length', 'wd': 'weight_decay', 'grad_clip': 'clip', 'precision': 'dtype',
  'warmup_steps': 'warmup', 'optim': 'optimizer.call',
}  # fmt: skip
EVAL_WORDS = {'batch_size': 0, 'metrics': ('package.module:function',)}


def apply(config: Any, overrides: Sequence[str]) -> None:
  """Sets words of a config from 'a.b=value' texts; callees first, as they define the words.

  Raises InputError for an unknown word, a value of another type, or a text without '='.
  """
  for override in sorted(overrides, key=lambda text: not _names_callee(text)):
    name, equals, text = override.partition('=')
    if not equals:
      raise InputError(f'--config.{name} has no value; write --config.{name}=VALUE')
    *folders, leaf = name.split('.')
    place: Any = config
    for depth, folder in enumerate(folders):
      if folder not in place:
        _add(config, folders[:depth], folder, folders[depth + 1 :] + [leaf], name)
      if not isinstance(place[folder], ConfigDict):
        raise _unknown(config, '.'.join(folders[: depth + 1]), folder, place)
      place = place[folder]
    like = _like(config, folders, leaf, name)
    value = parse(name, text, like)
    if leaf in place and type(value) is not type(place[leaf]):  # a value for an 'auto'
      with place.ignore_type():
        place[leaf] = value
    else:
      with place.unlocked():
        place[leaf] = value


def _like(config: Any, folders: Sequence[str], leaf: str, name: str) -> list[Any]:
  """Values of the types that a word may have; one that is 'auto' may be what its callee takes."""
  place = _at(config, folders)
  if leaf not in place:
    return _examples(config, folders, leaf, name)
  known = (_callee_parameters(config, folders) or {}) if place[leaf] == 'auto' else {}
  kinds = [kind for kind in _kinds_of(known[leaf].annotation)] if leaf in known else []
  return [*(ZEROS[kind] for kind in ZEROS if kind in kinds and kind is not str), place[leaf]]


def _names_callee(override: str) -> bool:
  return override.partition('=')[0].split('.')[-1] == 'call'


def _add(config: Any, above: Sequence[str], key: str, below: Sequence[str], name: str) -> None:
  """Adds the empty part that an override needs: an `eval` entry, a hook, a part inside a part."""
  place = _at(config, above)
  words = _callee_parameters(config, above) or {}
  named = len(above) == 1 and above[0] in NAMED_PARTS and key.isidentifier()
  part = list(below) == ['call'] and (key in words or takes_anything(words))
  if key in words and len(below) == 1 and not part:
    word = '.'.join([*above, key])
    fix = f'set --config.{word}.call=package.module:name too'
    raise InputError(f'unknown config key {word!r}; {fix}')
  if not (named or part) or _near_miss(key, place, extends=named):
    raise _unknown(config, '.'.join([*above, key]), key, place, words, name)
  if named and above[0] != 'eval' and list(below) != ['call']:
    word = f'{above[0]}.{key}'
    raise InputError(f'--config.{name}: set --config.{word}.call=package.module:name too')
  with place.unlocked():
    place[key] = ConfigDict()


def _examples(config: Any, folders: Sequence[str], leaf: str, name: str) -> list[Any]:
  """Values of the types that a word the recipe lacks may have.

  Raises InputError if the word does not exist.
  """
  place = _at(config, folders)
  known = _callee_parameters(config, folders)
  if folders and folders[0] in (*PARTS, *NAMED_PARTS) and leaf == 'call' and not len(place):
    return ['']
  if len(folders) == 1 and folders[0] in DEFAULT_CALLS and leaf == 'call':
    return ['']
  if folders == ['init'] and leaf.isidentifier() and not _near_miss(leaf, place):
    return ['']  # the folder of a collection
  if folders == ['compute'] and leaf in RULES:
    return [RULES[leaf]]
  if len(folders) == 2 and folders[0] == 'eval':
    if leaf in EVAL_WORDS:
      return [EVAL_WORDS[leaf]]
    if leaf in config.data and not isinstance(config.data[leaf], ConfigDict):
      return [config.data[leaf]]
  if len(folders) == 2 and folders[0] == 'hooks' and leaf == 'every':
    return [0]
  if known is None or (leaf not in known and _near_miss(leaf, place)):
    raise _unknown(config, name, leaf, place, known or ())
  if leaf in known and known[leaf].kind is not known[leaf].VAR_KEYWORD:
    return _types_of(known[leaf], name)
  if takes_anything(known):
    return list(ZEROS.values())
  raise _unknown(config, name, leaf, place, known)


def _callee_parameters(config: Any, folders: Sequence[str]) -> Mapping[str, Any] | None:
  """Parameters of the callee of a part; None if `folders` names no part."""
  place = _at(config, folders)
  if len(folders) == 2 and folders[0] == 'eval' and 'call' not in place:
    place = config.data  # which entries of `eval` inherit
  default = DEFAULT_CALLS.get(folders[0]) if len(folders) == 1 else None
  path = place.get('call', default)
  return None if path is None else parameters(resolve(path), path)


def _types_of(parameter: Any, name: str) -> list[Any]:
  """Example values of the types that a parameter takes, by its annotation, else by its default."""
  kinds = list(_kinds_of(parameter.annotation))
  default = parameter.default
  if not kinds and type(default) in ZEROS:
    kinds = [type(default)]
  if not kinds:
    raise InputError(
      f'--config.{name}: the type of this argument is not a number, a text or a tuple; '
      f'set it in the recipe'
    )
  return [default if type(default) is kind else ZEROS[kind] for kind in ZEROS if kind in kinds]


def _kinds_of(annotation: Any) -> Iterable[type]:
  if annotation in ZEROS:
    yield annotation
  origin = typing.get_origin(annotation)
  if origin in (typing.Union, types.UnionType):
    for member in typing.get_args(annotation):
      yield from _kinds_of(member)
  elif origin is typing.Literal:
    yield from {type(value) for value in typing.get_args(annotation)} & set(ZEROS)
  elif origin in (tuple, Sequence):
    yield tuple


def _at(config: Any, folders: Sequence[str]) -> Any:
  for folder in folders:
    config = config[folder]
  return config


def _near_miss(key: str, place: Any, extends: bool = False) -> bool:
  """Whether a key is probably a misspelling of one in `place`; not if it `extends` that one."""
  near = difflib.get_close_matches(key, list(place), n=1, cutoff=0.75)
  return bool(near) and not (extends and key.startswith(near[0]))


def _unknown(
  config: Any, name: str, key: str, place: Any, known: Iterable[str] = (), whole: str = ''
) -> InputError:
  """The error for a word that does not exist: names one of the same place, else of another.

  `whole` is the name that was given, where `name` is only its beginning.
  """
  near = did_you_mean(key, {*place, *known})
  if 'did you mean' not in near:
    words = [line.word for line in lines(config)]
    *above, leaf = (whole or name).split('.')
    wanted = '.'.join(['', *above, ALIASES.get(leaf, leaf)])
    ends = sorted((w for w in words if f'.{w}'.endswith(wanted)), key=lambda w: (w.count('.'), w))
    if ends:
      near = f'; did you mean {ends[0]!r}?'
    elif place is config:
      near += '; `bmx config RECIPE` lists the words of its parts'
  return InputError(f'unknown config key {name!r}{near}')


def parse(name: str, text: str, like: Sequence[Any]) -> Any:
  """The value of a text, of the type of the first example in `like` that it fits.

  Raises InputError if it fits none.
  """
  for example in like[:-1]:
    try:
      return _parse_as(name, text, example)
    except InputError:
      continue
  return _parse_as(name, text, like[-1])


def _parse_as(name: str, text: str, example: Any) -> Any:
  if isinstance(example, str):
    return text
  if isinstance(example, ConfigDict):
    keys = sorted(example)
    fix = f', such as --config.{name}.{keys[0]}=VALUE' if keys else ', such as call'
    raise InputError(f'--config.{name} is a part with keys {keys}; set one of them{fix}')
  try:
    value = ast.literal_eval({'true': 'True', 'false': 'False'}.get(text, text))
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    value = text
  if isinstance(example, tuple):
    value = _tuple(name, text, value, example)
  if isinstance(example, float) and type(value) is int and abs(value) < 2**53:
    value = float(value)
  if type(value) is not type(example):
    kind = type(example).__name__
    raise InputError(f'--config.{name}={text}: expected {kind} such as {example!r}')
  return value


def _names(text: str) -> tuple[str, ...]:
  """Texts of a tuple without parentheses; a comma before a blank or at an end separates nothing.

  >>> _names('id,name'), _names('fsdp'), _names('Yours, bmx')
  (('id', 'name'), ('fsdp',), ('Yours, bmx',))
  """
  parts = tuple(text.split(','))
  separate = all(part and part == part.strip() for part in parts)
  return parts if separate else (text,)


def _tuple(name: str, text: str, value: Any, example: tuple[Any, ...]) -> Any:
  if isinstance(value, str):
    value = _names(text)  # --config.rules.embed=fsdp
  if not isinstance(value, tuple):
    return value
  given, known = {type(v) for v in value}, {type(v) for v in example}
  numbers = known == {float} and given <= {int, float}
  if known and given - known and not numbers:
    raise InputError(f'--config.{name}={text}: expected a tuple such as {example!r}')
  return value
