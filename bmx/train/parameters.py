"""The table of parameters at the start of a run: the new, the frozen and the largest ones."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bmx.core import tree
from bmx.core.experiment import Experiment
from bmx.ops import stored
from bmx.parallel import describe_place
from bmx.runtime.writer import table
from bmx.train.state import StateSpec

NEW, FROZEN = 'new', 'frozen'


def parameter_table(x: Experiment, spec: StateSpec) -> str:
  """Formats parameters with shape, placement and size, at most `show_parameters` of them.

  Those that `init.path` does not fill come first, then those that the optimizer leaves as they
  are, then the largest. Weights that no step changes are a line each: a frozen base, a teacher.

  Args:
    x: the experiment.
    spec: of its state.
  """
  params = tree.named(spec.abstract.params)
  marks, shown = _marks(x, params), x.config['show_parameters']
  names = list(params)
  if shown and len(params) > shown + 1:  # a line '... 1 more' saves none
    names.sort(key=lambda k: ((NEW, FROZEN, '').index(marks[k]), -math.prod(params[k].shape)))
    names = names[:shown]
  rows = [('parameter', 'shape', 'sharding', 'count', 'bytes', '')]
  rows += [_row(name, params[name], marks[name]) for name in names]
  rest = [leaf for name, leaf in params.items() if name not in names]
  if rest:
    every = 'all: --config.show_parameters=0'
    rows.append((f'... {len(rest)} more ({every})', '', '', *_size(rest), ''))
  frozen = [leaf for name, leaf in params.items() if marks[name] == FROZEN]
  if frozen:
    rows.append(('frozen', '', '', *_size(frozen), ''))
  rows.append(('all', '', '', *_size(list(params.values())), ''))
  return table([*rows, *_constant_rows(x, spec.abstract.collections)])


def _constant_rows(x: Experiment, collections: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
  """Yields a row for the base that a task keeps frozen, and one for each other model of it."""
  base = [collections[k] for k in x.task.constant if k not in x.task.sources]
  if tree.has_floats(base):
    yield 'frozen base', '', '', *_weights(base), f'from {x.weights}' if x.weights else 'random'
  for name, (folder, _) in x.task.sources.items():
    folder = x.config['init'].get(name) or folder
    yield name, '', '', *_weights([collections[name]]), f'frozen, from {folder}'


def _weights(parts: list[Any]) -> tuple[str, str]:
  """Returns the number of weights, stored in codes or not, and their bytes as they are stored."""
  leaves = jax.tree.leaves(parts, is_leaf=stored.is_stored)
  plain = [jax.eval_shape(stored.dequantize, x) if stored.is_stored(x) else x for x in leaves]
  floats = [x for x in plain if jnp.issubdtype(x.dtype, jnp.floating)]
  return f'{tree.count(floats):,}', f'{tree.nbytes(parts):,}'


def _marks(x: Experiment, params: Mapping[str, Any]) -> dict[str, str]:
  """Name -> NEW, FROZEN or ''. Without weights to start from, all are new: none is marked."""
  frozen = list(_patterns(x.config['optimizer']))
  new = x.config['init']['reinit'] if x.weights else ''

  def mark(name: str) -> str:
    if new and re.search(new, name):
      return NEW
    return FROZEN if any(re.search(pattern, name) for pattern in frozen) else ''

  return {name: mark(name) for name in params}


def _patterns(optimizer: Mapping[str, Any]) -> Iterator[str]:
  """Values of `freeze`, of the optimizer and of those inside it."""
  for key, value in optimizer.items():
    if isinstance(value, Mapping):
      yield from _patterns(value)
    elif key == 'freeze' and value:
      yield value


def _row(name: str, leaf: Any, mark: str) -> tuple[str, ...]:
  shape = '×'.join(map(str, leaf.shape)) or '1'
  return name, shape, describe_place(leaf.sharding.spec), *_size([leaf]), mark


def _size(leaves: list[Any]) -> tuple[str, str]:
  return f'{tree.count(leaves):,}', f'{tree.nbytes(leaves):,}'
