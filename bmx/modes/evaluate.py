"""Mode `eval`: metrics of a checkpoint on every `eval` entry."""

import logging
import os

import jax

from bmx.core import errors
from bmx.core.experiment import Experiment
from bmx.modes import Request
from bmx.modes.start import need_run, open_run
from bmx.runtime.files import write_json
from bmx.runtime.storage import place
from bmx.runtime.writer import brief
from bmx.train.evaluate import evaluations
from bmx.train.run import restored

log = logging.getLogger('bmx')


def run(request: Request) -> int:
  """Prints one line and writes WORKDIR/evaluation.STEP.json."""
  need_run('eval', request)
  experiment, workdir, _ = open_run(request)
  evaluate(experiment, workdir, request.step)
  return errors.DONE


def evaluate(
  experiment: Experiment, workdir: str | os.PathLike[str], step: str = 'latest'
) -> dict[str, float]:
  """Evaluates a checkpoint of a run on every `eval` entry.

  Args:
    experiment: the run's experiment.
    workdir: run directory; evaluation.STEP.json is written there.
    step: 'latest', 'best' or a step.

  Returns:
    Metrics by name, such as 'eval/valid/loss'.

  Raises:
    InputError: the config has no `eval` entry, or the run has no such checkpoint.
  """
  if not experiment.evals:
    raise errors.InputError('the config has no `eval` entry to evaluate; set --config.eval.NAME')
  folder = place(workdir)
  state, number = restored(experiment, folder, step)
  values: dict[str, float] = {}
  for evaluation in evaluations(experiment).values():
    values |= evaluation(state)
  log.info('step %d  %s', number, '  '.join(f'{k} {brief(v)}' for k, v in values.items()))
  if jax.process_index() == 0:
    write_json(folder / f'evaluation.{number}.json', {'step': number, 'metrics': values})
  return values
