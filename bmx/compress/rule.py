"""Choice of the weights, or whole units, that become zero."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from bmx.compress import structure
from bmx.compress.select import smallest, two_of_four
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.core.types import Array, Variables
from bmx.optim.masks import apply_mask

KERNELS = r'(^|/)kernel$|(^|/)experts/(up|gate|down)$'
KINDS = ('unstructured', '2:4', *structure.KINDS)
SCOPES = ('layer', 'global')
Flat = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Rule:
  """Which weights are pruned: a share of them, those of the smallest magnitude.

  Attributes:
    sparsity: share that is zero, of each layer or of all together, exact to one weight (one unit);
      of each layer of a scanned stack, too.
    kind: 'unstructured', single weights; '2:4', two of every four neighbors along the inputs of a
      kernel; 'heads' (key/value heads with their query heads), 'neurons' (hidden units of
      feed-forward networks and of an MLP) or 'channels' (of convolutions): whole units, by the norm
      of their weights, an equal number in each layer.
    scope: 'layer', or 'global', one threshold for all, for single weights.
    targets: regex of the paths of the kernels ('attention/query'; no table is one), or, of whole
      units, of their layers; '' is all.

  Raises:
    InputError: an unknown kind or scope, a sparsity out of range, a scope that the kind has not.
  """

  sparsity: float = 0.5
  kind: str = 'unstructured'
  scope: str = 'layer'
  targets: str = ''

  def __post_init__(self):
    check_number('sparsity', self.sparsity, at_least=0, below=1)
    for name, value, known in (('kind', self.kind, KINDS), ('scope', self.scope, SCOPES)):
      if value not in known:
        raise InputError(f'{name}={value!r}: expected one of {", ".join(known)}')
    if self.scope == 'global' and self.kind != 'unstructured':
      raise InputError(f"scope='global': expected 'layer' with kind={self.kind!r}")
    if self.kind == '2:4' and self.sparsity != 0.5:
      raise InputError(f"sparsity={self.sparsity}: expected 0.5 with kind='2:4'")
    check_regex(self.targets)

  def start(self, params: Variables) -> dict[str, Array]:
    """Returns marks of parameters that are whole: name -> bool, all True.

    Raises:
      InputError: targets that match nothing; a shape that 2:4 does not divide.
    """
    flat = tree.named(params)
    return {name: jnp.ones(flat[name].shape, bool) for name in self._names(flat)}

  def _names(self, flat: Flat) -> list[str]:
    if self.kind in structure.KINDS:
      return sorted({m.name for group in self._groups(flat) for m in group.members})
    names = targeted(flat, self.targets)
    for name in names if self.kind == '2:4' else ():
      _check_four(name, flat[name].shape)
    return names

  def _groups(self, flat: Flat) -> list[structure.Group]:
    return structure.groups(self.kind, {k: v.shape for k, v in flat.items()}, self.targets)

  def choose(
    self,
    params: Variables,
    kept: Flat | None = None,
    share: Any = None,
    scores: Flat | None = None,
  ) -> dict[str, Array]:
    """Returns the marks of the weights that remain: name -> bool.

    Args:
      params: parameters.
      kept: earlier marks; a weight that is False there stays so.
      share: float32 [], sparsity of now, at most `sparsity`; None: `sparsity`, exactly.
      scores: importance by name, in place of magnitudes, of single weights: the least important
        inputs of each output are pruned (Sun et al. 2024).
    """
    flat = tree.named(params)
    kept = kept or self.start(params)
    if self.kind in structure.KINDS:
      return self._whole(flat, kept, share)
    given = scores or {name: jnp.abs(flat[name]) for name in kept}
    if self.kind == '2:4':
      return {k: self._four(k, given[k], kept[k]) for k in kept}
    if self.scope == 'global':
      return self._global(given, kept, share)
    return {k: self._layer(k, given[k], kept[k], share, scores is not None) for k in kept}

  def _four(self, name: str, scores: Array, kept: Array) -> Array:
    dim = structure.contracted(name, scores.shape)[-1]
    return kept & two_of_four(jnp.where(kept, scores, -1.0), dim)

  def _layer(self, name: str, scores: Array, kept: Array, share: Any, by_output: bool) -> Array:
    dims = tuple(range(structure.lead(name), scores.ndim))
    dims = structure.contracted(name, scores.shape) if by_output else dims
    count = self._count(math.prod(scores.shape[d] for d in dims), share)
    return kept & ~smallest([scores], count, [dims], [~kept])[0]

  def _global(self, scores: Flat, kept: Flat, share: Any) -> dict[str, Array]:
    values = [scores[k] for k in kept]
    count = self._count(sum(x.size for x in values), share)
    dims = [tuple(range(x.ndim)) for x in values]
    pruned = smallest(values, count, dims, [~k for k in kept.values()])
    return {k: kept[k] & ~p for k, p in zip(kept, pruned, strict=True)}

  def _whole(self, flat: Flat, kept: Flat, share: Any) -> dict[str, Array]:
    kept, masked = dict(kept), dict(apply_mask(kept, dict(flat)))
    for group in self._groups(flat):
      scores = structure.magnitude(group, masked)
      full = structure.unit_count(self.sparsity, group)
      count = full if share is None else _floor(share, group.units, full)
      rest = ~smallest([scores], count, [(scores.ndim - 1,)])[0]
      for member in group.members:
        kept[member.name] &= structure.spread(rest, member, flat[member.name].shape)
    return kept

  def _count(self, size: int, share: Any) -> Any:
    full = math.floor(self.sparsity * size + 0.5)
    return full if share is None else _floor(share, size, full)

  def apply(self, params: Variables, scores: Flat | None = None) -> tuple[Variables, Flat]:
    """Prunes parameters once -> (parameters with zeros, marks of the weights that remain)."""
    kept = self.choose(params, scores=scores)
    return apply_mask(kept, params), kept


def targeted(flat: Flat, targets: str) -> list[str]:
  """Returns the names of the kernels whose path a regex matches anywhere; '' is all.

  Raises InputError if it matches none, or there are none.
  """
  paths = {name: name.removesuffix('/kernel') for name in flat if re.search(KERNELS, name)}
  if not paths:
    raise InputError(f'pruning: expected parameters with kernels, found {", ".join([*flat][:40])}')
  names = [name for name, path in paths.items() if re.search(targets, path)]
  if not names:
    candidates = '\n  '.join([*paths.values()][:40])
    raise InputError(
      f'targets={targets!r}: expected a regex that matches a kernel of:\n  {candidates}'
    )
  return names


def check_regex(targets: str) -> None:
  """Raises InputError if a text is not a regular expression."""
  try:
    re.compile(targets)
  except re.error as error:
    raise InputError(f'targets={targets!r}: expected a regular expression: {error}') from None


def _check_four(name: str, shape: tuple[int, ...]) -> None:
  dim = structure.contracted(name, shape)[-1]
  if shape[dim] % 4:
    raise InputError(
      f"kind='2:4': expected a number of inputs that 4 divides, {name} {tuple(shape)} has "
      f'{shape[dim]}; leave it out of targets'
    )


def _floor(share: Any, size: int, most: int) -> Array:
  """Returns share · size, rounded down: int32 [], at most `most`."""
  return jnp.minimum(jnp.floor(share * size).astype(jnp.int32), most)
