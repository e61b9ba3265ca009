"""What happens at a step, in an order that a resumed run repeats.

1. log: the line of the window is on disk (fsync);
2. save: a due checkpoint is started, so that nothing after it can lose the step;
3. examine: a state that is not finite ends the run (save does the same);
4. evaluate: metrics of every entry of `eval` (they may call code of the user);
5. decide: update the best value, and stop early if due;
6. keep: a checkpoint of the best or the last step, if step 2 has not saved it;
7. profile, then the hooks of the user, in the order of their names; then the report, where one is
   due.

Where a hook raises, the state is saved first, as it was before the hook.

`call_due` records each hook that has returned. Hooks that follow a save of the same step are
recorded in STEP.after.json; a resumed run calls those that remain before its first dispatch.

A user's hook is any function of an `Event`:

    class Norms:
      def __call__(self, event):
        norms = {k: jnp.linalg.norm(v) for k, v in tree.named(event.state.params).items()}
        event.write({f'norm/{k}': float(v) for k, v in norms.items()})

    c.hooks.norms = {'call': 'mine.hooks:Norms', 'every': 500}          # in a recipe
    loop.run(experiment, workdir, {'norms': Hook(500, Norms())})        # from code
"""

import dataclasses
import logging
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax

from bmx.core.errors import GuardStop, Stop
from bmx.core.events import Hook
from bmx.core.experiment import Experiment
from bmx.parallel import jit
from bmx.runtime import report, storage, trace
from bmx.train import policy, summary
from bmx.train.checkpoint import RETRY_SECONDS
from bmx.train.evaluate import Evaluator
from bmx.train.examine import check_targets, examine
from bmx.train.guard import first_bad
from bmx.train.run import Event
from bmx.train.state import variables_of
from bmx.train.step import step_noise

log = logging.getLogger('bmx')
FINAL_ATTEMPTS = 3  # to write the last checkpoint
SAVE = 'save'
ACCOUNTS = {SAVE: 'save', 'keep': 'save', 'evaluate': 'evaluate'}  # hook -> part of the account
PROGRESS_SECONDS = 20.0  # between two reports at log lines


def in_order(x: Experiment, more: Mapping[str, Hook]) -> tuple[Hook, ...]:
  """Returns all hooks of a run, in the order of this module's docstring.

  Args:
    x: its `every`, `profile` and `hooks`.
    more: name -> further hooks; a name replaces a hook of the config.
  """
  hooks = [logging_hook(x), Hook(x.every.save, save, SAVE, at_stop=False)]
  if x.evals:
    hooks += [
      Hook(x.every.eval, examine, 'examine', at_stop=False),
      Hook(x.every.eval, evaluate, 'evaluate', at_stop=False),
      Hook(x.every.eval, decide, 'decide', at_stop=False),
      Hook(x.every.eval, keep, 'keep'),
    ]
  if x.profile.get('steps'):
    first, last = x.profile['start'], min(x.profile['start'] + x.profile['steps'], x.steps)
    hooks.append(Hook((first, last), Profile(first, last), 'profile'))
  users = {**x.hooks, **more}
  hooks += [dataclasses.replace(hook, name=f'hooks.{k}') for k, hook in users.items()]
  reports = report.Reports()
  if x.evals:
    hooks.append(Hook(x.every.eval, WriteReport(reports), 'report'))
  progress = WriteReport(reports, PROGRESS_SECONDS)
  hooks.append(Hook(x.every.log, progress, 'progress', reads_state=False, at_stop=False))
  return tuple(hooks)


def logging_hook(x: Experiment) -> Hook:
  """Returns the hook that writes log lines; all that a benchmark of the loop needs."""
  return Hook(x.every.log, write_line, 'log', reads_state=False, at_stop=False)


def call_due(event: Event) -> None:
  """Calls the hooks that are due at a step and have not returned there yet."""
  run, loop = event.run, event.run.loop
  saver = run.checkpoints
  retry = event.state is not None and jax.process_count() == 1 and saver.failed()
  for hook in run.hooks:
    due = hook.due(event.step, run.experiment.steps) or (loop.stopped and hook.at_stop)
    if hook.name in loop.done or not (due or (retry and hook.name == SAVE)):
      continue
    began, before = time.perf_counter(), dataclasses.asdict(loop)
    try:
      sections = hook.call(event)
    except Exception as error:
      if hook.name != SAVE and not isinstance(error, GuardStop):
        save_before(event, before)
      raise
    report.keep_sections(run.workdir, hook.name, sections)
    seconds = time.perf_counter() - began
    run.hook_seconds[hook.name] = run.hook_seconds.get(hook.name, 0.0) + seconds
    compiled = loop.compile_seconds - before['compile_seconds']
    run.account.add('compile', compiled)
    run.account.add(ACCOUNTS.get(hook.name, 'other'), seconds - compiled)
    loop.done.append(hook.name)
    if hook.reads_state:
      run.throughput.pause(seconds)
      run.watchdog.pat()
    if saver.saved == event.step and hook.name != SAVE:
      run.writer.flush()
      run.count_spent()
      saver.save_after(dataclasses.asdict(loop), event.step)


def write_line(event: Event) -> None:
  """Writes the means of the window, the learning rate and the throughput."""
  run = event.run
  check_targets(event)
  skipped = int(run.window.sums['skipped'][0])
  line = run.window.close() | {'skipped': skipped, 'learning_rate': run.rates[event.step]}
  line |= {k: value(event.step) for k, value in run.experiment.step_values.items()}
  last, run.loop.rate = run.loop.last | line, [event.step, line['learning_rate']]
  rates = run.throughput.close(event.step, event.finished())
  rates |= run.energy.line(event.step, rates)
  run.write(event.step, line | rates, run.left(event.step))
  run.loop.last = last  # rates of one window are not metrics of the run


def save(event: Event) -> None:
  """Starts to save both parts of the state, once per step; again if the save has failed.

  Raises GuardStop if the state is not finite: the run has nothing to continue with.
  """
  run, saver = event.run, event.run.checkpoints
  if saver.saved == event.step and not saver.failed_anywhere():
    return
  examine(event)
  run.count_spent()
  run.loop.window = run.window.json()
  run.writer.flush()
  saver.save(event.state, dataclasses.asdict(run.loop), event.step)


def save_before(event: Event, loop: dict[str, Any]) -> None:
  """Saves the state of a step whose hook has raised, with the LoopState before that hook.

  One process only: in a run of several, the others may not have failed.
  """
  run, saver = event.run, event.run.checkpoints
  if event.state is None or saver.saved == event.step or jax.process_count() > 1:
    return
  if bool(run.finite(event.state)):
    run.count_spent()
    spent = {'seconds': run.loop.seconds, 'spent': run.loop.spent, 'joules': run.loop.joules}
    run.writer.flush()
    saver.save(event.state, loop | spent | {'window': run.window.json()}, event.step)
    log.error('step %d is saved before the error that follows', event.step)


def save_at_last(event: Event) -> None:
  """Writes the final checkpoint; tries a few times. Raises Stop if it cannot be written."""
  saver = event.run.checkpoints
  saver.wait()
  for _ in range(FINAL_ATTEMPTS):
    if not saver.failed_anywhere():
      return
    time.sleep(RETRY_SECONDS)
    save(event)
    saver.wait()
  if saver.failed_anywhere():
    newest = saver.steps() or 'none'
    raise Stop(
      f'the checkpoint of step {event.step} cannot be written; see above. The same command '
      f'continues from the newest whole one: {newest}'
    )


def guard_stop(event: Event) -> GuardStop:
  """Saves the state before the rejected updates -> the error that names the cause.

  The error names the last step, its examples and the first parameter with a bad gradient.
  """
  save(event)
  save_at_last(event)
  run, x, feed, step = event.run, event.run.experiment, event.run.feed, event.step - 1
  group, _ = next(feed.groups([(step, 1)]))

  def gradient(state, arrays, group, secret):
    batch = feed.take(arrays, group, 0)
    return x.grad_fn(variables_of(state), batch, step_noise(state, step, secret)).sum

  grads = jit(gradient, x.layout)(event.state, run.arrays, group, run.secret)
  examples = x.data.indices(step)[0].tolist() if run.secret is None else 'withheld'
  name = first_bad(grads) or 'none (the loss itself, or noise of that step)'
  return GuardStop(
    f'{x.guard["patience"]} consecutive non-finite updates were rejected, the last at '
    f'step {step}; examples {examples}; first parameter with a non-finite '
    f'gradient: {name}. '
    f'The state before them is saved as step {event.step}; lower the learning rate or check these '
    f'examples, and continue in another --workdir with --config.init.path={event.workdir}'
  )


def evaluate(event: Event) -> list[report.Section]:
  """Evaluates every entry of `eval` and writes one line."""
  run, line, sections = event.run, {}, []
  for evaluation in run.evaluations.values():
    compiling = isinstance(evaluation, Evaluator) and evaluation.program is None
    line |= evaluation(event.state)
    if isinstance(evaluation, Evaluator) and compiling:
      run.loop.compile_seconds += evaluation.compile_seconds
    if isinstance(evaluation, report.HasSections):
      sections += evaluation.sections()
  event.write(line)
  run.loop.evaluation = {k: float(v) for k, v in line.items()}
  return sections


def decide(event: Event) -> None:
  """Follows `stop.metric` and `keep.metric`; see `policy.decide`."""
  x = event.run.experiment
  policy.decide(event.run.loop, x.stop, x.keep, event.step)


def keep(event: Event) -> None:
  """Saves the best step, or the one that early stopping ends at."""
  if event.run.loop.best_step == event.step or event.run.loop.stopped:
    save(event)


@dataclasses.dataclass
class WriteReport:
  """Writes report.html from what there is so far, in process 0, unless that is too expensive.

  Attributes:
    reports: decides whether one is due; two hooks of a run share it.
    seconds: between two reports at least.
  """

  reports: report.Reports
  seconds: float = 0.0

  def __call__(self, event: Event) -> None:
    if jax.process_index() == 0 and self.reports.due(self.seconds):
      summary.write_report(event.run, event.step, 'running', self.reports)


@dataclasses.dataclass
class Profile:
  """Traces the steps between its two calls into WORKDIR/profile; shows the longest operations.

  TensorBoard and Perfetto read the trace.

  Attributes:
    first: step after which the trace begins; a run that resumes there or later writes none.
    last: step after which it ends.
    tracing: the folder that the profiler writes, while it does.
  """

  first: int
  last: int
  tracing: pathlib.Path | None = None

  def __call__(self, event: Event) -> report.Section | None:
    folder = event.workdir / 'profile'
    if self.tracing:
      jax.profiler.stop_trace()
      path = trace.newest(self.tracing)
      operations = trace.read(path) if path else []
      storage.publish(self.tracing, folder)
      self.tracing = None
      log.info('profile    %s\n%s', folder, trace.text(operations))
      return trace.section(operations) if operations else None
    if event.step == self.first and not event.run.loop.stopped:
      self.tracing = storage.staging(folder)
      jax.profiler.start_trace(str(self.tracing))
    elif event.step == self.last:
      log.warning('no profile is written: the run was resumed behind step %d', self.first)
    return None
