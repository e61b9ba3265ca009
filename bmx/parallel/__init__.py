"""Mesh, rules, and the placement of arrays."""

from bmx.parallel.mesh import AXES, describe, describe_place, make_mesh
from bmx.parallel.pipeline import pipeline, stages
from bmx.parallel.sharding import (
  Layout,
  Stored,
  axes_of,
  constrain,
  current,
  gather,
  jit,
  named,
  one_device,
  shard_map,
  unbox,
  use,
)

__all__ = [
  'AXES',
  'Layout',
  'Stored',
  'axes_of',
  'constrain',
  'current',
  'describe',
  'describe_place',
  'gather',
  'jit',
  'make_mesh',
  'named',
  'one_device',
  'pipeline',
  'shard_map',
  'stages',
  'unbox',
  'use',
]
