"""The convolutions of the small CNN, one by one, beside PyTorch's and the fastest product.

    taskset -c 0 python experiments/bench/conv.py        # extra `reference`

CPU time on one pinned core, calls of both in turns. Writes conv.json here: milliseconds and GFLOP/s
of each kernel, and of a square product, which is what this core reaches (a roofline: these
convolutions read too little to be bound by memory).
"""

import datetime
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import cpu
import jax
import jax.numpy as jnp
import numpy as np
import torch

from bmx.core.hardware import keep_freed_memory

BATCH, SIDE = 128, 1024  # images; rows of the square product
TURNS, WARM = 15, 2
# Name -> (side of the map in pixels, channels in, channels out), kernels of 5 × 5.
LAYERS = {'first': (28, 1, 32), 'second': (14, 32, 64)}
NAMES = ('NHWC', 'HWIO', 'NHWC')
Call = Callable[[], Any]


def of_bmx(side: int, channels: int, features: int) -> dict[str, Call]:
  """Returns the kernels of a layer as XLA compiles them."""
  x = jnp.ones((BATCH, side, side, channels))
  kernel = jnp.ones((5, 5, channels, features))
  g = jnp.ones((BATCH, side, side, features))
  conv = lambda x, k: jax.lax.conv_general_dilated(x, k, (1, 1), 'SAME', dimension_numbers=NAMES)
  programs = {
    'forward': jax.jit(conv),
    'input': jax.jit(lambda x, k, g: jax.vjp(lambda x: conv(x, k), x)[1](g)),
    'kernel': jax.jit(lambda x, k, g: jax.vjp(lambda k: conv(x, k), k)[1](g)),
  }
  calls: dict[str, Call] = {
    'forward': lambda: jax.block_until_ready(programs['forward'](x, kernel))
  }
  for name in ('input', 'kernel'):
    calls[name] = lambda run=programs[name]: jax.block_until_ready(run(x, kernel, g))
  return calls


def of_torch(side: int, channels: int, features: int) -> dict[str, Call]:
  """Returns the same kernels of PyTorch."""
  x = torch.ones(BATCH, channels, side, side)
  kernel = torch.ones(features, channels, 5, 5)
  g = torch.ones(BATCH, features, side, side)
  backward = lambda mask: torch.ops.aten.convolution_backward(
    g, x, kernel, None, (1, 1), (2, 2), (1, 1), False, (0, 0), 1, mask
  )
  return {
    'forward': lambda: torch.conv2d(x, kernel, padding=2),
    'input': lambda: backward((True, False, False)),
    'kernel': lambda: backward((False, True, False)),
  }


def product() -> dict[str, Call]:
  """Returns a square product of both."""
  ours, theirs = jnp.ones((SIDE, SIDE)), torch.ones(SIDE, SIDE)
  return {'bmx': lambda: jax.block_until_ready(ours @ ours), 'torch': lambda: theirs @ theirs}


def in_turns(calls: dict[str, Call], flops: float) -> dict[str, dict[str, float]]:
  """Times calls in turns -> median milliseconds and GFLOP/s of each."""
  took: dict[str, list[float]] = {name: [] for name in calls}
  for turn in range(TURNS + WARM):
    for name, call in calls.items():
      began = time.process_time()
      call()
      if turn >= WARM:
        took[name].append(time.process_time() - began)
  seconds = {name: statistics.median(times) for name, times in took.items()}
  rate = lambda s: round(flops / s / 1e9, 1)
  return {k: {'milliseconds': round(1e3 * s, 2), 'gflops': rate(s)} for k, s in seconds.items()}


def main() -> None:
  """Measures every kernel and writes conv.json."""
  torch.set_num_threads(1)
  torch.set_grad_enabled(False)
  keep_freed_memory()
  found = {f'product of {SIDE}': in_turns(product(), 2.0 * SIDE**3)}
  for layer, (side, channels, features) in LAYERS.items():
    flops = 2.0 * BATCH * _taps(side) * channels * features
    ours, theirs = of_bmx(side, channels, features), of_torch(side, channels, features)
    for name in ours if channels > 1 else ('forward', 'kernel'):
      calls = {'bmx': ours[name], 'torch': theirs[name]}
      found[f'{layer}, {name}'] = in_turns(calls, flops)
  path = pathlib.Path(__file__).with_suffix('.json')
  every = json.loads(path.read_text()) if path.exists() else {}
  every[cpu.processor()] = {
    'date': datetime.date.today().isoformat(),
    'machine': f'{len(os.sched_getaffinity(0))} × {platform.machine()} CPU',
    'kernels': found,
  }
  path.write_text(json.dumps(every, indent=1) + '\n')
  for name, both in found.items():
    sys.stdout.write(f'{name}: {both}\n')


def _taps(side: int) -> int:
  """Returns the products of a 5 × 5 kernel that lie inside of a map, by pair of channels."""
  reached = sum(min(i, 2) + min(side - 1 - i, 2) + 1 for i in range(side))
  return int(np.square(reached))


if __name__ == '__main__':
  main()
