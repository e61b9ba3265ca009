"""Overhead of the loop over the bare jitted step.

    python experiments/bench/loop.py [NAME ...]

The loop has its feed, metrics, guard of the clock and log lines; the bare step is the same dispatch
called again and again on one group of data. Windows of both in turn, wall time. Writes loop.json
here: the median of the ratios, framework over bare, and the middle half of them; `save_stall`: the
share of time that the loop waits for checkpoints, as often as the recipe saves; `data_wait`: the
share that it waits for data.
"""

import dataclasses
import datetime
import json
import logging
import os
import pathlib
import platform
import statistics
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np

from bmx import config as recipes
from bmx import experiment
from bmx.core.events import Hook
from bmx.runtime.writer import read_metrics
from bmx.train.loop import run as train
from bmx.train.run import Event

ROOT = pathlib.Path(__file__).parent.parent.parent
# name -> (recipe, overrides, steps a window)
RUNS = {
  'GPT 0.8 M': ('gpt_char.py', [], 100),
  'digits MLP': ('digits_mlp.py', ['epochs=0.0'], 1000),
}
WINDOWS = 21


@dataclasses.dataclass
class Windows:
  """A hook at the end of each window: the bare program then runs as many steps.

  Attributes:
    window: steps.
    pairs: seconds of each window of the loop, and of the bare program.
    began: time at which the window of the loop began.
  """

  window: int
  pairs: list[tuple[float, float]] = dataclasses.field(default_factory=list)
  began: float = 0.0

  def __call__(self, event: Event) -> None:
    took = time.perf_counter() - self.began
    plain = self.bare(event)
    if event.step > 2 * self.window:
      self.pairs.append((took, plain))
    self.began = time.perf_counter()

  def bare(self, event: Event) -> float:
    """Returns the seconds of a window of steps without the framework."""
    run, depth = event.run, event.run.feed.depth
    group, _ = next(run.feed.groups([(event.step, depth)]))
    state = jax.tree.map(lambda x: x.copy(), event.state)
    began = time.perf_counter()
    for start in range(0, self.window, depth):
      n = min(depth, self.window - start)
      state, sums, _ = run.program(state, run.arrays, group, np.int32(n), run.secret)
      jax.block_until_ready(sums)
    return time.perf_counter() - began


def ratio(recipe: str, overrides: list[str], window: int, windows: int = WINDOWS) -> dict[str, Any]:
  """Returns framework over bare: the median of `windows` ratios, and their quartiles."""
  steps = window * (windows + 2)
  words = [*overrides, f'steps={steps}', f'every.log={window}', 'every.eval=0', 'every.save=0']
  config, name = recipes.load(str(ROOT / 'configs' / recipe), words)
  x = experiment.build(config, name, jax.devices()[:1])
  seen, depth = Windows(window), []
  hooks = {'depth': Hook(0, lambda event: depth.append(event.run.feed.depth))}
  with tempfile.TemporaryDirectory() as folder:
    train(x, f'{folder}/run', {'windows': Hook(window, seen)} | hooks)
  low, median, high = statistics.quantiles([a / b for a, b in seen.pairs], n=4)
  return {
    'framework/bare': [round(median, 4), round(low, 4), round(high, 4)],
    'steps_a_dispatch': depth[0],
  }


def shares(recipe: str, overrides: list[str]) -> dict[str, Any]:
  """Returns shares of the time of a run without evaluations: of two saves, or the whole recipe."""
  config, name = recipes.load(str(ROOT / 'configs' / recipe), ['every.eval=0'])
  if config.every.save:
    recipes.apply(config, [*overrides, f'steps={2 * config.every.save}'])
  x = experiment.build(config, name, jax.devices()[:1])
  with tempfile.TemporaryDirectory() as folder:
    summary = train(x, f'{folder}/run')
    lines = read_metrics(pathlib.Path(folder) / 'run' / 'metrics.jsonl')
  waits = [line['data_wait_fraction'] for line in lines if 'data_wait_fraction' in line]
  return {
    'save_stall': round(summary['hook_seconds']['save'] / _looped(summary), 4),
    'data_wait': round(statistics.mean(waits), 4),
    'steps_a_save': config.every.save,
  }


def _looped(summary: dict[str, Any]) -> float:
  """Seconds of a run after its start and compilation."""
  parts = summary['seconds_by_part']
  return sum(parts.values()) - parts['start'] - parts['compile']


def main() -> None:
  """Runs the chosen recipes and updates loop.json."""
  logging.getLogger('bmx').setLevel(logging.WARNING)
  path = pathlib.Path(__file__).with_suffix('.json')
  results = json.loads(path.read_text()) if path.exists() else {}
  for name in sys.argv[1:] or RUNS:
    results[name] = (
      ratio(*RUNS[name])
      | shares(*RUNS[name][:2])
      | {
        'date': datetime.date.today().isoformat(),
        'machine': f'{len(os.sched_getaffinity(0))} × {platform.machine()} CPU',
      }
    )
    path.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
  main()
