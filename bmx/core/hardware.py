"""Chips as data, and the choices for each kind of device.

Source of the peaks: data sheets of the vendors, dense, without sparsity.
"""

import ctypes
import dataclasses
import sys
from collections.abc import Iterable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
  """Peaks of one jax device.

  Attributes:
    flops: bfloat16 FLOP/s.
    memory: bytes.
    bandwidth: of the memory, bytes/s.
  """

  flops: float
  memory: float
  bandwidth: float


# Keyed by what `jax.Device.device_kind` says, in lower case; the first key it contains wins.
CHIPS = {
  'tpu v5 lite': Chip(197e12, 16e9, 819e9),
  'tpu v5e': Chip(197e12, 16e9, 819e9),
  'tpu v5p': Chip(459e12, 95e9, 2765e9),
  'tpu v5': Chip(459e12, 95e9, 2765e9),
  'tpu v6': Chip(918e12, 32e9, 1640e9),
  'tpu7x': Chip(1153.5e12, 96e9, 3690e9),
  'tpu v4': Chip(275e12, 32e9, 1228e9),
  'h200': Chip(989e12, 141e9, 4800e9),
  'h100': Chip(989e12, 80e9, 3350e9),
  'a100': Chip(312e12, 80e9, 2039e9),
  'l4': Chip(121e12, 24e9, 300e9),
}


def chip(device: Any) -> Chip | None:
  """Returns the chip behind a device, None if its peak is unknown (a CPU)."""
  kind = device.device_kind.lower()
  return next((c for name, c in CHIPS.items() if name in kind), None)


# What 'auto' in a config means, by platform. cuDNN computes in 16 bits only.
ATTENTION = {'tpu': 'splash', 'gpu': 'cudnn', 'cuda': 'cudnn', 'rocm': 'xla', 'cpu': 'xla'}


LANES = 128  # what divides a length that splash attention computes


def preset(
  platform: str, dtype: str, shards: int = 1, lengths: Iterable[int] = ()
) -> dict[str, Any]:
  """Returns the choices for a kind of device: config word -> value.

  >>> preset('gpu', 'bfloat16'), preset('gpu', 'float32')
  ({'attention': 'cudnn', 'remat': 'dots'}, {'attention': 'xla', 'remat': 'dots'})
  >>> preset('tpu', 'bfloat16', lengths=(1024,)), preset('tpu', 'bfloat16', lengths=(50,))
  ({'attention': 'splash', 'remat': 'dots'}, {'attention': 'xla', 'remat': 'dots'})

  Args:
    platform: of the devices.
    dtype: of the computation.
    shards: number of parts of the sequence.
    lengths: of the rows of all data, in tokens.
  """
  attention = ATTENTION.get(platform, 'xla') if shards == 1 else 'ring'
  if attention == 'cudnn' and dtype not in ('bfloat16', 'float16'):
    attention = 'xla'
  if attention == 'splash' and any(length % LANES for length in lengths):
    attention = 'xla'
  # On a GPU a saved element-wise result costs more than another computation of it: a profile of
  # GPT-2 124M in a scan, experiments/bench/README.md.
  return {'attention': attention, 'remat': 'none' if platform == 'cpu' else 'dots'}


# Options of glibc's mallopt, and bytes. Above 128 MiB blocks are still mapped one by one: where the
# heap holds gigabytes of them, a small block that lands in a freed one makes it grow by all again.
MALLOC = {'mmap_threshold': (-3, 2**27), 'trim_threshold': (-1, 2**28), 'top_pad': (-2, 2**26)}


def keep_freed_memory() -> bool:
  """Lets this process keep freed blocks of 32 to 128 MiB; returns whether glibc accepts that.

  glibc returns such a block to the system at once, and XLA:CPU allocates the temporaries of every
  call as one block: a step of a small CNN spent 20 of its 70 ms on page faults. Costs some 300 MiB,
  and up to 64 MiB for each other thread that allocates. Does nothing except on Linux with a glibc
  that accepts the limit (2.36 does).
  """
  mallopt = getattr(ctypes.CDLL(None), 'mallopt', None) if sys.platform == 'linux' else None
  return mallopt is not None and all(mallopt(*option) for option in MALLOC.values())
