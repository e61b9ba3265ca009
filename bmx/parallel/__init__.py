"""Mesh, rules, and the placement of arrays."""

from bmx.parallel.mesh import AXES, describe, make_mesh
from bmx.parallel.sharding import Layout, constrain, gather, jit, named, one_device, use

__all__ = [
  'AXES',
  'Layout',
  'constrain',
  'describe',
  'gather',
  'jit',
  'make_mesh',
  'named',
  'one_device',
  'use',
]
