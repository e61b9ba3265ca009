"""This CPU as hardware: peaks that are measured, and the time of a step that runs."""

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bmx.core.chips import Chip
from bmx.core.experiment import Experiment
from bmx.core.hardware import keep_freed_memory
from bmx.core.types import Batch
from bmx.train.state import state_spec
from bmx.train.step import abstract_secret

KIND = 'cpu'
SIDES = (256, 512, 1024)  # of the square products of which the fastest is the peak
LARGE = 2**24  # elements of an array that no cache holds
SECONDS = 0.1  # of one timing
REPEATS = 3  # timings; the fastest counts
STEPS = 3  # of a training that are timed at least
LEFT = 0.9  # share of the memory that other programs leave (assumed)

Clock = Callable[[], float]


def this_cpu(clock: Clock = time.perf_counter) -> Chip:
  """Measures this machine in a few seconds.

  Args:
    clock: `time.process_time` where others compute at the same time and this process has one core.
  """
  memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  bandwidth = _bandwidth(clock)
  return Chip(
    flops=_peak(jnp.bfloat16, clock),
    memory=memory,
    bandwidth=bandwidth,
    link=bandwidth,  # of a single device nothing arrives
    usable=LEFT * memory,
    float32=_peak(jnp.float32, clock),
    family=KIND,
    page='measured on this machine',
  )


def _peak(dtype: Any, clock: Clock) -> float:
  """Returns the FLOP/s of the fastest square product."""
  found = 0.0
  for n in SIDES:
    x = jnp.ones((n, n), dtype)
    found = max(found, 2.0 * n**3 / fastest(lambda x=x: x @ x, clock))
  return found


def _bandwidth(clock: Clock) -> float:
  """Returns the bytes/s of an array that is read and written."""
  x = jnp.ones(LARGE, jnp.float32)
  return 2 * x.nbytes / fastest(lambda: x + 1.0, clock)


def fastest(call: Callable[[], Any], clock: Clock) -> float:
  """Returns the seconds of one call, the least of several timings after a first call."""

  def timed(count: int) -> float:
    began = clock()
    for _ in range(count):
      jax.block_until_ready(call())
    return clock() - began

  timed(1)
  count = max(1, round(SECONDS / max(timed(1), 1e-6)))
  return min(timed(count) for _ in range(REPEATS)) / count


def step_seconds(x: Experiment, program: Any, clock: Clock = time.perf_counter) -> float:
  """Runs the compiled training step on this CPU -> seconds of a step, the least of several.

  Batches are on the device already and hold zeros, with weights of 1; reading data is not timed.

  Args:
    x: the experiment, on CPU devices.
    program: of `compile.compile_step`.
    clock: see `this_cpu`.
  """
  keep_freed_memory()  # as a run does
  spec = state_spec(x)
  batch = _batch(x)
  secret = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), abstract_secret(x))
  state = [x.init(spec)]

  def call() -> Any:
    state[0], metrics = program(state[0], batch, secret)
    return metrics

  for _ in range(STEPS):
    call()
  return fastest(call, clock)


def _batch(x: Experiment) -> Batch:
  at = x.layout.batch(x.data.spec, x.data.batch_size)
  fill = lambda name: jnp.ones if name.endswith('weights') else jnp.zeros
  return {
    name: jax.device_put(fill(name)(v.shape, v.dtype), at[name])
    for name, v in x.data.abstract.items()
  }
