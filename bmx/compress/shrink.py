"""A smaller dense model from one whose heads, neurons or channels were pruned."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bmx.compress import structure
from bmx.compress.structure import Group, Member
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Variables

MODELS = ('bmx.models.gpt:', 'bmx.models.bert:', 'bmx.models.mlp:', 'bmx.models.cnn:')


class Cut(NamedTuple):
  """The units of a group that remain.

  Attributes:
    group: of the larger model.
    units: int [units that remain], or [layers, units that remain].
  """

  group: Group
  units: np.ndarray

  @property
  def size(self) -> int:
    """Number of units that remain."""
    return self.units.shape[-1]


def shrink(part: Mapping[str, Any], variables: Variables) -> tuple[dict[str, Any], dict[str, Any]]:
  """Removes units whose weights are all zero.

  Layers of a stack keep an equal number of units: a layer with fewer keeps some that are zero.

  Args:
    part: config part of the model.
    variables: 'params', plain, and 'batch_stats' if the model has them.

  Returns:
    The part of the smaller model, and its variables on the host; its outputs are those of the
    larger one.

  Raises:
    InputError: another model, a layer norm over hidden units, or no unit that is zero.
  """
  if not str(part.get('call')).startswith(MODELS):
    raise InputError(f'model={part.get("call")!r}: expected one of {", ".join(MODELS)}')
  params = {name: tree.fetch(x) for name, x in tree.named(variables['params']).items()}
  cuts = _cuts(params)
  smaller = [cut for cut in cuts if cut.size < cut.group.units]
  if not smaller:
    raise InputError(
      'shrink: expected heads, neurons or channels without weights, found none; prune some first'
    )
  layer_norm = [c.group.name for c in smaller if re.search(r'(^|/)dense_\d+$', c.group.name)]
  if part.get('norm') == 'layer' and layer_norm:
    raise InputError(f"norm='layer': expected '' or 'batch', as the layer norm behind "
                     f'{layer_norm[0]} depends on the number of its units')  # fmt: skip
  batch_stats = tree.named(variables.get('batch_stats', {}))
  stats = {name: tree.fetch(x) for name, x in batch_stats.items()}
  for cut in smaller:
    for member in cut.group.members:
      params[member.name] = _taken(params[member.name], member, cut)
      for name in _statistics(member.name, stats):
        stats[name] = _taken(stats[name], member._replace(name=name), cut)
  made = {**variables, 'params': tree.nested(params)}
  return _part(part, cuts, params), made | ({'batch_stats': tree.nested(stats)} if stats else {})


def _live(group: Group, params: Mapping[str, np.ndarray]) -> np.ndarray:
  """Returns which units have a weight: bool [units] or [layers, units]."""
  found: Any = False
  for member in group.members:
    start = structure.lead(member.name)
    x = np.moveaxis(params[member.name] != 0, start + member.dim, start)
    x = x.reshape(*x.shape[:start], member.tile, group.units, -1)
    found = found | x.any((start, start + 2))
  return found


def _cuts(params: Mapping[str, np.ndarray]) -> list[Cut]:
  """Returns what remains of every group of the model."""
  shapes = {name: x.shape for name, x in params.items()}
  found = []
  for kind in structure.KINDS:
    groups = structure.KINDS[kind](shapes)
    live = {g.name: _live(g, params) for g in groups}
    stacked = [g for g in groups if not re.search(r'(^|/)(dense|conv)_\d+$', g.name)]
    least = max((int(live[g.name].sum(-1).max()) for g in stacked), default=0)
    for g in groups:
      own = least if g in stacked else int(live[g.name].sum())
      found.append(Cut(g, _chosen(live[g.name], max(own, 1))))
  return found


def _chosen(live: np.ndarray, count: int) -> np.ndarray:
  """Returns the numbers of `count` units, those that are live first: int [..., count], rising."""
  order = np.argsort(~live, axis=-1, kind='stable')[..., :count]
  return np.sort(order, axis=-1)


def _taken(x: np.ndarray, member: Member, cut: Cut) -> np.ndarray:
  """Returns the slices of a parameter that belong to the remaining units."""
  start = structure.lead(member.name)
  inside = cut.units[..., None] * member.repeat + np.arange(member.repeat)
  inside = inside.reshape(*cut.units.shape[:-1], -1)
  period = cut.group.units * member.repeat
  tiles = [inside + period * i for i in range(member.tile)]
  places = np.concatenate(tiles, -1)
  if not start:
    return np.take(x, places, axis=member.dim)
  return np.stack([np.take(one, i, axis=member.dim) for one, i in zip(x, places, strict=True)])


def _statistics(name: str, stats: Mapping[str, Any]) -> list[str]:
  """Returns the running statistics beside the scale of a batch norm."""
  path, _, last = name.rpartition('/')
  return [f'{path}/{k}' for k in ('mean', 'var') if last == 'scale' and f'{path}/{k}' in stats]


def _part(part: Mapping[str, Any], cuts: Sequence[Cut], params: Mapping[str, Any]) -> dict:
  """Returns the config part with the new sizes."""
  if 'encoder' in part:
    return {**part, 'encoder': _part(part['encoder'], cuts, params)}
  new, sizes = dict(part), {'widths': {}, 'features': {}}
  for cut in cuts:
    chained = re.search(r'(^|/)(dense|conv)_(\d+)$', cut.group.name)
    if chained:
      word = 'widths' if chained[2] == 'dense' else 'features'
      sizes[word][int(chained[3])] = cut.size
    elif cut.size == cut.group.units:
      continue
    elif cut.group.members[-1].name.endswith('down/kernel'):
      new['mlp_dim'] = cut.size
    else:
      new |= _heads(new, cut, params)
  return new | {word: tuple(v[i] for i in sorted(v)) for word, v in sizes.items() if v}


def _heads(part: Mapping[str, Any], cut: Cut, params: Mapping[str, Any]) -> dict[str, int]:
  query = cut.group.members[0]
  found = {'heads': cut.size * query.repeat, 'head_dim': params[query.name].shape[-1]}
  return found | ({'kv_heads': cut.size} if part.get('kv_heads') else {})
