"""Mode `merge`: the plain weights of a run, adapters added, as a folder of Hugging Face."""

import logging
import os
from typing import Any

from bmx.adapt import hub, preprocessor, restore
from bmx.core import errors, tree
from bmx.core.experiment import Experiment
from bmx.data.text.tokenizer import Subwords
from bmx.modes import Request
from bmx.modes.start import need_run, open_run
from bmx.runtime.storage import place
from bmx.runtime.writer import table
from bmx.train.datafile import DataFile
from bmx.train.state import state_spec

log = logging.getLogger('bmx')


def run(request: Request) -> int:
  """Writes the merged weights of --workdir to --output; prints parameters and bytes."""
  need_run('merge', request)
  if not request.output:
    raise errors.InputError('--output: expected a folder for the merged weights; --output=DIR')
  x, workdir, stored = open_run(request, read=False, evals=False)
  merge(x, workdir, request.output, request.step, stored)
  log.info('merged weights in %s', request.output)
  return errors.DONE


def merge(
  experiment: Experiment,
  workdir: str | os.PathLike[str],
  output: str | os.PathLike[str],
  step: str = 'latest',
  stored: DataFile | None = None,
) -> None:
  """Writes the plain weights of a run as a folder that transformers and `init.path` read.

  Args:
    experiment: the run's experiment.
    workdir: run directory.
    output: folder, missing or empty.
    step: 'latest', 'best' or a step.
    stored: what the run keeps of its data: tokenizer and class names.

  Raises:
    InputError: a model without an architecture of transformers; a folder that is not empty.
  """
  x, spec = experiment, state_spec(experiment)
  params = restore.merged_params(x.task, spec, str(place(workdir)), step, x.layout)
  averaged = {k: v for k, v in spec.variables.items() if k in x.task.averaged}
  own = tree.nested(restore.statistics(str(place(workdir)), averaged, step=step))
  known = stored.state if stored is not None else {}
  text = known.get('tokenizer')
  coder = Subwords(text, names=known.get('special_tokens')) if text else ''
  labels = [str(name) for name in known.get('class_names', ())]
  hub.save(
    output,
    x.task.model,
    params,
    coder,
    labels=labels,
    statistics=own.get(hub.STATISTICS),
    processor=preprocessor.content(stored.metadata, stored.spec) if stored else None,
  )
  log.info('%s', table(_rows(x, spec, params)))


def _rows(x: Experiment, spec: Any, params: Any) -> list[tuple[str, ...]]:
  """The parts of the run before, and the plain weights after: parameters and bytes."""
  parts = {'trained': spec.abstract.params}
  parts |= {name: spec.abstract.collections[name] for name in x.task.constant}
  row = lambda name, part: (name, f'{tree.count(part):,}', f'{tree.nbytes(part):,}')
  rows = [row(f'before: {name}', part) for name, part in parts.items()]
  return [('weights', 'parameters', 'bytes'), *rows, row('after: merged', params)]
