"""The cost of the non-finite guard: a GPT with and without it, in the same process.

    python experiments/bench/guard.py --memory               # compiled memory, compiles only
    taskset -c 0 python experiments/bench/guard.py           # memory and time

Writes guard.json here. Time: ratio of process CPU times per step, windows of both in turn, median
and middle half. Memory: bytes of temporaries of the compiled program of one and of several steps,
beside the bytes of the state, for one short row, so that activations do not hide the state; a guard
that selects on new parameters (`selecting`) shows what a second state costs. All have adamw with
clipping, float32.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from bmx import config as recipes
from bmx import experiment
from bmx.core import tree
from bmx.parallel import jit
from bmx.train import step as steps
from bmx.train.feed import Feed
from bmx.train.guard import all_finite
from bmx.train.state import state_spec

ROOT = pathlib.Path(__file__).parent.parent.parent
ONE_ROW = ['length=16', 'batch_size=1', 'eval.valid.batch_size=1']
# name -> (overrides, windows, steps a window)
MODELS = {
  '0.8 M: L4 d128 T64 B12': ([], 41, 8),
  '10.6 M: L6 d384 T256 B8': (
    ['length=256', 'batch_size=8', 'task.model.width=384', 'task.model.depth=6',
     'task.model.heads=6'], 15, 2,
  ),
}  # fmt: skip


def unguarded(update, state, grads, spike=0.0):
  """Updates without a guard."""
  return update(state, grads.sum, grads.collections), grads.metrics


def selecting(update, state, grads, spike=0.0):
  """Guards by the new state, and holds the old one beside it; bmx does not do this."""
  new = update(state, grads.sum, grads.collections)
  ok = all_finite((new.params, new.opt_state))
  return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, state), grads.metrics


GUARDS = {'plain': unguarded, 'guarded': steps.guarded, 'selecting': selecting}


def compiled(x, guard, count):
  """Compiles `count` steps -> (program, its first arguments)."""
  plan, feed = state_spec(x), Feed(x.data, x.layout, count)
  kept, steps.guarded = steps.guarded, guard
  try:
    step = steps.make_train_step(x.grad_fn, x.tx)
    patience = x.guard['patience'] if guard is kept else 0
    dispatch = steps.make_dispatch(step, feed.take, patience, count)
    constants = feed.constants()
    group, _ = next(feed.groups([(0, count)]))
    jitted = jit(dispatch, x.layout, donate_argnums=(0,))
    program = jitted.lower(plan.abstract, constants, group, np.int32(count)).compile()
  finally:
    steps.guarded = kept
  return program, (plan, constants, group)


def window(x, guard, count):
  """Returns a function that runs `count` steps and returns its CPU seconds per step."""
  program, (plan, constants, group) = compiled(x, guard, count)
  state = plan.create()

  def run():
    nonlocal state
    began = time.process_time()
    state, *rest = program(state, constants, group, np.int32(count))
    jax.block_until_ready(rest)
    return (time.process_time() - began) / count

  return run


def build(overrides):
  """Builds gpt_char with overrides, on one device."""
  config, _ = recipes.load(str(ROOT / 'configs/gpt_char.py'), overrides)
  return experiment.build(config, devices=jax.devices()[:1])


def memory(overrides, count):
  """Measures programs of one step and of several: see `extra_memory`."""
  x = build([*overrides, *ONE_ROW])
  return {f'steps a call: {n}': extra_memory(x, n) for n in (1, count)}


def extra_memory(x, count):
  """Returns temporaries in bytes without a guard, and each guard's share of the state."""
  size = tree.nbytes(state_spec(x).abstract)
  temporaries = {
    name: compiled(x, guard, count)[0].memory_analysis().temp_size_in_bytes
    for name, guard in GUARDS.items()
  }
  plain = temporaries.pop('plain')
  extra = {name: (n - plain) / size for name, n in temporaries.items()}
  return {'state_bytes': size, 'temporary_bytes': plain, 'extra_over_state': extra}


def ratios(overrides, windows, count):
  """Returns guarded over plain CPU time per step."""
  x = build(overrides)
  plain, guarded = window(x, unguarded, count), window(x, steps.guarded, count)
  for _ in range(2):
    plain(), guarded()
  low, median, high = statistics.quantiles([guarded() / plain() for _ in range(windows)], n=4)
  return {'windows': windows, 'guarded_over_plain': median, 'middle_half': [low, high]}


def main():
  """Measures memory, and time unless `--memory`; updates guard.json."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--memory', action='store_true', help='compiled memory alone')
  only = parser.parse_args().memory
  path = pathlib.Path(__file__).parent / 'guard.json'
  record = json.loads(path.read_text()) if path.exists() else {}
  about = {
    'date': datetime.date.today().isoformat(),
    'machine': f'{len(os.sched_getaffinity(0))} CPU core(s), {platform.machine()}',
    'jax': jax.__version__,
  }
  record['memory'] = about | {name: memory(how[0], how[2]) for name, how in MODELS.items()}
  if not only:
    record['time'] = about | {name: ratios(*how) for name, how in MODELS.items()}
  text = json.dumps(record, indent=1)
  path.write_text(text + '\n')
  sys.stdout.write(text + '\n')


if __name__ == '__main__':
  main()
