"""The loop: dispatch, read what came before, and at marked steps log, evaluate, decide, save.

The order at a step is fixed, because a resumed run must repeat it: the log line is on disk, then
the evaluation, then what is best and whether to stop, then the checkpoint of both halves of the
state.
"""

import collections
import concurrent.futures
import dataclasses
import itertools
import logging
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bmx.core import tree
from bmx.core.errors import GuardStop, InputError, Preempted, Stop
from bmx.core.metrics import Window
from bmx.core.types import Every, Experiment
from bmx.data.feed import Feed, Group
from bmx.parallel import jit
from bmx.runtime import report
from bmx.runtime.throughput import Throughput
from bmx.runtime.watchdog import Watchdog
from bmx.runtime.writer import Bar, Silent, Writer, brief, write_json
from bmx.train import start
from bmx.train.checkpoint import RETRY_SECONDS, Checkpoints
from bmx.train.evaluate import Evaluator
from bmx.train.guard import all_finite, first_bad
from bmx.train.rundir import RunDir, check_tokenizer
from bmx.train.signals import Signals
from bmx.train.state import TrainState, state_spec, variables_of
from bmx.train.step import make_dispatch, step_noise, train_step

log = logging.getLogger('bmx')
AHEAD = 4096  # groups that the feed is told of at a time
FINAL_ATTEMPTS = 3  # to write the last checkpoint
IN_FLIGHT = 2  # dispatches; fifty un-awaited ones deadlock eight virtual CPU devices


@dataclasses.dataclass
class LoopState:
  """The host's part of the state, saved with the device's; equal on all processes."""

  window: dict[str, list[float]] = dataclasses.field(default_factory=dict)  # the open log window
  best: dict[str, float] = dataclasses.field(default_factory=dict)  # metric -> best value so far
  best_step: int | None = None  # of keep.metric
  waited: int = 0  # evaluations since stop.metric was best
  stopped: bool = False
  metrics_length: int = 0  # bytes of metrics.jsonl
  seconds: float = 0.0  # of training, over all starts
  compile_seconds: float = 0.0
  last: dict[str, float] = dataclasses.field(
    default_factory=dict
  )  # the newest value of every metric


def groups(step: int, steps: int, every: Every, depth: int) -> Iterator[Group]:
  """Runs of at most `depth` steps from `step`; none crosses a step that logs, evaluates or saves.

  >>> list(groups(0, 10, Every(log=4), 3))
  [(0, 3), (3, 1), (4, 3), (7, 1), (8, 2)]
  """
  marks = [m for m in (every.log, every.eval, every.save) if m]
  while step < steps:
    edge = min([steps, step + depth] + [step - step % m + m for m in marks])
    yield step, edge - step
    step = edge


def finished(result: jax.Array) -> float:
  """Waits for a result -> the time."""
  jax.block_until_ready(result)
  return time.perf_counter()


def run(experiment: Experiment, workdir: str | pathlib.Path) -> dict[str, Any]:
  """Trains to the last step, from the newest valid checkpoint where there is one -> the summary.

  Raises:
    InputError: the workdir or a checkpoint does not fit the experiment.
    Preempted: a signal asked to stop; everything is saved.
    GuardStop: too many non-finite steps in a row.
  """
  rundir = RunDir(workdir, experiment)
  done = rundir.summary()
  if done:
    log.info('this run is finished\n%s', closing(done, rundir.path))
    return done
  return Trainer(experiment, rundir).run()


class Trainer:
  """One start of a run."""

  def __init__(self, experiment: Experiment, rundir: RunDir):
    self.x, self.rundir = experiment, rundir
    self.plan = state_spec(experiment)
    self.everywhere = NamedSharding(experiment.layout.mesh, PartitionSpec())
    looped = start.loops(experiment, self.plan)
    self.evaluators = {
      name: Evaluator(name, entry, experiment.task, experiment.layout, looped)
      for name, entry in experiment.evals.items()
    }
    self.flops = start.step_flops(experiment, self.plan)
    self.depth = start.choose_dispatch(experiment, self.plan, self.flops)
    self.feed = Feed(experiment.data, experiment.layout, self.depth)
    self.checkpoints = Checkpoints(rundir.path / 'checkpoints', experiment.keep.last)
    # One thread waits for each dispatch in turn, so that its end is known though it is read late.
    self.stamps = concurrent.futures.ThreadPoolExecutor(1)
    self.writer: Writer | Silent = Silent()
    self.watchdog = Watchdog(experiment.watchdog)
    self.late: collections.deque[tuple[Any, ...]] = collections.deque()

  def run(self) -> dict[str, Any]:
    try:
      self._begin()
      self._train()
      summary = self._finish()
    except Exception:
      self._close()
      raise
    # A KeyboardInterrupt stops at once: closing would wait for the save and the threads.
    self._close()
    return summary

  def _train(self) -> None:
    with Bar(self.x.steps) as self.bar, Signals() as signals, self.watchdog:
      compiled = self._compile()
      self.since = time.perf_counter()
      self.throughput.begin(self.step)
      for step, n, group in self._feed():
        self.state, sums, skips = compiled(self.state, self.constants, group, np.int32(n))
        self.step = step + n
        self.late.append((sums, skips, self.step, self.stamps.submit(finished, skips)))
        while len(self.late) >= IN_FLIGHT:
          self._read()
        self._at_mark()
        if self.loop.stopped:
          break
        if signals.asked_now():
          self._save()
          self._save_at_last()
          raise Preempted(f'asked to stop: saved at step {self.step}; the same command goes on')
      self._drain()
      self._count_time()

  def _begin(self) -> None:
    """The newest valid checkpoint, or a new state."""
    found = self.checkpoints.newest_valid()
    if found is None:
      self.state, self.loop, self.step = self.x.init(self.plan), LoopState(), 0
    else:
      self.state = self.checkpoints.restore(found, self.plan.abstract)
      self.loop, self.step = LoopState(**self.checkpoints.loop(found)), found
      log.info('resuming from the checkpoint of step %d', found)
      # More steps than the run that stopped: it goes on.
      self.loop.stopped = False
    self.saved = found
    self.window = Window(self.loop.window)
    kept = start.keep_memory(self.x)
    about = start.describe_start(self.x, self.plan, self.flops, self.depth, found, kept)
    log.info('%s', about)
    log.info('workdir    %s', self.rundir.path)
    self.rundir.write_config(self.step, {'steps_per_call': self.depth, **self.x.choices})
    first = jax.process_index() == 0
    path, length = self.rundir.path, self.loop.metrics_length
    self.writer = Writer(path, self.step, length) if first else Silent()
    peak = start.peak_flops(self.x)
    self.throughput = Throughput(self.x.steps, start.units(self.x), self.flops, peak)

  def _compile(self) -> Any:
    """The one program of all dispatches, compiled before the first."""
    began = time.perf_counter()
    step = train_step(self.x)
    patience = self.x.guard['patience']
    self.rates = start.learning_rates(self.x)
    finite = jit(all_finite, self.x.layout, out_shardings=self.everywhere)
    self.finite = finite.lower(self.state).compile()
    dispatch = make_dispatch(step, self.feed.take, patience, self.depth, self.x.task.constant)
    self.constants = self.feed.constants()
    group, _ = next(self.feed.groups([(self.step, 1)]))
    at = (self.plan.shardings, self.everywhere, self.everywhere)
    program = jit(dispatch, self.x.layout, donate_argnums=(0,), out_shardings=at)
    compiled = program.lower(self.state, self.constants, group, np.int32(0)).compile()
    seconds = time.perf_counter() - began
    self.loop.compile_seconds += seconds
    log.info('compiled in %.1f s', seconds)
    return compiled

  def _feed(self) -> Iterator[tuple[int, int, Any]]:
    todo = groups(self.step, self.x.steps, self.x.every, self.depth)
    while some := list(itertools.islice(todo, AHEAD)):
      for (step, n), (group, waited) in zip(some, self.feed.groups(some), strict=True):
        self.throughput.wait(waited, step + n)
        yield step, n, group

  def _read(self) -> None:
    """The sums of the oldest dispatch in flight; its log line, if it ends a window."""
    sums, skips, step, when = self.late.popleft()
    self.window.add(jax.device_get(sums))
    self.watchdog.pat()
    patience = self.x.guard['patience']
    if patience and int(skips) >= patience:
      raise self._guard_stop()
    self.bar.update(step, self._bar_text(step))
    if self._due(self.x.every.log, step):
      self._log(step, when.result())

  def _drain(self) -> None:
    while self.late:
      self._read()

  def _log(self, step: int, when: float) -> None:
    skipped = int(self.window.sums['skipped'][0])
    line = self.window.close() | {'skipped': skipped}
    line['learning_rate'] = self.rates[step]
    self.loop.last |= line
    self._write(step, line | self.throughput.close(step, when))

  def _write(self, step: int, line: Mapping[str, float]) -> None:
    self.writer.scalars(step, line)
    self.loop.metrics_length = self.writer.length

  def _due(self, every: int, step: int) -> bool:
    return step == self.x.steps or bool(every and step % every == 0)

  def _at_mark(self) -> None:
    """What a step asks for after its dispatch, in the fixed order."""
    evaluate = bool(self.evaluators) and self._due(self.x.every.eval, self.step)
    improved = self._evaluate() if evaluate else False
    due = improved or self.loop.stopped or self._due(self.x.every.save, self.step)
    if due or self.checkpoints.failed():
      self._save()

  def _evaluate(self) -> bool:
    """All entries; True where keep.metric is the best so far."""
    self._drain()
    began = time.perf_counter()
    line: dict[str, float] = {}
    for evaluator in self.evaluators.values():
      compiling = evaluator.program is None
      line |= evaluator(self.state)
      self.loop.compile_seconds += evaluator.compile_seconds if compiling else 0.0
    self.throughput.pause(time.perf_counter() - began)
    self.watchdog.pat()
    self.loop.last |= line
    self._write(self.step, line)
    return self._decide(line)

  def _decide(self, line: Mapping[str, float]) -> bool:
    stop, keep = self.x.stop, self.x.keep
    if stop.metric:
      better = stop.better(line[stop.metric], self.loop.best.get(f'stop {stop.metric}'))
      self.loop.waited = 0 if better else self.loop.waited + 1
      if better:
        self.loop.best[f'stop {stop.metric}'] = line[stop.metric]
      if self.loop.waited >= max(stop.patience, 1):
        log.info(
          'stopping early: %s did not improve in %d evaluations', stop.metric, self.loop.waited
        )
        self.loop.stopped = True
    if not keep.metric or not keep.better(line[keep.metric], self.loop.best.get(keep.metric)):
      return False
    self.loop.best[keep.metric], self.loop.best_step = line[keep.metric], self.step
    return True

  def _save(self) -> None:
    self._drain()
    if self.saved == self.step and not self.checkpoints.failed_at:
      return
    self.saved = self.step
    began = time.perf_counter()
    if not bool(self.finite(self.state)):
      log.error('THE STATE OF STEP %d IS NOT FINITE and is not saved', self.step)
      return
    self._count_time()
    self.loop.window = self.window.json()
    self.checkpoints.save(self.state, dataclasses.asdict(self.loop), self.step)
    self.throughput.pause(time.perf_counter() - began)

  def _count_time(self) -> None:
    now = time.perf_counter()
    self.loop.seconds += now - self.since
    self.since = now

  def _guard_stop(self) -> GuardStop:
    """What to say of the last step: the examples, and the first gradient that is not finite."""
    step = int(self.state.step) - 1
    group, _ = next(self.feed.groups([(step, 1)]))

    def gradient(state, constants, group):
      batch = self.feed.take(constants, group, 0)
      return self.x.grad_fn(variables_of(state), batch, step_noise(state, step)).sum

    grads = jit(gradient, self.x.layout)(self.state, self.constants, group)
    name = first_bad(grads) or 'none (the loss itself, or noise of that step)'
    order = self.x.data.order(step)
    return GuardStop(
      f'{self.x.guard["patience"]} updates in a row were not finite and were refused, the last at '
      f'step {step}; examples {order.tolist()}; first parameter with a non-finite gradient: '
      f'{name}. '
      'The state is as it was before them; lower the learning rate or look at these examples'
    )

  def _bar_text(self, step: int) -> str:
    loss = self.window.sums.get('loss')
    mean = f'loss {brief(loss[0] / loss[1])}' if loss is not None and loss[1] else ''
    if not self.throughput.rate:
      return mean
    minutes, seconds = divmod(int(self.throughput.left(step)), 60)
    return f'{mean}  {brief(self.throughput.rate)} steps/s  {minutes}:{seconds:02d} left'

  def _close(self) -> None:
    """Lets go of files and threads, whatever happened."""
    self.stamps.shutdown()
    self.writer.close()
    self.checkpoints.close()

  def _save_at_last(self) -> None:
    """The final checkpoint, tried a few times. Raises Stop where it cannot be written."""
    self.checkpoints.wait()
    for _ in range(FINAL_ATTEMPTS):
      if not self.checkpoints.failed_at:
        return
      time.sleep(RETRY_SECONDS)
      self.saved = None
      self._save()
      self.checkpoints.wait()
    if self.checkpoints.failed_at:
      raise Stop(f'the checkpoint of step {self.step} cannot be written; see above. It goes on '
                 f'from the newest whole one: {self.checkpoints.steps() or "none"}')  # fmt: skip

  def _finish(self) -> dict[str, Any]:
    self._save_at_last()
    device = self.x.layout.mesh.devices.flat[0]
    summary = {
      'metrics': self.loop.last,
      'steps': self.step,
      'stopped_early': self.loop.stopped,
      'best_step': self.loop.best_step,
      'seconds': round(self.loop.seconds, 3),
      'compile_seconds': round(self.loop.compile_seconds, 3),
      'parameters': start.published_parameters(self.x, self.plan),
      'state_digest': tree.digest(self.state),
      'device': f'{self.x.layout.devices} × {device.device_kind}',
      'peak_memory_bytes': _peak_memory(),
      'energy': None,  # not measured: no meter on this device
    }
    if jax.process_index() == 0:
      write_json(self.rundir.path / 'summary.json', summary)
      report.write(self.rundir.path, self.x.name, summary)
      log.info('%s', closing(summary, self.rundir.path))
    return summary


def _peak_memory() -> int | None:
  """Bytes, of one device of this process; None where a device keeps no count (a CPU)."""
  return (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')


def closing(summary: Mapping[str, Any], workdir: pathlib.Path) -> str:
  tests = {k: v for k, v in summary['metrics'].items() if k.startswith('eval/')}
  metrics = '  '.join(f'{k} {brief(v)}' for k, v in (tests or summary['metrics']).items())
  return (
    f'done     {summary["steps"]:,} steps in {summary["seconds"]:.1f} s: {metrics}\n'
    f'report   {workdir / "report.html"}'
  )


def restored(experiment: Experiment, workdir: pathlib.Path, which: str) -> tuple[TrainState, int]:
  """The state of a checkpoint ('latest', 'best' or a step) and its step, for evaluation and use.

  Raises InputError where there is none, it is damaged, or it does not fit.
  """
  folder = workdir / 'checkpoints'
  if not folder.is_dir():
    raise InputError(f'{workdir} holds no run: give --workdir=DIR of one that has trained')
  checkpoints = Checkpoints(folder)
  step = checkpoints.choose_whole(which)
  x = experiment
  check_tokenizer(workdir, x.data)
  plan = state_spec(x)
  state = checkpoints.restore(step, plan.abstract)
  checkpoints.close()
  return state, step
