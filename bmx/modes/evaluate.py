"""Mode `eval`: metrics of a checkpoint on every `eval` entry."""

import logging
import os
import sys

import jax

from bmx.core import errors
from bmx.core.experiment import Experiment
from bmx.core.terminal import printable
from bmx.modes import Request, trust
from bmx.modes.reports import add_sections
from bmx.modes.start import need_run, open_run
from bmx.modes.temperature import keep_temperature
from bmx.runtime.files import write_json
from bmx.runtime.storage import Place, place
from bmx.runtime.writer import brief, table
from bmx.train.evaluate import evaluations
from bmx.train.run import restored

log = logging.getLogger('bmx')


def run(request: Request) -> int:
  """Prints one line and writes WORKDIR/evaluation.STEP.json.

  With words of `reliability`, it also prints a table of slices, writes reliability.STEP.json,
  keeps a fitted temperature in temperature.json, and adds sections to the report.
  """
  need_run('eval', request)
  experiment, workdir, _ = open_run(request)
  evaluate(experiment, workdir, request.step)
  _reliability(experiment, workdir, request)
  return errors.DONE


def _reliability(x: Experiment, workdir: Place, request: Request) -> None:
  """Measures reliability as the words of `reliability` ask."""
  words = request.config.reliability
  if not words.slices and not words.temperature and not words.entry:
    return
  state, step = restored(x, workdir, request.step)
  found = trust.measure(x, state, step, words)
  if jax.process_index():
    return
  write_json(workdir / f'reliability.{step}.json', {'step': step, **found.facts})
  sys.stdout.write(printable(table(found.table)) + '\n')
  add_sections(workdir, x.name, 'reliability', found.sections)
  if 'temperature' in found.facts:
    scaled = found.facts['temperature']
    keep_temperature(workdir, step, scaled)
    log.info('temperature %.3f, fitted on eval.%s', scaled['value'], scaled['fitted_on'])


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
