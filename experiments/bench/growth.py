"""How the time and memory of a training step grow with length, width, depth, vocabulary, experts.

    taskset -c 0 python experiments/bench/growth.py [AXIS ...]

CPU time of the compiled step of a small decoder on one pinned core, and its temporaries. Writes
growth.json here: for each axis the ratios to the smallest size, and exponents, fitted to the larger
half of the sizes, beside that of the FLOPs: a time that grows faster than the arithmetic wants an
explanation. A decoder of experts computes the same FLOPs for any number of them.
"""

import datetime
import json
import os
import pathlib
import platform
import sys
import time
from typing import Any

import cpu
import jax
import numpy as np

from bmx import config as recipes
from bmx import experiment
from bmx.core.hardware import keep_freed_memory
from bmx.plan import processor
from bmx.plan.compile import compile_step
from bmx.train.start import step_costs
from bmx.train.state import state_spec

ROOT = pathlib.Path(__file__).parent.parent.parent
MODEL = 'task.model'
SMALL = ['dtype=float32', 'grad.steps=1', 'mesh.data=1', 'vocab=2048', 'length=256', 'batch_size=2',
         f'{MODEL}.depth=2', f'{MODEL}.width=128', f'{MODEL}.heads=4']  # fmt: skip
GPT2 = [*SMALL, f'{MODEL}.vocab_pad=0']
MOE = [*SMALL, f'{MODEL}.kv_heads=4', f'{MODEL}.mlp_dim=256', f'{MODEL}.remat=none']
# Axis -> (recipe, words, the word that grows, its sizes, words that follow it).
AXES: dict[str, tuple[str, list[str], str, tuple[int, ...]]] = {
  'length': ('gpt2_124m', [*GPT2, 'batch_size=1'], 'length',
             (128, 256, 512, 1024, 2048, 4096, 8192)),
  'width': ('gpt2_124m', GPT2, f'{MODEL}.width', (64, 128, 256, 512, 1024)),
  'depth': ('gpt2_124m', GPT2, f'{MODEL}.depth', (1, 2, 4, 8, 16)),
  'vocabulary': ('gpt2_124m', GPT2, 'vocab', (2048, 8192, 32768, 131072)),
  'experts': ('moe', MOE, f'{MODEL}.experts', (2, 4, 8, 16, 32)),
}  # fmt: skip


def point(recipe: str, words: list[str]) -> dict[str, float]:
  """Compiles and runs a step -> seconds, FLOPs, bytes of temporaries, seconds of compilation."""
  config, name = recipes.load(str(ROOT / f'configs/{recipe}.py'), words)
  x = experiment.build(config, name, jax.devices()[:1], read=False)
  made = compile_step(x)
  return {
    'seconds': processor.step_seconds(x, made.program, time.process_time),
    'flops': float(step_costs(x, state_spec(x)).flops),
    'temporaries': float(made.program.memory_analysis().temp_size_in_bytes),
    'compile_seconds': made.seconds,
  }


def exponent(sizes: list[int], values: list[float]) -> float:
  """Returns the slope of log value over log size, of the larger half of the sizes."""
  half = len(sizes) // 2
  slope, _ = np.polyfit(np.log(sizes[half:]), np.log(values[half:]), 1)
  return round(float(slope), 3)


def axis(name: str) -> dict[str, Any]:
  """Measures an axis -> what growth.json holds of it."""
  recipe, words, word, sizes = AXES[name]
  points = [point(recipe, [*words, f'{word}={size}']) for size in sizes]
  found: dict[str, Any] = {'recipe': recipe, 'sizes': list(sizes)}
  for key in points[0]:
    values = [p[key] for p in points]
    found[key] = {
      'first': float(f'{values[0]:.4g}'),
      'ratios': [float(f'{v / values[0]:.4g}') for v in values],
      'exponent': exponent(list(sizes), values),
    }
  return found


def main() -> None:
  """Measures the chosen axes and updates growth.json."""
  keep_freed_memory()
  path = pathlib.Path(__file__).with_suffix('.json')
  every = json.loads(path.read_text()) if path.exists() else {}
  for name in sys.argv[1:] or AXES:
    every[name] = axis(name) | {
      'date': datetime.date.today().isoformat(),
      'machine': f'{len(os.sched_getaffinity(0))} × {platform.machine()} CPU, {cpu.processor()}',
    }
    path.write_text(json.dumps(every, indent=1) + '\n')
    exponents = {k: v['exponent'] for k, v in every[name].items() if isinstance(v, dict)}
    sys.stdout.write(f'{name}: exponents {exponents}\n')


if __name__ == '__main__':
  main()
