"""Mode `predict`: predictions of a file or of the test set, one JSON object an example."""

import logging
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

from bmx import experiment as experiments
from bmx.core import errors
from bmx.core.data import Data, Presenting
from bmx.core.experiment import Experiment
from bmx.core.paths import local
from bmx.core.types import HostBatch
from bmx.modes import Request
from bmx.modes.start import need_run, open_run
from bmx.runtime.files import replacing, to_json
from bmx.train.evaluate import join, predictions
from bmx.train.run import restored

log = logging.getLogger('bmx')


def run(request: Request) -> int:
  """Writes WORKDIR/predictions.jsonl, in the order of the examples.

  Every process computes its rows; process 0 writes.
  """
  need_run('predict', request)
  experiment, workdir, stored = open_run(request, evals=not request.input, labels=False)
  data = experiments.input_data(experiment, request.input, stored) if request.input else None
  lines, step = predict(experiment, workdir, data, request.step)
  path = workdir / 'predictions.jsonl'
  count = sum(1 for _ in lines) if jax.process_index() else _write(path, lines)
  log.info('%d predictions of step %d in %s', count, step, path)
  return errors.DONE


def _write(path: pathlib.Path, lines: Iterator[dict[str, Any]]) -> int:
  """Writes JSON lines; returns their number."""
  count = 0
  with replacing(path) as file:
    for line in lines:
      file.write(to_json(line) + '\n')
      count += 1
  return count


def predict(
  experiment: Experiment,
  workdir: str | os.PathLike[str],
  data: Data | None = None,
  step: str = 'latest',
) -> tuple[Iterator[dict[str, Any]], int]:
  """Predicts with a checkpoint of a run.

  Args:
    experiment: the run's experiment.
    workdir: run directory.
    data: what to predict; by default the `eval` entry `test`, or the first one.
    step: 'latest', 'best' or a step.

  Returns:
    One plain dict for each example, in order, and the step of the checkpoint.

  Raises:
    InputError: there is nothing to predict, or the run has no such checkpoint.
  """
  if data is None:
    if not experiment.evals:
      raise errors.InputError('give --input=FILE: the config has no `eval` entry to predict')
    name = 'test' if 'test' in experiment.evals else next(iter(experiment.evals))
    data = experiment.evals[name].data
  state, number = restored(experiment, local(workdir), step)
  return _lines(data, predictions(data, experiment.task, experiment.layout, state)), number


def _lines(data: Data, parts: Iterator[HostBatch]) -> Iterator[dict[str, Any]]:
  """Plain values of each example; for questions, the best answer over a paragraph's windows."""
  if isinstance(data.examples, Presenting):
    yield from data.examples.present(join(list(parts)))
    return
  for rows in parts:
    for i in range(len(rows['prediction'])):
      yield {k: v[i].tolist() for k, v in rows.items()}
