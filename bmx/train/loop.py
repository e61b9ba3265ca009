"""The loop: dispatches, reads the results one dispatch late, and calls hooks where they are due."""

import collections
import concurrent.futures
import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from bmx.core.errors import Preempted
from bmx.core.events import Hook
from bmx.core.experiment import Experiment
from bmx.runtime import console
from bmx.runtime.watchdog import Watchdog
from bmx.runtime.writer import Bar
from bmx.train import hooks, repeats, start, summary
from bmx.train.run import Event, Run, make_run
from bmx.train.rundir import RunDir
from bmx.train.signals import Signals

log = logging.getLogger('bmx')
IN_FLIGHT = 2  # dispatches; fifty un-awaited ones deadlock eight virtual CPU devices


def run(
  experiment: Experiment,
  workdir: str | os.PathLike[str],
  more: Mapping[str, Hook] | None = None,
  began: float | None = None,
) -> dict[str, Any]:
  """Trains to the last step, from the newest valid checkpoint if there is one.

  Args:
    experiment: of the run.
    workdir: the run directory; a new one, or that of the same experiment.
    more: name -> hook, besides those of the experiment.
    began: when the command began, in seconds of `time.perf_counter`; default: now.

  Returns:
    The summary, as in summary.json.

  Raises:
    InputError: the workdir or a checkpoint does not fit the experiment.
    Preempted: a signal asked to stop; everything is saved.
    GuardStop: too many consecutive non-finite steps, or a state that is not finite.
  """
  began = time.perf_counter() if began is None else began
  x, rundir = experiment, RunDir(workdir, experiment)
  rundir.began = time.time() - (time.perf_counter() - began)
  found = rundir.summary()
  if found:
    summary.show(found, rundir.path, x.name)
    return found
  start.check_optimizer(x, rundir.path)
  if not rundir.resumed:
    start.check_weights(x)
  order = hooks.in_order(x, more or {})
  with rundir.locked():
    with Bar(x.steps) as bar, Signals() as signals, Watchdog(x.watchdog) as watchdog:
      made = make_run(x, rundir, order, bar=bar, signals=signals, watchdog=watchdog, began=began)
      console.keep(rundir.path / 'logs', jax.process_index())
      try:
        summary.begin(made)
        repeats.begin(x, rundir.path)
        event = train(made)
        repeats.end(x, rundir.path)
      except Exception as error:
        if isinstance(error, Preempted):  # saved
          repeats.end(x, rundir.path)
        summary.interrupted(made, error)
        made.close()
        raise
    # A KeyboardInterrupt stops at once: closing would wait for the save and the threads.
    made.close()
    return summary.finish(event)


def train(run: Run) -> Event:
  """Calls the hooks of every event -> the last event; its checkpoint is on disk."""
  for event in steps(run):
    hooks.call_due(event)
    asked = event.asked and event.step < run.experiment.steps
    if asked or run.loop.stopped or event.step == run.experiment.steps:
      break
  if asked:
    hooks.save(event)
  began = time.perf_counter()
  hooks.save_at_last(event)
  run.account.add('save', time.perf_counter() - began)
  if asked and not run.loop.stopped:
    raise Preempted(f'stopped and saved at step {event.step}; the same command continues the run')
  return event


def steps(run: Run) -> Iterator[Event]:
  """Yields the end of every dispatch, in the order of steps.

  The first event of a resumed run is the step of its checkpoint, so that hooks that remain there
  are called before the first dispatch. Two dispatches are in flight at most; before a step at which
  a hook reads the state, the loop waits, and the event holds the state.
  """
  x, state = run.experiment, run.first_state()
  step, late = run.resumed or 0, collections.deque()
  if run.resumed is not None:
    yield Event(run, step, state)
  # One thread waits for each dispatch in turn, so that its end is known though it is read late.
  stamps = concurrent.futures.ThreadPoolExecutor(1)
  run.watchdog.pat()
  run.account.ready()
  run.throughput.begin(step)
  try:
    for first, n, group in run.groups(step):
      state, sums, skips = run.program(state, run.arrays, group, np.int32(n), run.secret)
      step = first + n
      late.append((sums, skips, step, stamps.submit(_finished, skips)))
      asked = run.signals.asked_now()
      reads_state = asked or run.reads_state(step)
      while len(late) >= (1 if reads_state else IN_FLIGHT):
        sums, skips, read, stamp = late.popleft()
        run.window.add(jax.device_get(sums))
        run.watchdog.pat()
        if x.guard['patience'] and int(skips) >= x.guard['patience']:
          raise hooks.guard_stop(Event(run, int(state.step), state))
        run.bar.update(read, run.bar_text(read))
        run.loop.done = []
        newest = reads_state and not late
        yield Event(run, read, state if newest else None, stamp.result, asked and newest)
  finally:
    stamps.shutdown(wait=False)


def _finished(result: jax.Array) -> float:
  jax.block_until_ready(result)
  return time.perf_counter()
