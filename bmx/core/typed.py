"""Checks plain values, as JSON holds them, against type annotations."""

import collections.abc
import types
import typing
from typing import Any

PLAIN = (bool, int, float, str, type(None))


def fits(value: Any, hint: Any) -> bool:
  """Returns whether a plain value fits an annotation.

  Whole numbers fit `float`, lists fit tuples and sequences. Annotations of other kinds accept every
  value.

  >>> fits([1, 2], tuple[int, ...]), fits({'a': None}, dict[str, float]), fits(True, int)
  (True, False, False)
  """
  origin, arguments = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    return any(fits(value, a) for a in arguments)
  if origin is typing.Annotated:
    return fits(value, arguments[0])
  if origin is typing.Literal:
    return any(type(value) is type(a) and value == a for a in arguments)
  if hint is None:
    return value is None
  if hint is float:
    return type(value) in (int, float)
  if hint in PLAIN:
    return type(value) is hint
  kind = origin or hint
  if kind in (list, tuple, collections.abc.Sequence):
    return isinstance(value, list | tuple) and _elements_fit(value, arguments)
  if kind in (dict, collections.abc.Mapping):
    inner = arguments[1] if len(arguments) == 2 else Any
    return isinstance(value, dict) and all(fits(v, inner) for v in value.values())
  return True


def _elements_fit(values: Any, arguments: tuple[Any, ...]) -> bool:
  if len(arguments) == 2 and arguments[1] is ...:
    arguments = arguments[:1]
  elif len(arguments) > 1:
    return len(values) == len(arguments) and all(map(fits, values, arguments))
  return all(fits(v, a) for v in values for a in arguments)
