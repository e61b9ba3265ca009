"""From the start of a resumed run to its first step, import and compilation apart: 1 GiB of state.

    python experiments/soak/restart.py

Writes restart.json here. The time covers the work of a restart before it can dispatch: find the
newest checkpoint, hash all of its files, restore them, make the batch of that step.
"""

import datetime
import json
import os
import pathlib
import sys
import tempfile
import time

import jax

from bmx import config as recipes
from bmx import experiment
from bmx.core import tree
from bmx.train.checkpoint import Checkpoints
from bmx.train.feed import Feed
from bmx.train.state import state_spec

HERE = pathlib.Path(__file__).parent
SIZE = ['task.model.width=1024', 'task.model.depth=7', 'task.model.heads=16']


def filled(state):
  """Fills arrays with random numbers: zeros would be compressed to nothing."""
  draw = lambda x: jax.random.normal(state.key, x.shape, x.dtype) if x.ndim > 1 else x
  return jax.tree.map(draw, state)


def main():
  """Times the restart and writes restart.json."""
  config, _ = recipes.load(str(HERE.parent.parent / 'configs/gpt_char.py'), SIZE)
  x = experiment.build(config, devices=jax.devices()[:1])
  plan = state_spec(x)
  state, results = filled(plan.create()), {}
  size = tree.nbytes(state)
  for step in (10, 1_000_000):
    with tempfile.TemporaryDirectory() as folder:
      checkpoints = Checkpoints(pathlib.Path(folder))
      checkpoints.save(state, {'best_step': None}, step)
      checkpoints.close()
      began = time.perf_counter()
      checkpoints = Checkpoints(pathlib.Path(folder))
      found = checkpoints.newest_valid()
      verified = time.perf_counter()
      jax.block_until_ready(checkpoints.restore(found, plan.abstract))
      restored = time.perf_counter()
      next(Feed(x.data, x.layout, 1).groups([(step, 1)]))
      ready = time.perf_counter()
      checkpoints.close()
    results[f'step {step}'] = {
      'verify_seconds': round(verified - began, 2),
      'restore_seconds': round(restored - verified, 2),
      'batch_seconds': round(ready - restored, 3),
      'all_seconds': round(ready - began, 2),
    }
  record = {
    'date': datetime.date.today().isoformat(),
    'machine': f'{os.cpu_count()} CPU cores',
    'state_gib': round(size / 2**30, 3),
    **results,
  }
  (HERE / 'restart.json').write_text(json.dumps(record, indent=1) + '\n')
  sys.stdout.write(json.dumps(record, indent=1) + '\n')


if __name__ == '__main__':
  main()
