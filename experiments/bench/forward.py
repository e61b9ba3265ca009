"""A batch of `bmx eval` and `bmx predict` beside the forward pass of training on such a batch.

    taskset -c 0 python experiments/bench/forward.py

CPU time on one pinned core, in turns, reading of data included for eval and predict and excluded
for the forward pass. Writes forward.json here: medians and ratios; at most about 1 is the goal.
"""

import dataclasses
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

from bmx import config as recipes
from bmx import experiment
from bmx.core.hardware import keep_freed_memory
from bmx.parallel import jit
from bmx.train.evaluate import Evaluator, Predictor, eval_noise
from bmx.train.feed import Feed
from bmx.train.state import eval_variables, state_spec

ROOT = pathlib.Path(__file__).parent.parent.parent
# Recipe -> words: the batches of `eval` are as large as those of training.
CASES = {
  'digits_mlp': ['batch_size=64', 'eval.test.batch_size=64'],
  'gpt_char': ['eval.valid.batch_size=12'],
  'cifar10_resnet:tiny': ['batch_size=64', 'eval.test.batch_size=64'],
  'bert_finetune:tiny': ['batch_size=16', 'eval.valid.batch_size=16'],
  'adult_mlp:tiny': ['batch_size=64', 'eval.test.batch_size=64'],
}
TURNS, WARM = 11, 1
SECONDS = 60  # after which three turns are enough
MOST = 640  # examples that a prediction reads


def calls(recipe: str, words: list[str]) -> dict[str, tuple[Callable[[], Any], int]]:
  """Returns name -> (call, batches of it)."""
  config, name = recipes.load(recipe, ['mesh.data=1', *words])
  x = experiment.build(config, name, jax.devices()[:1])
  state = x.init(state_spec(x))
  variables = eval_variables(state)
  entry_name, entry = next((k, v) for k, v in x.evals.items() if hasattr(v, 'data'))
  if entry.data.batch_size != x.data.batch_size:
    raise SystemExit(f'{recipe}: give eval.{entry_name}.batch_size={x.data.batch_size}')
  feed = Feed(entry.data, x.layout, 1)
  constants = feed.constants()
  group, _ = next(feed.groups([(0, 1)]))

  def loss(variables, constants, group):
    batch = feed.take(constants, group, 0)
    return x.task.loss(variables, batch, eval_noise(), train=True).sum

  program = jit(loss, x.layout)
  evaluator = Evaluator(entry_name, dataclasses.replace(entry, metrics={}), x.task, x.layout)
  predictor = Predictor(entry.data, x.task, x.layout, constants)
  batches = -(-min(entry.data.size, MOST) // entry.data.batch_size)
  return {
    'forward': (lambda: jax.block_until_ready(program(variables, constants, group)), 1),
    'eval': (lambda: evaluator(state), evaluator.batches),
    'predict': (lambda: list(predictor(state, MOST)), batches),
  }


def main() -> None:
  """Measures every case and writes forward.json."""
  keep_freed_memory()
  results: dict[str, Any] = {
    'date': datetime.date.today().isoformat(),
    'machine': f'{len(os.sched_getaffinity(0))} × {platform.machine()} CPU, {cpu.processor()}',
  }
  for recipe, words in CASES.items():
    found = calls(recipe, words)
    took: dict[str, list[float]] = {name: [] for name in found}
    start = time.process_time()
    for turn in range(TURNS + WARM):
      if turn >= WARM + 3 and time.process_time() - start > SECONDS:
        break
      for name, (call, batches) in found.items():
        began = time.process_time()
        call()
        if turn >= WARM:
          took[name].append((time.process_time() - began) / batches)
    medians = {k: statistics.median(v) for k, v in took.items()}
    results[recipe] = {
      'milliseconds': {k: round(1e3 * v, 3) for k, v in medians.items()},
      'eval/forward': round(medians['eval'] / medians['forward'], 3),
      'predict/forward': round(medians['predict'] / medians['forward'], 3),
    }
    sys.stdout.write(f'{recipe}: {results[recipe]}\n')
  path = pathlib.Path(__file__).with_suffix('.json')
  path.write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
  main()
