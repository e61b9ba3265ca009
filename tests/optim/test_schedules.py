"""Schedules against tables written out by hand."""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import pytest

from bmx.core.errors import InputError
from bmx.optim import schedules

COS = lambda share: (1 + math.cos(math.pi * share)) / 2

# Step -> rate. Warm-ups of 4 end with step 3; cosine and decay then have 16 of 20 steps.
TABLES = {
  'constant': (
    lambda: schedules.constant(0.8),
    {0: 0.8, 1: 0.8, 1000: 0.8},
  ),
  'constant warm': (
    lambda: schedules.constant(0.8, warmup=4),
    {0: 0.2, 1: 0.4, 2: 0.6, 3: 0.8, 4: 0.8, 1000: 0.8},
  ),
  'step_decay': (
    lambda: schedules.step_decay(0.8, every=10, factor=0.5),
    {0: 0.8, 9: 0.8, 10: 0.4, 19: 0.4, 20: 0.2, 35: 0.1},
  ),
  'step_decay warm': (
    lambda: schedules.step_decay(0.8, every=10, factor=0.5, warmup=4),
    {0: 0.2, 3: 0.8, 4: 0.8, 13: 0.8, 14: 0.4, 24: 0.2},
  ),
  'exponential': (
    lambda: schedules.exponential(0.8, every=10),
    {0: 0.8, 5: 0.8 / math.sqrt(2), 10: 0.4, 20: 0.2, 30: 0.1},
  ),
  'exponential warm': (
    lambda: schedules.exponential(0.8, every=10, warmup=4),
    {0: 0.2, 3: 0.8, 4: 0.8, 14: 0.4, 24: 0.2},
  ),
  'cosine': (
    lambda: schedules.cosine(0.8, steps=20),
    {0: 0.8, 5: 0.8 * COS(0.25), 10: 0.4, 15: 0.8 * COS(0.75), 20: 0.0, 99: 0.0},
  ),
  'cosine warm': (
    lambda: schedules.cosine(0.8, steps=20, warmup=4, floor=0.2),
    {0: 0.2, 3: 0.8, 4: 0.8, 8: 0.2 + 0.6 * COS(0.25), 12: 0.5, 20: 0.2, 99: 0.2},
  ),
  'warmup_stable_decay': (
    lambda: schedules.warmup_stable_decay(0.8, steps=20, warmup=4, decay=0.2, floor=0.1),
    {0: 0.2, 3: 0.8, 4: 0.8, 15: 0.8, 16: 0.625, 17: 0.45, 18: 0.275, 19: 0.1, 99: 0.1},
  ),
  'inverse_sqrt': (
    lambda: schedules.inverse_sqrt(0.8, warmup=4),
    {0: 0.2, 1: 0.4, 3: 0.8, 4: 0.8, 16: 0.4, 64: 0.2, 400: 0.08},
  ),
}


@pytest.mark.parametrize('name', TABLES)
def test_table(name):
  make, table = TABLES[name]
  schedule = make()
  given = {step: float(schedule(step)) for step in table}
  assert given == pytest.approx(table, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize('name', TABLES)
def test_traced_steps(name):
  """As in a training step: an int32 under jit, float32 out."""
  make, table = TABLES[name]
  schedule = make()
  steps = jnp.asarray(list(table), jnp.int32)
  rates = jax.jit(lambda s: jax.lax.map(schedule, s))(steps)
  assert rates.dtype == jnp.float32
  assert rates.tolist() == pytest.approx(list(table.values()), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize('name', [name for name in TABLES if 'warm' in name or 'sqrt' in name])
def test_warm_up_rises_evenly_and_wastes_no_step(name):
  rates = [float(TABLES[name][0]()(step)) for step in range(4)]
  assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8], rel=1e-6)


@pytest.mark.parametrize('name', [n for n in TABLES if 'constant' not in n])
def test_no_rate_rises_after_the_warm_up(name):
  rates = [float(TABLES[name][0]()(step)) for step in range(4, 40, 3)]
  assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(rates))
  assert rates[-1] < rates[0]


@pytest.mark.parametrize('name', ['cosine', 'warmup_stable_decay'])
@pytest.mark.parametrize('warmup', [20, 21])
def test_a_warm_up_that_leaves_nothing(name, warmup):
  with pytest.raises(InputError, match=f'warmup={warmup} leaves nothing of steps=20'):
    getattr(schedules, name)(0.8, steps=20, warmup=warmup)


NAN, INF = float('nan'), float('inf')
BAD = {
  'peak=-0.5': lambda: schedules.constant(-0.5),
  'peak=nan': lambda: schedules.cosine(NAN, 20),
  'peak=inf': lambda: schedules.inverse_sqrt(INF),
  'warmup=-2': lambda: schedules.constant(0.1, warmup=-2),
  'warmup=-3': lambda: schedules.inverse_sqrt(0.1, warmup=-3),
  'every=0': lambda: schedules.step_decay(0.1, every=0),
  'every=0.0': lambda: schedules.exponential(0.1, every=0.0),
  'factor=-0.5': lambda: schedules.exponential(0.1, every=4, factor=-0.5),
  'factor=nan': lambda: schedules.step_decay(0.1, every=4, factor=NAN),
  'floor=0.2': lambda: schedules.cosine(0.1, 20, floor=0.2),
  'floor=-0.1': lambda: schedules.warmup_stable_decay(0.1, 20, floor=-0.1),
  'decay=1.5': lambda: schedules.warmup_stable_decay(0.1, 20, decay=1.5),
  'decay=0.8': lambda: schedules.warmup_stable_decay(0.1, 20, warmup=10, decay=0.8),
}


@pytest.mark.parametrize('given', BAD)
def test_numbers_that_are_out_of_range(given):
  """Otherwise: a rate that is NaN, negative, or jumps."""
  with pytest.raises(InputError, match=f'^{re.escape(given)}: expected '):
    BAD[given]()
