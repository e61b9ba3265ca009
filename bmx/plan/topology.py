"""Absent devices: TPU slices and GPU nodes, as the real compilers know them.

libtpu and jax's CUDA plugin (the extra `aot`) compile for them on any machine. `cpu` is this one.
"""

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

from bmx.core import chips
from bmx.core.errors import InputError, did_you_mean

# Kind -> examples of its shapes. v4 and v5p are tori of three dimensions, v5e and v6e of two.
TPUS = {
  'v4': '2x2x1, 4x4x4, 16x16x16',
  'v5e': '2x2, 4x4, 16x16',
  'v5p': '2x2x1, 4x4x4, 8x8x16',
  'v6e': '2x4, 8x8, 16x16',
  'tpu7x': '2x2x1, 4x4x4, 16x16x16',
}
# Slices and nodes that --topology=auto considers.
AUTO = ('v5e:2x4', 'v5e:4x4', 'v5e:8x8', 'v5e:16x16', 'v6e:2x4', 'v6e:4x4', 'v6e:8x8', 'v6e:16x16',
        'v5p:2x2x2', 'v5p:4x4x4', 'v5p:8x8x8', 'l4:1', 'a100_80:1', 'a100_80:8', 'h100:1', 'h100:8',
        'h100:8x8', 'h200:8', 'h200:8x8', 'b200:8')  # fmt: skip
GPU_SHAPES = '1, 8, 32x8 (hosts x devices)'
CPU = 'cpu'


class Target(NamedTuple):
  """What the CUDA compiler asks of a GPU, as its driver reports it.

  Attributes:
    name: of the device.
    capability: compute capability, major and minor.
    cores: streaming multiprocessors.
    fpus: float32 units of one.
    threads: most threads of one.
    shared: bytes of its shared memory; a block may take 1,024 fewer.
    cache: bytes of the L2 cache.
    clock: GHz.
  """

  name: str
  capability: tuple[int, int]
  cores: int
  fpus: int
  threads: int
  shared: int
  cache: int
  clock: float


# A100, H100, B200: as the specifications in openxla/xla have them; L4, A10G: architecture papers.
GPUS = {
  'l4': Target('NVIDIA L4', (8, 9), 58, 128, 1536, 102400, 50331648, 2.04),
  'a10g': Target('NVIDIA A10G', (8, 6), 80, 128, 1536, 102400, 6291456, 1.71),
  'a100_40': Target('NVIDIA A100-SXM4-40GB', (8, 0), 108, 64, 2048, 167936, 41943040, 1.41),
  'a100_80': Target('NVIDIA A100-SXM4-80GB', (8, 0), 108, 64, 2048, 167936, 41943040, 1.41),
  'h100': Target('NVIDIA H100 80GB HBM3', (9, 0), 132, 128, 2048, 233472, 52428800, 1.98),
  'h200': Target('NVIDIA H200', (9, 0), 132, 128, 2048, 233472, 52428800, 1.98),
  'b200': Target('NVIDIA B200', (10, 0), 148, 128, 2048, 233472, 132644864, 1.965),
}


def describe_target(kind: str) -> str:
  """Formats a GPU of `GPUS` as the text that the CUDA compiler reads."""
  t, chip = GPUS[kind], chips.KINDS[kind]
  return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: {t.shared} threads_per_core_limit: {t.threads} core_count: {t.cores}
  fpus_per_core: {t.fpus}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {int(chip.bandwidth)} l2_cache_size: {t.cache} clock_rate_ghz: {t.clock}
  device_memory_size: {int(chip.memory)} shared_memory_per_block_optin: {t.shared - 1024}
  cuda_compute_capability {{ major: {t.capability[0]} minor: {t.capability[1]} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 9 }} device_description_str: "{t.name}"
"""


def prepare() -> None:
  """Sets the environment of the compilers; call it before jax is imported."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')


def devices(name: str) -> list[Any]:
  """Returns the devices of a topology: 'v5e:4x4', two slices 'v5e:4x4@2', 'h200:32x8', 'cpu'.

  Raises InputError: an unknown name, a shape the compiler refuses, a compiler that is missing.
  """
  if name == CPU:
    return _cpus()
  kind, shape, slices = _parsed(name)
  return _gpus(kind, shape) if kind in GPUS else _tpus(name, kind, shape, slices)


def _cpus() -> list[Any]:
  import jax

  return jax.devices(CPU)[:1]


def count(name: str) -> tuple[str, int]:
  """Returns the kind of a topology and the number of its devices, without a compiler.

  >>> count('v5e:4x4@2'), count('tpu7x:2x2x1'), count('h200:32x8')
  (('v5e', 32), ('tpu7x', 8), ('h200', 256))

  Raises InputError for an unknown name.
  """
  kind, shape, slices = _parsed(name)
  chips_of = math.prod(map(int, shape.split('x'))) * slices
  return kind, 2 * chips_of if kind == 'tpu7x' else chips_of


def _parsed(name: str) -> tuple[str, str, int]:
  """Returns (kind, shape, slices). Raises InputError for an unknown name."""
  match = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)(?:@(\d+))?', name)
  kind = name.partition(':')[0]
  known = TPUS | dict.fromkeys(GPUS, GPU_SHAPES)
  if not match or kind not in known:
    shapes = '; '.join(f'{k}:{v}' for k, v in known.items())
    near = did_you_mean(kind, known) if kind not in known else ''
    raise InputError(
      f'--topology={name!r} is not a topology{near}\nexpected {shapes}; @2 is two slices; '
      'cpu is this machine'
    )
  _, shape, slices = match.groups()
  return kind, shape, int(slices or 1)


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


def _gpus(kind: str, shape: str) -> list[Any]:
  from jax.experimental import topologies

  _need('jax_cuda12_plugin')
  hosts, _, local = shape.rpartition('x')
  if 'x' in hosts:
    raise InputError(f'{kind}:{shape}: give devices, or hosts x devices')
  text = f'1x{hosts or 1}x{local}'
  made = topologies.get_topology_desc(
    text, 'cuda', topology=text, target_config=describe_target(kind)
  )
  return list(made.devices)


def _need(package: str) -> None:
  if importlib.util.find_spec(package) is None:
    raise InputError(f"planning for this topology needs {package}: pip install 'bmx-jax[aot]'")
