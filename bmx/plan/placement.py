"""Placement of every array of a recipe, as text for diffs."""

from typing import Any

from bmx.core import tree
from bmx.core.experiment import Experiment
from bmx.parallel import describe, describe_place
from bmx.runtime.writer import table
from bmx.train.state import state_spec


def placement(x: Experiment) -> str:
  """Formats one line for every leaf of the state and of a batch.

  Each has name, shape, dtype, placement and bytes of one device.
  """
  plan = state_spec(x)
  leaves = tree.named(plan.abstract)
  at = x.layout.batch(x.data.spec, x.data.batch_size)
  rows = [('leaf', 'shape', 'dtype', 'place', 'local')]
  rows += [_row(name, leaf, leaf.sharding) for name, leaf in leaves.items()]
  rows += [_row(f'batch/{k}', v, at[k]) for k, v in x.data.abstract.items()]
  return f'{x.name} on {x.layout.devices} devices: {describe(x.layout.mesh)}\n{table(rows)}\n'


def _row(name: str, leaf: Any, sharding: Any) -> tuple[str, ...]:
  size = lambda shape: '×'.join(map(str, shape)) or '1'
  place = describe_place(sharding.spec)
  return name, size(leaf.shape), leaf.dtype.name, place, size(sharding.shard_shape(leaf.shape))
