"""Absent devices: TPU slices and GPU nodes, as the real compilers know them.

libtpu and jax's CUDA plugin (the extra `aot`) compile for them on any machine.
"""

import importlib.util
import os
import re
from typing import Any

from bmx.core.errors import InputError, did_you_mean

# Kind -> examples of its shapes. v4 and v5p are tori of three dimensions, v5e and v6e of two.
TPUS = {
  'v4': '2x2x1, 4x4x4, 16x16x16',
  'v5e': '2x2, 4x4, 16x16',
  'v5p': '2x2x1, 4x4x4, 8x8x16',
  'v6e': '2x4, 8x8, 16x16',
  'tpu7x': '2x2x1, 4x4x4, 16x16x16',
}
GPUS = {'h200': '1, 8, 32x8 (hosts x devices)'}

H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 150000000000 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 9 } device_description_str: "NVIDIA H200"
"""


def prepare() -> None:
  """Sets the environment of the compilers; call it before jax is imported."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')


def devices(name: str) -> list[Any]:
  """Returns the devices of a topology: 'v5e:4x4', two slices 'v5e:4x4@2', 'h200:8', 'h200:32x8'.

  Raises InputError: an unknown name, a shape the compiler refuses, a compiler that is missing.
  """
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)(?:@(\d+))?', name)
  kind = name.partition(':')[0]
  known = TPUS | GPUS
  if not match or kind not in known:
    shapes = '; '.join(f'{k}:{v}' for k, v in known.items())
    near = did_you_mean(kind, known) if kind not in known else ''
    raise InputError(
      f'--topology={name!r} is not a topology{near}\nexpected {shapes}; @2 is two slices'
    )
  _, shape, slices = match.groups()
  return _gpus(shape) if kind in GPUS else _tpus(name, kind, shape, int(slices or 1))


def _tpus(name: str, kind: str, shape: str, slices: int) -> list[Any]:
  from jax.experimental import topologies

  _need('libtpu')
  options: dict[str, Any] = {'num_slices': slices}
  if kind == 'v4':
    options['chip_config_name'] = 'megacore'  # one jax device a chip
  try:
    return list(topologies.get_topology_desc(f'{kind}:{shape}', 'tpu', **options).devices)
  except Exception as error:  # jaxlib raises several kinds
    reason = str(error).splitlines()[0]
    raise InputError(
      f'--topology={name!r}: {kind} has shapes {TPUS[kind]}, ...: {reason}'
    ) from None


def _gpus(shape: str) -> list[Any]:
  from jax.experimental import topologies

  _need('jax_cuda12_plugin')
  hosts, _, local = shape.rpartition('x')
  if 'x' in hosts:
    raise InputError(f'h200:{shape}: give devices, or hosts x devices')
  text = f'1x{hosts or 1}x{local}'
  made = topologies.get_topology_desc(text, 'cuda', topology=text, target_config=H200)
  return list(made.devices)


def _need(package: str) -> None:
  if importlib.util.find_spec(package) is None:
    raise InputError(f"planning for this topology needs {package}: pip install 'bmx-jax[aot]'")
