"""A step with a large embedding table: rows of the batch against dense Adam.

    python experiments/bench/tables.py

A table of 1,000,000 × 16, batches of 4,096 ids. Both steps are bmx's own, guard included, in the
looped program of a run. Writes tables.json here: the ratio of the medians of windows in turn.
"""

import datetime
import json
import os
import pathlib
import platform
import statistics
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bmx.core.types import Facts
from bmx.models.tables import Table
from bmx.optim.tables import lazy_adam, with_tables
from bmx.parallel import Layout, jit, make_mesh
from bmx.tasks.common import ModelTask
from bmx.train.gradients import Gradient
from bmx.train.state import plan_state
from bmx.train.step import make_dispatch, make_train_step

ROWS, WIDTH, IDS = 1_000_000, 16, 4_096
STEPS, WINDOWS = 10, 7


class Click(nn.Module):
  """A score of one categorical feature."""

  sparse: tuple[str, ...]

  @property
  def facts(self) -> Facts:
    return Facts(num_outputs=1, sparse_tables=self.sparse)

  @nn.compact
  def __call__(self, ids: jax.Array, *, train: bool = False) -> jax.Array:
    return nn.Dense(1)(jnp.tanh(Table(ROWS, WIDTH, name='item')(ids)))[:, 0]


class Squares(ModelTask):
  """Squared error."""

  def inputs(self, batch):
    return (batch['ids'],)

  def score(self, out, batch, *, train):
    return jnp.square(out - batch['y']).sum(), jnp.float32(len(out)), {}


def steps(sparse: tuple[str, ...], tx: optax.GradientTransformation) -> Any:
  """Returns a function that runs STEPS steps in one dispatch."""
  task, layout = Squares(Click(sparse)), Layout(make_mesh({}, jax.devices()[:1]))
  random = np.random.default_rng(0)
  group = {
    'ids': random.integers(0, ROWS, (STEPS, IDS)).astype(np.int32),
    'y': random.normal(size=(STEPS, IDS)).astype(np.float32),
    'weights': np.ones((STEPS, IDS), np.float32),
  }
  batch = {k: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for k, v in group.items()}
  plan = plan_state(task, tx, batch, layout)
  step = make_train_step(Gradient(task), tx)
  take = lambda arrays, group, i: {k: v[i] for k, v in group.items()}
  dispatch = make_dispatch(step, take, 10, STEPS)
  program = jit(dispatch, layout, donate_argnums=(0,), out_shardings=(plan.shardings, None, None))
  held = [plan.create()]

  def run() -> None:
    held[0], sums, _ = program(held[0], {}, group, np.int32(STEPS))
    jax.block_until_ready(sums)

  run()
  return run


def main() -> None:
  """Times both in turn and writes tables.json."""
  schedule = lambda step: jnp.float32(1e-3)
  rows = steps(('item/table',), with_tables(optax.adam(schedule), lazy_adam(schedule), 'table'))
  dense = steps((), optax.adam(schedule))
  times: dict[str, list[float]] = {'rows': [], 'dense': []}
  for _ in range(WINDOWS):
    for name, run in (('rows', rows), ('dense', dense)):
      began = time.perf_counter()
      run()
      times[name].append((time.perf_counter() - began) / STEPS)
  medians = {k: statistics.median(v) for k, v in times.items()}
  result = {
    'rows_ms': round(1e3 * medians['rows'], 3),
    'dense_adam_ms': round(1e3 * medians['dense'], 3),
    'dense/rows': round(medians['dense'] / medians['rows'], 1),
    'date': datetime.date.today().isoformat(),
    'machine': f'{len(os.sched_getaffinity(0))} × {platform.machine()} CPU',
  }
  path = pathlib.Path(__file__).with_suffix('.json')
  path.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
