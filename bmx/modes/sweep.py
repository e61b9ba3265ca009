"""Mode `sweep`: trains trials whose words optuna draws, and keeps the best by a validation metric.

WORKDIR/study.log is the journal of the study: several commands may work on it, and the same command
continues it. WORKDIR/trials/N is an ordinary run directory.
"""

import dataclasses
import importlib.util
import json
import logging
import pathlib
import shlex
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bmx import config as recipes
from bmx import experiment as experiments
from bmx.config import Space
from bmx.core import errors
from bmx.core.errors import InputError
from bmx.core.events import Hook, Selection
from bmx.core.paths import local
from bmx.core.terminal import printable
from bmx.modes import Request
from bmx.modes.coordinates import picture
from bmx.modes.start import start
from bmx.runtime.files import replacing, write_json
from bmx.runtime.writer import brief, read_metrics, table
from bmx.train import loop

log = logging.getLogger('bmx')
INTERRUPTED = 'interrupted'  # attribute of a trial that a signal ended: its words are drawn again


@dataclasses.dataclass
class Prune:
  """A hook that reports an evaluation to a trial, and stops the run where the trial is pruned.

  Attributes:
    trial: of optuna, or an object with its `report` and `should_prune`.
    metric: name of the metric that is reported.
    pruned: whether the run was stopped.
  """

  trial: Any
  metric: str
  pruned: bool = False

  def __call__(self, event: Any) -> None:
    state, value = event.run.loop, event.run.loop.evaluation.get(self.metric)
    if value is None or event.step == event.run.experiment.steps:
      return
    self.trial.report(value, event.step)
    if self.trial.should_prune():
      state.stopped = self.pruned = True
      log.info('trial pruned at step %d: %s %s', event.step, self.metric, brief(value))


def run(request: Request) -> int:
  """Runs trials until the study has --trials of them; prints and writes the results."""
  followed = check(request)
  folder = pathlib.Path(start(request))
  if jax.process_count() > 1:
    raise InputError('sweep: expected one process a command; start the command several times')
  if (folder / 'config.json').exists():
    raise InputError(f'--workdir={folder}: expected the folder of a sweep, found a run')
  experiments.build(without_test(request.config), request.name)  # mistakes that all trials share
  if request.config.privacy:
    log.warning('ε of log lines is that of one trial: those of all trials on the same data add up')
  folder.mkdir(parents=True, exist_ok=True)
  study = open_study(folder, request, followed)
  while len(finished(study)) < request.trials:
    one_trial(study, request, folder, followed)
  finish(study, request, folder, followed)
  return errors.DONE


def check(request: Request) -> Selection:
  """Returns the metric that trials are compared by.

  Raises InputError for a command that no trial could follow.
  """
  if importlib.util.find_spec('optuna') is None:
    raise InputError("sweep: expected optuna; pip install 'bmx-jax[sweep]'")
  local(request.workdir)  # the journal is a file that grows
  if not request.recipe:
    raise InputError('sweep: expected a recipe; bmx sweep RECIPE')
  if request.trials < 1:
    raise InputError(f'--trials={request.trials}: expected at least 1; --trials=20, say')
  if not request.spaces:
    fix = "--config.schedule.peak='log(1e-4,1e-2)', say"
    raise InputError(f'sweep: expected a word to search; {fix}')
  for space in request.spaces:
    for value in space.values:
      with_words(request.config, {space.word: value})
  keep = request.config.keep
  if not keep.metric:
    fix = '--config.eval.valid.split=valid --config.keep.metric=eval/valid/loss, say'
    raise InputError(f"keep.metric='': expected a metric to compare trials by; {fix}")
  entries = request.config.eval
  entry = keep.metric.split('/')[1] if keep.metric.count('/') == 2 else ''
  if entry in entries and is_test(entry, entries[entry]):
    raise InputError(
      f'keep.metric={keep.metric}: the test set must not select a trial; use a validation entry'
    )
  return Selection(keep.metric, keep.mode)


def is_test(name: str, entry: Mapping[str, Any]) -> bool:
  """Whether an `eval` entry is the test set."""
  return 'test' in (name, entry.get('split'))


def without_test(config: Any) -> Any:
  """Returns a copy of a config without its test set."""
  copy = config.copy_and_resolve_references()
  with copy.unlocked():
    for name in [k for k, entry in copy.eval.items() if is_test(k, entry)]:
      del copy.eval[name]
  return copy


def with_words(config: Any, words: Mapping[str, str]) -> Any:
  """Returns a copy of a config with words set. Raises InputError naming one that is invalid."""
  copy = config.copy_and_resolve_references()
  recipes.apply(copy, [f'{k}={v}' for k, v in words.items()])
  return copy


def open_study(folder: pathlib.Path, request: Request, followed: Selection) -> Any:
  """Opens the study of a folder, or creates it.

  Raises InputError if the folder holds the sweep of another command.
  """
  import optuna
  from optuna.storages import JournalStorage
  from optuna.storages.journal import JournalFileBackend

  optuna.logging.set_verbosity(optuna.logging.WARNING)
  path = folder / 'study.log'
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
      study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(path))),
        pruner=optuna.pruners.MedianPruner(),
        study_name='sweep',
        direction='maximize' if followed.mode == 'max' else 'minimize',
        load_if_exists=True,
      )
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(f'{path}: expected the journal of a sweep: {error!r}') from None
  now = [request.recipe, sorted(request.overrides), sorted(map(list, request.spaces))]
  command = json.dumps([*now, followed.metric, followed.mode])
  before = study.user_attrs.get('command', command)
  if before != command:
    raise InputError(
      f'--workdir={folder}: expected the command of its sweep, {before}, found {command}; name '
      'another directory'
    )
  study.set_user_attr('command', command)
  return study


def finished(study: Any) -> list[Any]:
  """Returns the trials that have ended and count."""
  trials = study.get_trials(deepcopy=False)
  return [t for t in trials if t.state.is_finished() and INTERRUPTED not in t.user_attrs]


def suggest(trial: Any, space: Space) -> Any:
  """Draws the value of a word."""
  if space.kind == 'choice':
    return trial.suggest_categorical(space.word, space.values)
  if space.kind == 'int':
    return trial.suggest_int(space.word, int(space.values[0]), int(space.values[1]))
  low, high = float(space.values[0]), float(space.values[1])
  return trial.suggest_float(space.word, low, high, log=space.kind == 'log')


def draw(study: Any, request: Request) -> Any:
  """Returns a new trial; its words follow from `seed`, its number and the trials before it."""
  from optuna import samplers

  trial = study.ask()
  sequence = np.random.SeedSequence([request.config.seed, trial.number])
  study.sampler = samplers.TPESampler(seed=int(sequence.generate_state(1)[0]))
  for space in request.spaces:
    suggest(trial, space)
  return trial


def one_trial(study: Any, request: Request, folder: pathlib.Path, followed: Selection) -> None:
  """Draws words and trains with them; a trial that fails is recorded.

  Raises Preempted if a signal stopped it; its words are drawn again by the next trial.
  """
  from optuna.trial import TrialState

  trial = draw(study, request)
  words = {k: str(v) for k, v in trial.params.items()}
  log.info('trial %d: %s', trial.number, '  '.join(f'{k}={v}' for k, v in words.items()))
  hook = Prune(trial, followed.metric)
  try:
    made = experiments.build(without_test(with_words(request.config, words)), request.name)
    hooks = {'sweep': Hook(made.every.eval, hook)}
    summary = loop.run(made, folder / 'trials' / str(trial.number), hooks)
    value = best_value(folder / 'trials' / str(trial.number), summary, followed)
  except (errors.Preempted, KeyboardInterrupt):
    trial.set_user_attr(INTERRUPTED, True)
    study.tell(trial, state=TrialState.FAIL)
    study.enqueue_trial(trial.params)
    raise
  except Exception as error:  # one combination of words; the others may train
    trial.set_user_attr('error', f'{type(error).__name__}: {error}')
    study.tell(trial, state=TrialState.FAIL)
    log.warning('trial %d failed: %s', trial.number, error)
    return
  if hook.pruned:
    study.tell(trial, state=TrialState.PRUNED)
  else:
    study.tell(trial, value)


def best_value(run: pathlib.Path, summary: Mapping[str, Any], followed: Selection) -> float:
  """Returns the best value of the followed metric in a run.

  Raises ValueError if it was never finite.
  """
  best = None
  for line in read_metrics(run / 'metrics.jsonl'):
    value = line.get(followed.metric)
    if isinstance(value, int | float) and followed.better(value, best):
      best = float(value)
  if best is None:
    raise ValueError(f'{followed.metric} was never finite in {summary["steps"]} steps')
  return best


def finish(study: Any, request: Request, folder: pathlib.Path, followed: Selection) -> None:
  """Prints the trials, best first, and writes best.json and sweep.html."""
  trials = ranked(study, followed)
  words = [space.word for space in request.spaces]
  head = ('trial', 'state', followed.metric, *words, 'error')
  rows = [
    (
      str(t.number),
      t.state.name.lower(),
      '' if t.value is None else brief(t.value),
      *(brief(v) if isinstance(v, float) else str(v) for v in map(t.params.get, words)),
      t.user_attrs.get('error', '')[:60],
    )
    for t in trials
  ]
  kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
  shown = table([tuple(row[i] for i in kept) for row in (head, *rows)])
  sys.stdout.write(printable(shown) + '\n')
  complete = [t for t in trials if t.state.name == 'COMPLETE']
  if not complete:
    raise errors.Stop(f'sweep: no trial of {len(trials)} was completed; see the table above')
  command = command_of(request, complete[0].params)
  write_json(
    folder / 'best.json',
    {
      'trial': complete[0].number,
      'metric': followed.metric,
      'value': complete[0].value,
      'words': complete[0].params,
      'command': command,
    },
  )
  sys.stdout.write(printable(f'\nbest    {command}\n'))
  if importlib.util.find_spec('plotly') is None:
    sys.stdout.write("picture pip install 'bmx-jax[report]' adds it\n")
    return
  with replacing(folder / 'sweep.html') as file:
    file.write(picture(complete, request.spaces, followed.metric))
  sys.stdout.write(f'picture {folder / "sweep.html"}\n')


def ranked(study: Any, followed: Selection) -> list[Any]:
  """Returns the trials that count: complete ones first, the best of them first."""
  sign = -1 if followed.mode == 'max' else 1
  complete = lambda t: t.state.name == 'COMPLETE'
  key = lambda t: (not complete(t), sign * t.value if complete(t) else 0, t.number)
  return sorted(finished(study), key=key)


def command_of(request: Request, words: Mapping[str, Any]) -> str:
  """Returns the command that trains with the words of a trial."""
  values = [*request.overrides, *(f'{k}={v}' for k, v in words.items())]
  return shlex.join(['bmx', 'train', request.recipe, *(f'--{v}' for v in values)])
