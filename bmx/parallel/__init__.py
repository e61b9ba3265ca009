"""Mesh, rules, and the placement of arrays."""

from bmx.parallel.mesh import AXES, describe, describe_place, make_mesh
from bmx.parallel.pipeline import pipeline, stages
from bmx.parallel.sharding import Layout, current, jit, named, unbox, use
from bmx.parallel.traced import Stored, axes_of, constrain, gather, one_device, platform, shard_map

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
  'platform',
  'shard_map',
  'stages',
  'unbox',
  'use',
]
