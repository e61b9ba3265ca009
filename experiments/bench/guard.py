"""What the non-finite guard costs: a GPT with and without it, windows of both in turn.

    taskset -c 0 python experiments/bench/guard.py

Writes guard.json here: the ratio of process CPU times per step, median of the windows, and the
spread of the middle half of them. Both have adamw with clipping, float32.
"""

import datetime
import json
import os
import pathlib
import platform
import statistics
import sys
import time

import jax
import numpy as np

from bmx import config as recipes
from bmx import experiment
from bmx.parallel import jit
from bmx.train import step as steps
from bmx.train.feed import Feed
from bmx.train.state import state_spec

ROOT = pathlib.Path(__file__).parent.parent.parent
# name -> (overrides, windows, steps a window)
MODELS = {
  '0.8 M: L4 d128 T64 B12': ([], 41, 8),
  '10.6 M: L6 d384 T256 B8': (
    ['length=256', 'batch_size=8', 'task.model.width=384', 'task.model.depth=6',
     'task.model.heads=6'], 15, 2,
  ),
}  # fmt: skip


def unguarded(update, state, grads, collections, metrics, spike=0.0):
  return update(state, grads, collections), metrics


def program(x, guard, count):
  """-> a function that runs one window and returns its CPU seconds per step."""
  plan = state_spec(x)
  feed = Feed(x.data, x.layout, count)
  kept, steps.guarded = steps.guarded, guard
  step = steps.make_train_step(x.grad_fn, x.tx)
  dispatch = steps.make_dispatch(step, feed.take, x.guard['patience'], count)
  state, constants = plan.create(), feed.constants()
  group, _ = next(feed.groups([(0, count)]))
  jitted = jit(dispatch, x.layout, donate_argnums=(0,))
  compiled = jitted.lower(state, constants, group, np.int32(count)).compile()
  steps.guarded = kept

  def window():
    nonlocal state
    began = time.process_time()
    state, *rest = compiled(state, constants, group, np.int32(count))
    jax.block_until_ready(rest)
    return (time.process_time() - began) / count

  return window


def ratios(overrides, windows, count):
  config, _ = recipes.load(str(ROOT / 'configs/gpt_char.py'), overrides)
  x = experiment.build(config, devices=jax.devices()[:1])
  plain, guarded = program(x, unguarded, count), program(x, steps.guarded, count)
  for _ in range(2):
    plain(), guarded()
  low, median, high = statistics.quantiles([guarded() / plain() for _ in range(windows)], n=4)
  return {'windows': windows, 'guarded_over_plain': median, 'middle_half': [low, high]}


def main():
  record = {
    'date': datetime.date.today().isoformat(),
    'machine': f'{len(os.sched_getaffinity(0))} CPU core(s), {platform.machine()}',
    'jax': jax.__version__,
    **{name: ratios(*how) for name, how in MODELS.items()},
  }
  text = json.dumps(record, indent=1)
  (pathlib.Path(__file__).parent / 'guard.json').write_text(text + '\n')
  sys.stdout.write(text + '\n')


if __name__ == '__main__':
  main()
