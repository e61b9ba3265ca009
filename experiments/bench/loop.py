"""What the framework adds to the bare jitted step: the loop with its feed, metrics, guard of the
clock, log lines, against the same dispatch called again and again on one group of data.

    python experiments/bench/loop.py [NAME ...]

Windows of both in turn, wall time. Writes loop.json here: the median of the ratios, framework over
bare, and the middle half of them; `save_stall`: the share of time that the loop stands still for
checkpoints, as often as the recipe saves; `data_wait`: the share that it waits for data.
"""

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
from bmx.runtime.writer import read_metrics
from bmx.train.loop import Trainer
from bmx.train.rundir import RunDir

ROOT = pathlib.Path(__file__).parent.parent.parent
# name -> (recipe, overrides, steps a window)
RUNS = {
  'GPT 0.8 M': ('gpt_char.py', [], 100),
  'digits MLP': ('digits_mlp.py', ['epochs=0.0'], 1000),
}
WINDOWS = 21


class Windows(Trainer):
  """A trainer that runs its program on one group between windows of its own loop.

  `at_mark` is where the loop comes after every dispatch; at the end of each window it stands still
  while the bare program runs as many steps.
  """

  def bare(self, compiled: Any, steps: int) -> float:
    """Seconds of `steps` steps without the framework."""
    group, _ = next(self.feed.groups([(self.step, self.depth)]))
    state = jax.tree.map(lambda x: x.copy(), self.state)
    began = time.perf_counter()
    for start in range(0, steps, self.depth):
      n = min(self.depth, steps - start)
      state, sums, _ = compiled(state, self.constants, group, np.int32(n))
      jax.block_until_ready(sums)
    return time.perf_counter() - began

  def _compile(self) -> Any:
    self.compiled = super()._compile()
    return self.compiled

  def _train(self) -> None:
    self.pairs: list[tuple[float, float]] = []
    self.began = 0.0
    super()._train()

  def _at_mark(self) -> None:
    super()._at_mark()
    window = self.x.every.log
    if self.step % window:
      return
    self._drain()
    took = time.perf_counter() - self.began
    plain = self.bare(self.compiled, window)
    if self.step > 2 * window:
      self.pairs.append((took, plain))
    self.throughput.begin(self.step)
    self.began = time.perf_counter()


def ratio(recipe: str, overrides: list[str], window: int) -> dict[str, Any]:
  steps = window * (WINDOWS + 2)
  words = [*overrides, f'steps={steps}', f'every.log={window}', 'every.eval=0', 'every.save=0']
  config, name = recipes.load(str(ROOT / 'configs' / recipe), words)
  x = experiment.build(config, name, jax.devices()[:1])
  with tempfile.TemporaryDirectory() as folder:
    trainer = Windows(x, RunDir(f'{folder}/run', x))
    trainer.run()
  low, median, high = statistics.quantiles([a / b for a, b in trainer.pairs], n=4)
  return {
    'framework/bare': [round(median, 4), round(low, 4), round(high, 4)],
    'steps_a_dispatch': trainer.depth,
  }


def shares(recipe: str, overrides: list[str]) -> dict[str, Any]:
  """Of the time of a run as the recipe has it, without its evaluations: of two saves, or whole."""
  config, name = recipes.load(str(ROOT / 'configs' / recipe), ['every.eval=0'])
  if config.every.save:
    recipes.apply(config, [*overrides, f'steps={2 * config.every.save}'])
  x = experiment.build(config, name, jax.devices()[:1])
  with tempfile.TemporaryDirectory() as folder:
    trainer = Trainer(x, RunDir(f'{folder}/run', x))
    stalls: list[float] = []
    pause = trainer._save

    def save() -> None:
      trainer._drain()
      began = time.perf_counter()
      pause()
      stalls.append(time.perf_counter() - began)

    trainer._save = save  # type: ignore[method-assign]
    summary = trainer.run()
    lines = read_metrics(pathlib.Path(folder) / 'run' / 'metrics.jsonl')
  waits = [line['data_wait_fraction'] for line in lines if 'data_wait_fraction' in line]
  return {
    'save_stall': round(sum(stalls) / summary['seconds'], 4),
    'data_wait': round(statistics.mean(waits), 4),
    'steps_a_save': config.every.save,
  }


def main() -> None:
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
