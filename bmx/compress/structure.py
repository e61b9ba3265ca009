"""Units of models that can be pruned whole: heads, hidden neurons, channels.

A unit is a slice of each of several parameters: those that make it, and those that read it. With
all of them zero it contributes nothing.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.types import Array
from bmx.models.stack import STACKED


class Member(NamedTuple):
  """A parameter of a group.

  Attributes:
    name: of the parameter.
    dim: that has the units, of one layer's parameter.
    repeat: neighbors along `dim` that belong to one unit (query heads of a key/value head).
    tile: repetitions of all units along `dim` (positions of a flattened map).
  """

  name: str
  dim: int
  repeat: int = 1
  tile: int = 1


class Group(NamedTuple):
  """The units of one layer, or of each layer of a scanned stack.

  Attributes:
    name: path of the layer.
    units: number of them.
    members: parameters that hold them.
  """

  name: str
  units: int
  members: tuple[Member, ...]


Shapes = Mapping[str, tuple[int, ...]]


def lead(name: str) -> int:
  """Returns 1 for a parameter of a scanned stack, which has a layer dimension in front, else 0."""
  return int(f'/{STACKED}' in f'/{name}')


def contracted(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Returns the dimensions of a kernel that a product sums over.

  Raises InputError for a kernel of several dimensions whose layer is not known.
  """
  start = lead(name)
  ndim = len(shape) - start
  if re.search(r'(^|/)experts/(up|gate|down)$', name):
    return (start + 1,)
  if ndim == 2 or re.search(r'(^|/)(query|key|value)/kernel$', name):
    return (start,)
  if ndim == 3 and re.search(r'(^|/)out/kernel$', name):
    return (start, start + 1)
  if ndim == 4:  # a convolution: rows, columns, inputs, outputs
    return (start, start + 1, start + 2)
  raise InputError(f'{name} {shape}: expected a kernel of a dense layer, an attention or a '
                   'convolution; leave it out of targets')  # fmt: skip


def heads(shapes: Shapes) -> list[Group]:
  """Returns the key/value heads of each attention, each with its query heads."""
  found = []
  for path in _paths(shapes, 'query/kernel'):
    start = lead(path)
    queries, units = (shapes[f'{path}{k}/kernel'][start + 1] for k in ('query', 'key'))
    repeat = queries // units
    members = [Member(f'{path}query/kernel', 1, repeat), Member(f'{path}out/kernel', 0, repeat)]
    members += [Member(f'{path}{k}/kernel', 1) for k in ('key', 'value')]
    members += [Member(f'{path}query/bias', 0, repeat)]
    members += [Member(f'{path}{k}/bias', 0) for k in ('key', 'value')]
    found.append(_group(path, units, members, shapes))
  return found


def neurons(shapes: Shapes) -> list[Group]:
  """Returns the hidden units of each feed-forward network and of each layer of an MLP."""
  found = []
  for path in _paths(shapes, 'down/kernel'):
    members = [Member(f'{path}{k}/kernel', 1) for k in ('up', 'gate')]
    members += [Member(f'{path}{k}/bias', 0) for k in ('up', 'gate')]
    members += [Member(f'{path}down/kernel', 0)]
    found.append(_group(path, shapes[f'{path}down/kernel'][lead(path)], members, shapes))
  return found + _chain(shapes, 'dense', lambda path, i: (f'{path}dense_{i + 1}', f'{path}head'))


def channels(shapes: Shapes) -> list[Group]:
  """Returns the channels of each convolution of a CNN."""
  after = lambda path, i: (f'{path}conv_{i + 1}', f'{path}MLP_0/dense_0', f'{path}MLP_0/head')
  return _chain(shapes, 'conv', after)


def _chain(shapes: Shapes, kind: str, after: Callable[[str, int], tuple[str, ...]]) -> list[Group]:
  """Returns the outputs of layers KIND_0, KIND_1, ..., each of which another layer reads."""
  found = []
  for path, number in re.findall(rf'^((?:.*/)?){kind}_(\d+)/kernel$', '\n'.join(shapes), re.M):
    i, name = int(number), f'{path}{kind}_{number}'
    shape = shapes[f'{name}/kernel']
    units = shape[-1]
    readers = [r for r in after(path, i) if f'{r}/kernel' in shapes]
    if not readers:
      continue
    reader = shapes[f'{readers[0]}/kernel']
    tile = reader[0] // units if len(reader) == 2 and len(shape) == 4 else 1
    members = [Member(f'{name}/kernel', len(shape) - 1), Member(f'{name}/bias', 0)]
    members += [Member(f'{path}norm_{number}/{k}', 0) for k in ('scale', 'bias')]
    members += [Member(f'{readers[0]}/kernel', max(len(reader) - 2, 0), 1, tile)]
    found.append(_group(f'{name}/', units, members, shapes))
  return found


def _paths(shapes: Shapes, ending: str) -> list[str]:
  """Returns what stands before an ending of names: 'PATH/', or ''."""
  return [k.removesuffix(ending) for k in shapes if f'/{k}'.endswith(f'/{ending}')]


def _group(path: str, units: int, members: list[Member], shapes: Shapes) -> Group:
  return Group(path.rstrip('/'), units, tuple(m for m in members if m.name in shapes))


KINDS: dict[str, Callable[[Shapes], list[Group]]] = {
  'heads': heads,
  'neurons': neurons,
  'channels': channels,
}


def groups(kind: str, shapes: Shapes, targets: str) -> list[Group]:
  """Returns the groups of a kind whose name a regex matches anywhere.

  Raises InputError naming the candidates if it matches none, or the model has none.
  """
  found = KINDS[kind](shapes)
  if not found:
    raise InputError(f'kind={kind!r}: expected a model of bmx.models with {kind}')
  chosen = [g for g in found if re.search(targets, g.name)]
  if not chosen:
    names = ', '.join(g.name for g in found)
    raise InputError(f'targets={targets!r}: expected a regex that matches one of {names}')
  return chosen


def magnitude(group: Group, params: Mapping[str, Array]) -> Array:
  """Returns the norm of all weights of each unit: float32 [units], or [layers, units]."""
  total = 0.0
  for member in group.members:
    start = lead(member.name)
    x = jnp.square(jnp.moveaxis(params[member.name].astype(jnp.float32), start + member.dim, start))
    x = x.reshape(*x.shape[:start], member.tile, group.units, -1)
    total += x.sum((start, start + 2))
  return jnp.sqrt(jnp.asarray(total))


def spread(kept: Array, member: Member, shape: tuple[int, ...]) -> Array:
  """Lays marks of units, bool [units] or [layers, units], over a parameter."""
  start = lead(member.name)
  along = jnp.tile(jnp.repeat(kept, member.repeat, -1), (1,) * start + (member.tile,))
  dims = [1] * len(shape)
  dims[start + member.dim] = -1
  if start:
    dims[0] = shape[0]
  return jnp.broadcast_to(along.reshape(dims), shape)


def unit_count(sparsity: float, group: Group) -> int:
  """Returns the number of units of a group to prune; at least one remains."""
  return min(math.floor(sparsity * group.units + 0.5), group.units - 1)
