"""Mesh, rules, and the placement of arrays."""

from bmx.parallel.mesh import AXES, describe, describe_place, make_mesh
from bmx.parallel.pipeline import pipeline, stages
from bmx.parallel.sharding import Layout, current, jit, named, unbox, use
from bmx.parallel.traced import (
  Stored,
  axes_of,
  constrain,
  gather,
  one_device,
  per_example,
  platform,
  shard_map,
  vmap_examples,
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
  'per_example',
  'pipeline',
  'platform',
  'shard_map',
  'stages',
  'unbox',
  'use',
  'vmap_examples',
]
