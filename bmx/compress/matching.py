"""Modules whose outputs distillation compares, by the paths that they have without scan."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bmx.core.errors import InputError, did_you_mean
from bmx.core.types import Array, Variables
from bmx.models.stack import ONE, STACKED, layers_apart


class Place(NamedTuple):
  """Where a module's output is captured: its path, and its layer in a scanned stack."""

  path: str
  layer: int | None

  def of(self, captured: Mapping[str, Array]) -> Array:
    """Returns the output of the module."""
    output = captured[self.path]
    return output if self.layer is None else output[self.layer]


class Pairs(NamedTuple):
  """Places of student and teacher: of hidden states; of queries, keys and values."""

  hidden: list[tuple[Place, Place]]
  attention: list[tuple[Place, Place]]


def regexes(places: Iterable[Place]) -> tuple[str, ...]:
  """Returns the regexes that capture these outputs."""
  return tuple(sorted({f'^{re.escape(p.path)}$' for p in places}))


def part(place: Place, name: str) -> Place:
  """Returns the Place of the queries, keys or values of a layer."""
  return place._replace(path=f'{place.path}/attention/{name}')


def modules(params: Variables) -> dict[str, Place]:
  """Returns where the output of each module with parameters is captured, by its path.

  Layers of a scanned stack have the paths that they have without scan.
  """
  found = {}
  for name, (_, layer) in layers_apart(params).items():
    parts = name.split('/')[:-1]
    for n in range(1, len(parts) + 1):
      path = '/'.join(parts[:n])
      stacked = path if layer is None else f'{path}/'.replace(f'/{ONE}{layer}/', f'/{STACKED}')
      inside = f'/{STACKED}' in f'{stacked}/'
      found[path] = Place(stacked.rstrip('/'), layer if inside else None)
  return found


def find(name: str, modules: Mapping[str, Place], where: str) -> Place:
  """Returns the Place of the one module whose path is, or ends with, a name."""
  matching = [k for k in modules if f'/{k}'.endswith(f'/{name}')]
  if len(matching) != 1:
    found = f', found {", ".join(matching)}' if matching else did_you_mean(name, modules)
    raise InputError(f'{where % repr(name)}: expected the path of one module{found}')
  return modules[matching[0]]
