"""Values of a forward pass beside its result: captured outputs of modules, and sown values."""

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from bmx.core.errors import InputError
from bmx.core.types import Array


def matching(patterns: tuple[str, ...]) -> Any:
  """Returns a filter for linen's `capture_intermediates`: modules whose path a regex matches."""
  regexes = [re.compile(p) for p in patterns]

  def matches(module: nn.Module, method: str) -> bool:
    path = '/'.join(module.path)
    return method == '__call__' and any(r.search(path) for r in regexes)

  return matches


def captured(collection: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the values that modules sowed once each, by path, without '__call__' of an output.

  Raises InputError for a module that is called more than once: its value is ambiguous.
  """
  once = lambda x: isinstance(x, tuple)
  leaves = jax.tree_util.tree_flatten_with_path(collection, is_leaf=once)[0]
  names = {tuple(k.key for k in path if k.key != '__call__'): value for path, value in leaves}
  for path, value in names.items():
    if len(value) > 1:
      raise InputError(f'capture of {"/".join(path)}: expected a module that is called once')
  first = lambda output: output[0] if isinstance(output, tuple) else output  # attention: no cache
  return {'/'.join(path): first(value[0]) for path, value in names.items()}


def check_captured(patterns: tuple[str, ...], captured: Mapping[str, Any]) -> None:
  """Raises InputError for a pattern that matches no path of a captured output."""
  for pattern in patterns:
    if not any(re.search(pattern, name) for name in captured):
      raise InputError(f'capture={pattern!r}: expected a regex that matches the path of a module')


def sown(collection: Mapping[str, Any]) -> dict[str, Array]:
  """Sums the values that modules sowed into 'aux', by their last name: float32 []."""
  found: dict[str, Array] = {}
  for path, value in jax.tree_util.tree_flatten_with_path(collection)[0]:
    name = path[-2].key
    found[name] = found[name] + value if name in found else value
  return found
