"""Mode `predict`: predictions of a file or of the test set, one row an example."""

import logging
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from bmx import experiment as experiments
from bmx.core import errors
from bmx.core.data import Data
from bmx.core.experiment import Experiment
from bmx.core.paths import local
from bmx.core.types import HostBatch
from bmx.modes import Request
from bmx.modes.pretrained import open_folder
from bmx.modes.start import need_run, open_run
from bmx.modes.temperature import with_temperature
from bmx.runtime.progress import share
from bmx.runtime.rows import check_output, unique, write_rows
from bmx.runtime.storage import Place, place
from bmx.tasks.views import with_views
from bmx.tasks.zeroshot import with_labels
from bmx.train.evaluate import predictions
from bmx.train.predicted import lines
from bmx.train.run import restored
from bmx.train.state import TrainState

log = logging.getLogger('bmx')
EVERY = 10.0  # seconds between two lines of progress


def run(request: Request) -> int:
  """Writes --output, or WORKDIR/predictions/NAME.STEP.jsonl, in the order of the examples.

  The weights are those of a run, or of `init.path`, a folder of Hugging Face with a Whisper. Every
  process computes its rows; process 0 writes. Files that cannot be read are left out; then
  the exit code is that of invalid input.
  """
  pretrained = not request.workdir and bool(request.config) and bool(request.config.init.path)
  if not pretrained:
    need_run('predict', request)
  if request.output:
    check_output(local(request.output))
  if pretrained:
    experiment, workdir, stored = open_folder(request)
  else:
    experiment, workdir, stored = open_run(request, evals=not request.input, labels=False)
  data = experiments.input_data(experiment, request.input, stored) if request.input else None
  given = (experiment.init(), 0) if pretrained else None
  rows, step = _predicted(experiment, workdir, data, request.step, given)
  unreadable = data.metadata.get('unreadable', 0) if data is not None else 0
  code = errors.BAD_INPUT if unreadable else errors.DONE
  name = pathlib.Path(request.input).stem if request.input else entry_of(experiment)
  own = workdir / 'predictions' / f'{name}.{step}.jsonl'
  path = local(request.output) if request.output else own
  if jax.process_index():
    for _ in rows:
      pass
    return code
  if not request.output:
    path.parent.mkdir(exist_ok=True, parents=True)
    path = unique(path)
  log.info('%d predictions of step %d in %s', write_rows(path, rows), step, path)
  if unreadable:
    log.warning('%d of %d files could not be read: exit code %d', unreadable,
                unreadable + (data.size if data is not None else 0), code)  # fmt: skip
  return code


def predict(
  experiment: Experiment, workdir: str | os.PathLike[str], data: Any = None, step: str = 'latest'
) -> Iterator[dict[str, Any]]:
  """Predicts with a checkpoint of a run.

  Args:
    experiment: the run's experiment.
    workdir: run directory.
    data: what to predict: a file, or data in memory as `bmx.build` takes them; by default the
      `eval` entry `test`, or the first one.
    step: 'latest', 'best' or a step.

  Returns:
    One JSON object for each example, in order: its number in the data from 1 (`row`), what the data
    say of it (its text, columns that are not inputs), the prediction and its probabilities by the
    names of the classes.

  Raises:
    InputError: there is nothing to predict, or the run has no such checkpoint.
  """
  if data is not None:
    data = experiments.input_data(experiment, data)
  return _predicted(experiment, place(workdir), data, step)[0]


def _predicted(
  experiment: Experiment,
  workdir: Place,
  data: Data | None,
  step: str,
  given: tuple[TrainState, int] | None = None,
) -> tuple[Iterator[dict[str, Any]], int]:
  """Returns the rows, and the step of the checkpoint; `given`: a state and its step instead."""
  if data is None:
    if not experiment.evals:
      raise errors.InputError('give --input=FILE: the config has no `eval` entry to predict')
    data = experiment.evals[entry_of(experiment)].data
  state, number = given or restored(experiment, workdir, step)
  words, known = experiment.config['predict'], experiments.fitted_of(experiment.data.examples)
  named = with_labels(experiment.task, words['labels'], words['templates'], known)
  made = with_temperature(named, words['temperature'], workdir, number)
  parts = predictions(data, with_views(made, words['tta']), experiment.layout, state)
  return lines(data, named, watched(parts, data.size)), number


def entry_of(experiment: Experiment) -> str:
  """Returns the `eval` entry that is predicted by default: `test`, or the first one."""
  return 'test' if 'test' in experiment.evals else next(iter(experiment.evals))


def watched(
  parts: Iterator[HostBatch], size: int, now: Callable[[], float] = time.monotonic
) -> Iterator[HostBatch]:
  """Yields the parts; logs every `EVERY` seconds how many of `size` rows are done."""
  done = 0
  began = said = now()
  for rows in parts:
    yield rows
    done += len(next(iter(rows.values())))
    if now() - said > EVERY and done < size:
      said = now()
      log.info('predicted %s', share(done, size, said - began))
