"""The choices for each kind of device."""

import ctypes
import sys
from collections.abc import Iterable
from typing import Any

from bmx.core import chips
from bmx.core.chips import Chip


def chip(device: Any) -> Chip | None:
  """Returns the chip behind a device, None if its peak is unknown (a CPU)."""
  return chips.find(device.device_kind)


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
    lengths: of the rows of all data, in tokens; () where the model makes them, of images.
  """
  attention = ATTENTION.get(platform, 'xla') if shards == 1 else 'ring'
  if attention == 'cudnn' and dtype not in ('bfloat16', 'float16'):
    attention = 'xla'
  known = tuple(lengths)
  if attention == 'splash' and (not known or any(length % LANES for length in known)):
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
