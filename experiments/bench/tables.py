"""A step with a large embedding table: rows of the batch against dense Adam.

    python experiments/bench/tables.py

A table of 1,000,000 × 16 with batches of 4,096 ids; and DeepFM and two towers with batches of 1,024
and tables of 10,000 and 1,000,000 rows. All steps are bmx's own, guard included, in the looped
program of a run. Writes tables.json here: ratios of the medians of windows in turn.
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

from bmx.core.types import Facts, Task
from bmx.models.recsys import DeepFM
from bmx.models.tables import Table
from bmx.models.towers import TwoTowers
from bmx.optim.tables import lazy_adam, with_tables
from bmx.parallel import Layout, jit, make_mesh
from bmx.tasks.common import ModelTask
from bmx.tasks.ctr import ClickThrough
from bmx.tasks.retrieval import Retrieval
from bmx.train.gradients import Gradient
from bmx.train.state import plan_state
from bmx.train.step import make_dispatch, make_train_step

ROWS, WIDTH, IDS = 1_000_000, 16, 4_096
SMALL, BATCH = 10_000, 1_024
STEPS, WINDOWS = 10, 7
Group = dict[str, np.ndarray]


class Click(nn.Module):
  """A score of one categorical feature."""

  sparse: bool

  @property
  def facts(self) -> Facts:
    return Facts(num_outputs=1, sparse_tables=('item/table',) * self.sparse)

  @nn.compact
  def __call__(self, ids: jax.Array, *, train: bool = False) -> jax.Array:
    return nn.Dense(1)(jnp.tanh(Table(ROWS, WIDTH, name='item')(ids)))[:, 0]


class Squares(ModelTask):
  """Squared error."""

  def inputs(self, batch):
    return (batch['ids'],)

  def score(self, out, batch, *, train):
    return jnp.square(out - batch['y']).sum(), jnp.float32(len(out)), {}


def click(rows: int, sparse: bool) -> tuple[Task, Group]:
  """One table of ROWS rows."""
  random = np.random.default_rng(0)
  ids = random.integers(0, ROWS, (STEPS, IDS)).astype(np.int32)
  return Squares(Click(sparse)), {'ids': ids, 'y': random.normal(size=ids.shape)}


def deepfm(rows: int, sparse: bool) -> tuple[Task, Group]:
  """DeepFM of 13 numbers and 26 columns of categories."""
  random = np.random.default_rng(0)
  sizes = (rows // 26,) * 26
  task = ClickThrough(DeepFM(sizes, 13, width=WIDTH, widths=(64,), sparse=sparse))
  ids = random.integers(0, rows // 26, (STEPS, BATCH, 26)).astype(np.int32)
  x, label = random.normal(size=(STEPS, BATCH, 13)), random.integers(0, 2, (STEPS, BATCH))
  return task, {'x': x, 'ids': ids, 'label': label.astype(np.int32)}


def towers(rows: int, sparse: bool) -> tuple[Task, Group]:
  """Two towers of so many users and items."""
  random = np.random.default_rng(0)
  user, item = random.integers(0, rows, (2, STEPS, BATCH)).astype(np.int32)
  past = random.integers(0, rows, (STEPS, BATCH, 10)).astype(np.int32)
  task = Retrieval(TwoTowers(rows, rows, history=10, width=WIDTH, sparse=sparse))
  return task, {'user': user, 'item': item, 'history': past, 'log_q': np.zeros((STEPS, BATCH))}


def steps(made: tuple[Task, Group], sparse: bool) -> Any:
  """Returns a function that runs STEPS steps in one dispatch."""
  schedule = lambda step: jnp.float32(1e-3)
  tx = optax.adam(schedule)
  tx = with_tables(tx, lazy_adam(schedule), '(^|/)table$') if sparse else tx
  task, group = made
  group = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in group.items()}
  group['weights'] = np.ones(next(iter(group.values())).shape[:2], np.float32)
  layout = Layout(make_mesh({}, jax.devices()[:1]))
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


def medians(programs: dict[str, Any]) -> dict[str, float]:
  """Times programs in turn -> milliseconds of a step."""
  times: dict[str, list[float]] = {name: [] for name in programs}
  for _ in range(WINDOWS):
    for name, run in programs.items():
      began = time.perf_counter()
      run()
      times[name].append((time.perf_counter() - began) / STEPS)
  return {k: 1e3 * statistics.median(v) for k, v in times.items()}


def compare(make: Any) -> dict[str, float]:
  """Times a model with a small and a large table, rows alone and dense."""
  found = medians(
    {
      'small': steps(make(SMALL, True), True),
      'large': steps(make(ROWS, True), True),
      'dense': steps(make(ROWS, False), False),
    }
  )
  return {
    f'rows_ms of {SMALL:,}': round(found['small'], 3),
    f'rows_ms of {ROWS:,}': round(found['large'], 3),
    f'dense_adam_ms of {ROWS:,}': round(found['dense'], 3),
    'large/small': round(found['large'] / found['small'], 2),
    'dense/rows': round(found['dense'] / found['large'], 1),
  }


def main() -> None:
  """Times all and writes tables.json."""
  one = medians({'rows': steps(click(ROWS, True), True), 'dense': steps(click(ROWS, False), False)})
  result = {
    'rows_ms': round(one['rows'], 3),
    'dense_adam_ms': round(one['dense'], 3),
    'dense/rows': round(one['dense'] / one['rows'], 1),
    'deepfm': compare(deepfm),
    'two towers': compare(towers),
    'date': datetime.date.today().isoformat(),
    'machine': f'{len(os.sched_getaffinity(0))} × {platform.machine()} CPU',
  }
  path = pathlib.Path(__file__).with_suffix('.json')
  path.write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
  main()
