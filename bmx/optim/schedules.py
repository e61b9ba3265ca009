"""Learning-rate schedules: functions of the step (0 for the first update).

Every one starts with `warmup` steps on a line that ends at its peak: step s has (s + 1) / warmup of
it, so the first update is small but not zero. Each raises InputError for a number that is not
finite or is out of its range: a rate is never negative or NaN.
"""

import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.core.types import Schedule


def _warm(schedule: Schedule, warmup: int) -> Schedule:
  if not warmup:
    return schedule
  return lambda step: (
    jnp.minimum((step + 1) / warmup, 1.0) * schedule(jnp.maximum(step - warmup, 0))
  )


def constant(peak: float, warmup: int = 0) -> Schedule:
  """Stays at `peak`.

  Args:
    peak: the learning rate.
    warmup: steps of the line that leads to it.

  >>> [float(constant(2.0, warmup=4)(s)) for s in range(6)]
  [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
  """
  _check(peak, warmup)
  return _warm(lambda step: jnp.asarray(peak, jnp.float32), warmup)


def step_decay(peak: float, every: int, factor: float = 0.1, warmup: int = 0) -> Schedule:
  """Multiplies by `factor` after every `every` steps."""
  _check(peak, warmup)
  check_number('every', every, at_least=1)
  check_number('factor', factor, at_least=0)
  return _warm(lambda step: peak * jnp.asarray(factor, jnp.float32) ** (step // every), warmup)


def exponential(peak: float, every: int, factor: float = 0.5, warmup: int = 0) -> Schedule:
  """Multiplies by `factor` over every `every` steps, smoothly."""
  _check(peak, warmup)
  check_number('every', every, above=0)
  check_number('factor', factor, at_least=0)
  return _warm(lambda step: peak * jnp.asarray(factor, jnp.float32) ** (step / every), warmup)


def cosine(peak: float, steps: int, warmup: int = 0, floor: float = 0.0) -> Schedule:
  """Follows half a cosine from `peak`, which would reach `floor` after the last of `steps`.

  Args:
    peak: the highest learning rate.
    steps: of the run.
    warmup: steps of the line that leads to `peak`.
    floor: the learning rate at the end.

  Source: Loshchilov & Hutter 2017, eq. 5.
  """
  _check(peak, warmup)
  check_number('floor', floor, at_least=0, at_most=peak)
  _fits(steps, warmup)

  def schedule(step):
    share = jnp.minimum(step / (steps - warmup), 1.0)
    return floor + (peak - floor) * 0.5 * (1 + jnp.cos(jnp.pi * share))

  return _warm(schedule, warmup)


def warmup_stable_decay(
  peak: float, steps: int, warmup: int = 0, decay: float = 0.2, floor: float = 0.0
) -> Schedule:
  """Stays at `peak`, then follows a line to `floor` in the last `decay` share of the steps.

  Source: Hu et al. 2024.
  """
  _check(peak, warmup)
  check_number('decay', decay, at_least=0, at_most=1)
  check_number('floor', floor, at_least=0, at_most=peak)
  _fits(steps, warmup)
  length = max(round(steps * decay), 1)
  if warmup + length > steps:
    raise InputError(
      f'decay={decay}: expected warmup + decay · steps <= steps; warmup={warmup} and {length} '
      f'steps of decay do not fit in steps={steps}'
    )

  def schedule(step):
    share = jnp.clip((step - (steps - warmup - length - 1)) / length, 0.0, 1.0)
    return peak + (floor - peak) * share

  return _warm(schedule, warmup)


def inverse_sqrt(peak: float, warmup: int = 1) -> Schedule:
  """Warm-up, then peak·√(warmup / step) (Vaswani et al. 2017, section 5.3)."""
  _check(peak, warmup)
  warmup = max(warmup, 1)
  return _warm(lambda step: peak * (warmup / (step + warmup)) ** 0.5, warmup)


def _check(peak: float, warmup: int) -> None:
  check_number('peak', peak, at_least=0)
  check_number('warmup', warmup, at_least=0)


def _fits(steps: int, warmup: int) -> None:
  if warmup >= steps:
    raise InputError(f'schedule: warmup={warmup} leaves nothing of steps={steps}; '
                     'set --config.schedule.warmup, or more steps')  # fmt: skip
