"""Configs as JSON, and the trust in those that a run directory stores."""

from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from bmx.config.parts import resolve
from bmx.config.types import check_types
from bmx.config.words import base
from bmx.core.errors import InputError

# Callables that build parts and read no file but those that a part names.
TRUSTED = (
  'bmx.models.', 'bmx.tasks.', 'bmx.data.', 'bmx.optim.', 'bmx.train.gradients:',
  'bmx.adapt.restore:model', 'bmx.adapt.restore:encoder', 'bmx.adapt.lora:', 'bmx.adapt.adalora:',
  'bmx.compress.', 'bmx.privacy.mechanism:', 'bmx.serve.hooks:', 'bmx.modes.judge:JudgeImages',
  'bmx.privacy.federated:', 'bmx.privacy.anonymize:', 'bmx.adapt.tagging:',
  'bmx.runtime.trackers:', 'optax:', 'optax.', 'flax.linen:', 'flax.linen.',
)  # fmt: skip
_allowed: set[str] = set()  # packages that the user of this process trusts


def plain(config: Any) -> dict[str, Any]:
  """The config as nested dicts of scalars, strings and tuples, references followed."""
  return config.to_dict()


def from_plain(values: Mapping[str, Any]) -> Any:
  """The ConfigDict of values read from JSON: lists become tuples."""

  def tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
      return {k: tuples(v) for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value

  return ConfigDict(tuples(values))


def complete(values: Mapping[str, Any]) -> dict[str, Any]:
  """A stored config with the defaults of shared words that it lacks."""
  known = plain(base())
  words = {
    key: {**default, **values[key]}
    for key, default in known.items()
    if default and isinstance(default, Mapping) and isinstance(values.get(key), Mapping)
  }
  return known | dict(values) | words


def from_stored(values: Mapping[str, Any]) -> Any:
  """The ConfigDict of a run's config.json.

  The stored config is untrusted: only allow-listed callables may be called, and `cache` is reset,
  because the compiled programs of that folder are executed.

  Raises InputError if the config names another callable, or a value is of another type than its
  word.
  """
  try:
    check_calls(values)
    check_types(values)
    config = from_plain(values)
  except RecursionError:
    raise InputError('the stored config is nested too deeply') from None
  except (KeyError, AttributeError) as error:  # names that a ConfigDict cannot hold
    raise InputError(f'the stored config has a word that no config can have: {error}') from None
  config.cache = base().cache
  return config


def trust(packages: Sequence[str]) -> None:
  """Sets the packages that stored configs may call in this process, besides the listed ones."""
  _allowed.clear()
  _allowed.update(packages)


def check_calls(config: Mapping[str, Any]) -> None:
  """Checks the callables that a stored config names, without importing other packages.

  Raises InputError naming the first callable that belongs neither to the parts of bmx, optax and
  flax.linen nor to the packages of `trust`.
  """
  trusted = (*TRUSTED, *(f'{package}{mark}' for package in _allowed for mark in '.:'))
  for key, value in config.items():
    if isinstance(value, Mapping):
      check_calls(value)
    paths = value if isinstance(value, list | tuple) else [value]
    for path in paths if key in ('call', 'metrics') or (key == 'redact' and value) else ():
      if not str(path).startswith(trusted):
        package = str(path).partition(':')[0].partition('.')[0]
        raise InputError(
          f'the stored config calls {path!r}: expected a part of bmx, optax or flax.linen, as a '
          f'stored config is untrusted. If you trust it, add --allow={package}'
        )
      if str(path).startswith('bmx.'):
        _check_defined(str(path))


def _check_defined(path: str) -> None:
  """Refuses names that a module of bmx has imported or keeps private."""
  module, _, name = path.partition(':')
  if name.startswith('_') or getattr(resolve(path), '__module__', None) != module:
    raise InputError(f'the stored config calls {path!r}: expected a part that {module} defines')
