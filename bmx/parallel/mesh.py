"""The mesh: six named axes over the devices."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from bmx.core.errors import InputError, did_you_mean
from bmx.core.layout import AXES

SLOW = ('pipe', 'data', 'fsdp')  # axes that may cross the network between slices


def make_mesh(shape: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
  """Makes a mesh with all six axes.

  Args:
    shape: axis -> size; -1 (one at most) takes the remaining devices, a missing axis is 1.
    devices: default: all.

  Raises:
    InputError: an unknown axis, or sizes whose product is not the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  for axis in shape:
    if axis not in AXES:
      raise InputError(f'unknown mesh axis {axis!r}{did_you_mean(axis, AXES)}')
  sizes = {axis: int(shape.get(axis, 1)) for axis in AXES}
  text = ', '.join(f'{a}={n}' for a, n in sizes.items() if n != 1) or 'all axes 1'
  free = [a for a, n in sizes.items() if n == -1]
  fixed = math.prod(n for n in sizes.values() if n != -1)
  if len(free) > 1 or fixed < 1:
    raise InputError(f'mesh {text}: sizes are at least 1, and one axis at most may be -1')
  if free and len(devices) % fixed == 0:
    sizes[free[0]] = len(devices) // fixed
  if math.prod(sizes.values()) != len(devices):
    raise InputError(
      f'mesh {text} needs {"a multiple of " if free else ""}{fixed} devices, but there are '
      f'{len(devices)} ({devices[0].device_kind}); change --config.mesh.AXIS=N'
    )
  # Explicit axes, jax's default, refuse what linen does inside its modules.
  return Mesh(_grid(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _grid(sizes: Mapping[str, int], devices: Sequence[Any]) -> Any:
  """Returns the devices in the order of the axes.

  Slices lie along the first axis that they divide, of those that communicate least: pipeline, data,
  then FSDP.
  """
  split = devices[0].platform == 'tpu'
  slices = count_slices(devices)
  if slices == 1:
    return mesh_utils.create_device_mesh(
      tuple(sizes.values()), devices, allow_split_physical_axes=split
    )
  across = next((a for a in SLOW if sizes[a] % slices == 0), None)
  if across is None:
    raise InputError(
      f'{slices} slices, and none of {", ".join(f"mesh.{a}={sizes[a]}" for a in SLOW)} is '
      f'divisible by {slices}: the network between slices is too slow for the other axes'
    )
  slow = {a: slices if a == across else 1 for a in sizes}
  fast = [n // slow[a] for a, n in sizes.items()]
  return mesh_utils.create_hybrid_device_mesh(
    fast, list(slow.values()), devices, allow_split_physical_axes=split
  )


def count_slices(devices: Sequence[Any]) -> int:
  """Returns the number of TPU slices among devices; 1 for other devices."""
  return len({getattr(d, 'slice_index', 0) for d in devices})


def describe_place(spec: Any) -> str:
  """Formats a PartitionSpec.

  >>> from jax.sharding import PartitionSpec as P
  >>> describe_place(P(None, ('data', 'fsdp'), 'model')), describe_place(P())
  ('·, data+fsdp, model', 'replicated')
  """
  parts = ['+'.join((p,) if isinstance(p, str) else p or ('·',)) for p in spec]
  return ', '.join(parts) or 'replicated'


def describe(mesh: Mesh) -> str:
  """Formats a mesh.

  >>> describe(make_mesh({}, jax.devices()[:1]))
  '1 device'
  """
  sizes = [f'{a}={n}' for a, n in mesh.shape.items() if n > 1]
  return ' × '.join(sizes) if sizes else '1 device'
