"""The cost of clipping by example, in time and memory; writes cost.json.

    python experiments/privacy/cost.py

One gradient of a batch of random examples: plain, clipped from gradients of single examples
(privacy.method=vmap), and by ghost clipping. CPU seconds are the median of five calls, taken in
turn; bytes are those of temporaries that the compiler plans.
"""

import datetime
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core import tree
from bmx.core.types import Noise
from bmx.models.cnn import CNN
from bmx.models.gpt import GPT
from bmx.models.mlp import MLP
from bmx.parallel.sharding import unbox
from bmx.privacy import Clipped, GhostClipped
from bmx.tasks.classification import Classification
from bmx.tasks.language import CausalLM
from bmx.train.gradients import Gradient

PATH = pathlib.Path(__file__).parent / 'cost.json'
REPEATS = 5
RANDOM = np.random.default_rng(0)


def images(rows: int) -> dict[str, Any]:
  """Random images of MNIST's size."""
  return {
    'image': RANDOM.normal(size=(rows, 28, 28, 1)).astype(np.float32),
    'label': RANDOM.integers(0, 10, rows).astype(np.int32),
    'weights': np.ones(rows, np.float32),
  }


def tokens(rows: int, length: int = 64) -> dict[str, Any]:
  """Random characters."""
  ids = RANDOM.integers(0, 65, (rows, length + 1)).astype(np.int32)
  return {'tokens': ids[:, :-1], 'targets': ids[:, 1:], 'weights': np.ones((rows, length), 'f4')}


CASES: dict[str, tuple[Any, Callable[[int], dict[str, Any]], int]] = {
  'MLP, 784-512-512-10': (Classification(MLP(10, (512, 512))), images, 256),
  "CNN of mnist_dp, 8-16 channels": (
    Classification(CNN(10, (8, 16), 3, (32,), 'tanh')), images, 256,
  ),
  'CNN, 16-32-64-128 channels': (
    Classification(CNN(10, (16, 32, 64, 128), 3, (128,), 'tanh')), images, 64,
  ),
  'GPT, 4 layers of width 128, 64 tokens': (
    CausalLM(GPT(65, 64, width=128, depth=4, heads=4)), tokens, 32,
  ),
}  # fmt: skip
GRADIENTS = {'plain': Gradient, 'vmap': lambda task: Clipped(Gradient(task)),
             'ghost': lambda task: GhostClipped(Gradient(task))}  # fmt: skip


def measure(task: Any, batch: dict[str, Any]) -> dict[str, dict[str, float]]:
  """Returns the CPU seconds and temporary bytes of each gradient."""
  noise = Noise(jax.random.PRNGKey(0), jnp.int32(0))
  variables = unbox(dict(task.init(noise, batch)))
  print(f'  {tree.count(variables["params"]):,} parameters', flush=True)
  programs, spent = {}, {name: [] for name in GRADIENTS}
  for name, make in GRADIENTS.items():
    gradient = make(task)
    program = jax.jit(lambda v, b, g=gradient: g(v, b, noise).sum)
    programs[name] = program.lower(variables, batch).compile()
    jax.block_until_ready(programs[name](variables, batch))
  for _ in range(REPEATS):
    for name, program in programs.items():
      began = time.process_time()
      jax.block_until_ready(program(variables, batch))
      spent[name].append(time.process_time() - began)
  seconds = {name: statistics.median(values) for name, values in spent.items()}
  bytes_of = {k: p.memory_analysis().temp_size_in_bytes for k, p in programs.items()}
  return {
    name: {
      'cpu_seconds': round(seconds[name], 4),
      'times_plain': round(seconds[name] / seconds['plain'], 2),
      'temporary_megabytes': round(bytes_of[name] / 1e6, 1),
    }
    for name in GRADIENTS
  }


def main() -> None:
  """Measures every case."""
  found = {}
  for name, (task, make, rows) in CASES.items():
    print(f'{name}, {rows} examples', flush=True)
    found[name] = {'rows': rows, **measure(task, make(rows))}
    print(json.dumps(found[name], indent=1), flush=True)
  where = {
    'date': datetime.date.today().isoformat(),
    'machine': f'{os.cpu_count()} × {platform.machine()} CPU, shared with other work',
    'command': 'python experiments/privacy/cost.py',
  }
  PATH.write_text(json.dumps({**where, 'cases': found}, indent=1) + '\n')


if __name__ == '__main__':
  main()
