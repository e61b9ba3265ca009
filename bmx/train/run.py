"""One start of a run: everything that the training loop reads, made before the first dispatch."""

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from bmx.core.errors import InputError
from bmx.core.events import Hook
from bmx.core.experiment import Eval, Experiment
from bmx.core.metrics import Window
from bmx.runtime.account import Account
from bmx.runtime.processes import gathered
from bmx.runtime.progress import Progress, clock
from bmx.runtime.report import starts
from bmx.runtime.storage import Place
from bmx.runtime.throughput import Throughput
from bmx.runtime.watchdog import Watchdog
from bmx.runtime.writer import Bar, Silent, Writer, brief
from bmx.train import datafile, package, start
from bmx.train.checkpoint import Checkpoints
from bmx.train.energy import RunEnergy
from bmx.train.evaluate import Evaluation, evaluations, rehearse
from bmx.train.feed import Feed
from bmx.train.guard import check_finite
from bmx.train.policy import LoopState, groups, loop_state, stays_stopped
from bmx.train.rundir import RunDir, check_links
from bmx.train.signals import Signals
from bmx.train.sinks import make_writer
from bmx.train.state import StateSpec, TrainState, state_spec

log = logging.getLogger('bmx')
GROUPS_AHEAD = 4096  # that the feed gets at a time


@dataclasses.dataclass(frozen=True)
class Run:
  """One start of a run. The fields are fixed; `loop`, `window` and the writers hold what changes.

  Attributes:
    experiment: of the run.
    workdir: the run directory.
    spec: shapes and shardings of the state, and how to create it.
    feed: batches by step; `feed.depth` steps are one dispatch at most.
    arrays: the data that is resident on the devices; {} if rows come from the host.
    program: compiled dispatch(state, arrays, group, n, secret) -> (state, metric sums, skips).
    secret: of the noise of private training, uint32 [2]; None without.
    finite: compiled test of a state, -> bool [].
    rates: step of a log line -> learning rate of the update before it.
    evaluations: name -> function of the state that returns metrics by their full names.
    hooks: every hook, in the order in which they are called at a step.
    checkpoints: of this run.
    writer: of scalars.
    throughput: rates between log lines.
    watchdog: ends a run that hangs.
    signals: requests to stop.
    bar: progress on a terminal.
    loop: the host's part of the state.
    window: metric sums since the last log line.
    resumed: step of the checkpoint that the run continues from; None for a new run.
    account: wall time by part, over all starts.
    progress: positions of the run as text.
    energy: energy and money over all starts, and their forecast.
    hook_seconds: hook -> seconds spent in it by this start.
  """

  experiment: Experiment
  workdir: Place
  spec: StateSpec
  feed: Feed
  arrays: Any
  program: Any
  secret: Any
  finite: Any
  rates: Mapping[int, float]
  evaluations: Mapping[str, Evaluation]
  hooks: Sequence[Hook]
  checkpoints: Checkpoints
  writer: Writer | Silent
  throughput: Throughput
  watchdog: Watchdog
  signals: Signals
  bar: Bar
  loop: LoopState
  window: Window
  resumed: int | None
  account: Account
  progress: Progress
  energy: RunEnergy
  hook_seconds: dict[str, float] = dataclasses.field(default_factory=dict)

  def first_state(self) -> TrainState:
    """Returns the state of the checkpoint, or a new one whose constant collections are on disk."""
    if self.resumed is None:
      state = self.experiment.init(self.spec)
      check_finite(self.finite, state, f'--config.init.path={self.experiment.weights!r}')
      self.checkpoints.save_constants(state)
      return state
    return self.checkpoints.restore(self.resumed, self.spec.abstract)

  def write(self, step: int, values: Mapping[str, float], left: str = '') -> None:
    """Writes scalars of a step to metrics.jsonl (fsynced), TensorBoard and the terminal."""
    self.writer.scalars(step, values, self.progress.position(step), left)
    self.loop.last |= values
    self.loop.metrics_length = self.writer.length

  def count_spent(self) -> None:
    """Writes wall time and energy until now into the host state."""
    self.loop.spent = self.account.parts()
    self.loop.seconds = sum(self.loop.spent.values())
    self.loop.joules = self.energy.energy.parts()

  def reads_state(self, step: int) -> bool:
    """Whether the state is needed after `step`: by a hook, or to save again after a failure."""
    steps = self.experiment.steps
    due = step == steps or any(h.reads_state and h.due(step, steps) for h in self.hooks)
    return due or (jax.process_count() == 1 and self.checkpoints.failed())

  def groups(self, step: int) -> Iterator[tuple[int, int, Any]]:
    """Yields (first step, number of steps, placed rows) of every dispatch from `step` on."""
    todo = groups(step, self.experiment.steps, self.hooks, self.feed.depth)
    while some := list(itertools.islice(todo, GROUPS_AHEAD)):
      for (first, n), (group, waited) in zip(some, self.feed.groups(some), strict=True):
        self.throughput.wait(waited, first + n)
        yield first, n, group

  def bar_text(self, step: int) -> str:
    """Returns loss, rate and remaining time for the progress bar."""
    loss = self.window.sums.get('loss')
    mean = f'loss {brief(loss[0] / loss[1])}' if loss is not None and loss[1] else ''
    if not self.throughput.rate:
      return mean
    return f'{mean}  {brief(self.throughput.rate)} steps/s  {self.left(step)}'

  def left(self, step: int) -> str:
    """Returns the time left at the rate of the last window, as text; '' at the end."""
    seconds = self.throughput.left(step)
    return f'{clock(seconds)} left' if seconds else ''

  def close(self) -> None:
    """Waits for the save in progress and closes files and threads."""
    self.energy.energy.close()
    self.writer.close()
    self.checkpoints.close()


@dataclasses.dataclass(frozen=True)
class Event:
  """The end of a dispatch, as hooks get it.

  Attributes:
    run: the run.
    step: completed steps.
    state: TrainState after `step` steps, valid until the hook returns: the next dispatch overwrites
      its arrays. None for hooks with reads_state=False if a later dispatch is in flight.
    finished: () -> time at which the device ended the dispatch, in seconds of
      `time.perf_counter`.
    asked: a signal asked the run to stop after this step.
  """

  run: Run
  step: int
  state: Any
  finished: Callable[[], float] = time.perf_counter
  asked: bool = False

  @property
  def workdir(self) -> Place:
    """The run directory."""
    return self.run.workdir

  def write(self, values: Mapping[str, float]) -> None:
    """Writes scalars of this step: to metrics.jsonl, TensorBoard, the terminal and the summary.

    Process 0 writes; the other processes log.
    """
    self.run.write(self.step, {k: float(v) for k, v in values.items()})

  def write_texts(self, values: Mapping[str, str]) -> None:
    """Writes texts of this step to TensorBoard and to the writers of the config."""
    self.run.writer.texts(self.step, values)


def make_run(
  experiment: Experiment,
  rundir: RunDir,
  hooks: Sequence[Hook],
  *,
  bar: Bar | None = None,
  signals: Signals | None = None,
  watchdog: Watchdog | None = None,
  began: float | None = None,
) -> Run:
  """Finds the checkpoint, opens the files and compiles the program.

  Args:
    experiment: of the run.
    rundir: the run directory.
    hooks: all hooks, in order; see `hooks.in_order`.
    bar: entered by the caller, as `signals` and `watchdog` are; None: nothing is shown or watched.
    signals: see `bar`.
    watchdog: see `bar`.
    began: when the command began, in seconds of `time.perf_counter`; default: now.

  Raises:
    InputError: every checkpoint is damaged, or the newest does not fit the experiment.
  """
  x, watchdog = _keyed(experiment, rundir), watchdog or Watchdog(0)
  account = Account(time.perf_counter() if began is None else began)
  spec = state_spec(x)
  counted = start.step_costs(x, spec)
  flops = counted.flops
  rates = start.learning_rates(x)
  for name, entry in x.evals.items():
    if isinstance(entry, Eval):
      rehearse(name, entry, x.task, x.layout, spec.variables)
  feed = Feed(x.data, x.layout, start.choose_dispatch(x, counted))
  checkpoints = Checkpoints(rundir.path / 'checkpoints', x.keep.last, x.task.constant)
  try:
    found, loop = _resume(x, spec, checkpoints)
    account.before = loop.spent or {'train': loop.seconds, 'compile': loop.compile_seconds}
    changed = start.compare_rates(x, loop.rate)
    kept = start.keep_memory(x)
    energy = RunEnergy(x, start.units(x), flops, loop, account)
    log.info('%s', start.describe_start(x, spec, flops, feed.depth, found, kept))
    log.info('forecast   %s', energy.forecast_text())
    log.info('workdir    %s', rundir.path)
    rundir.write_config(found or 0, {'steps_per_call': feed.depth, **x.choices})
    arrays = feed.constants()
    watchdog.pat()
    compiled = loop.compile_seconds
    program, finite = start.compile_program(x, spec, feed, arrays, loop, found or 0)
    account.add('compile', loop.compile_seconds - compiled)
    watchdog.pat()
    first = jax.process_index() == 0
    writer = make_writer(x, rundir, found or 0, loop) if first else Silent()
    if first:
      starts.begin(rundir.path, found or 0, rundir.began, rundir.changes, changed)
  except Exception:
    checkpoints.close()
    raise
  return Run(
    experiment=x,
    workdir=rundir.path,
    spec=spec,
    feed=feed,
    arrays=arrays,
    program=program,
    secret=None if x.secret is None else x.secret.key,
    finite=finite,
    rates=rates,
    evaluations=evaluations(x, start.loops(x, counted), illustrated=True),
    hooks=tuple(hooks),
    checkpoints=checkpoints,
    writer=writer,
    throughput=Throughput(x.steps, start.units(x), flops, start.peak_flops(x)),
    watchdog=watchdog,
    signals=signals or Signals(),
    bar=bar or Bar(x.steps),
    loop=loop,
    window=Window(loop.window),
    resumed=found,
    account=account,
    energy=energy,
    progress=Progress(x.steps, x.data.size / x.data.expected),
  )


def _keyed(x: Experiment, rundir: RunDir) -> Experiment:
  """Returns an experiment whose noise and draws are those of this run alone."""
  if x.secret is None:
    return x
  run = gathered(rundir.identify())[0]
  return dataclasses.replace(x, secret=x.secret.keyed(run), data=x.data.keyed(run))


def _resume(
  x: Experiment, spec: StateSpec, checkpoints: Checkpoints
) -> tuple[int | None, LoopState]:
  """-> (step of the newest valid checkpoint, its LoopState)."""
  found = checkpoints.newest_valid()
  if found is None:
    return None, LoopState()
  checkpoints.check(found, spec.abstract)
  loop = loop_state(checkpoints.loop(found), f'checkpoint {found}')
  loop.stopped = stays_stopped(loop, x.stop)
  log.info('resuming from the checkpoint of step %d', found)
  return found, loop


def restored(experiment: Experiment, workdir: Place, which: str) -> tuple[TrainState, int]:
  """Returns the state of a checkpoint and its step, for evaluation and use.

  Args:
    experiment: of the run.
    workdir: the run directory, or a package.
    which: 'latest', 'best' or a step.

  Raises InputError if it is missing, is damaged, or it does not fit.
  """
  folder = workdir / 'checkpoints'
  check_links(workdir)
  if package.is_package(workdir):
    datafile.check_tokenizer(workdir, datafile.tokenizer_of(experiment.data))
    return package.restored(experiment, workdir, which)
  if not folder.is_dir():
    raise InputError(f'--workdir={workdir}: expected the directory of a run that has trained')
  checkpoints = Checkpoints(folder, constant=experiment.task.constant)
  step = checkpoints.choose_whole(which)
  x = experiment
  datafile.check_tokenizer(workdir, datafile.tokenizer_of(x.data))
  state = checkpoints.restore(step, state_spec(x).abstract)
  checkpoints.close()
  return state, step
