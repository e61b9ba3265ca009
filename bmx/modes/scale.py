"""Mode `scale`: a power law through runs of several sizes, and the loss of larger ones."""

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bmx.core import errors
from bmx.core.errors import InputError
from bmx.core.paths import local
from bmx.modes import Request
from bmx.modes.compare import names, read
from bmx.plan import powerlaw
from bmx.plan.law_picture import picture
from bmx.runtime.files import replacing
from bmx.runtime.writer import table

METRICS = ('eval/valid/loss', 'eval/test/loss', 'loss')  # the first that all runs have
LARGER = (2, 4, 10)  # times the largest run
NAME = 'scale.json'


def run(request: Request) -> int:
  """Prints the law of the loss and its predictions; writes --output (scale.json) and a plot."""
  folders = [local(name) for name in request.runs]
  if len(folders) <= powerlaw.PARAMETERS:
    raise InputError(
      f'scale: expected at least {powerlaw.PARAMETERS + 1} run directories of different sizes; '
      'bmx scale RUN RUN RUN RUN ...'
    )
  path = local(request.output or NAME)
  if path.suffix != '.json' or not path.parent.is_dir():
    raise InputError(
      f'--output={path}: expected a name that ends with .json, in a folder that exists'
    )
  labels = names(folders)
  summaries = [read(f, label).summary for f, label in zip(folders, labels, strict=True)]
  metric = _metric(folders, summaries)
  sizes = [float(s['parameters']) for s in summaries]
  losses = [float(s['metrics'][metric]) for s in summaries]
  wanted = [max(sizes) * times for times in LARGER]
  law, predictions = powerlaw.predict(sizes, losses, wanted)
  rows = [('run', 'parameters', metric, 'law')]
  rows += [
    (label, f'{n:,.0f}', f'{loss:.4f}', f'{law.at(n):.4f}')
    for n, loss, label in sorted(zip(sizes, losses, labels, strict=True))
  ]
  lines = [table(rows), f'{metric} = {law.floor:.4g} + {law.scale:.4g} '
           f'(parameters / {law.unit:.4g})^-{law.exponent:.3f}']  # fmt: skip
  lines += [
    f'{p.size:,.0f} parameters: {p.loss:.4f}, 90 % of runs in {p.low:.4f} to {p.high:.4f} '
    '(predicted)'
    for p in predictions
  ]
  lines.append('a law holds between its runs, and not far beyond them: train the same tokens for '
               'each parameter, and to the end of the schedule')  # fmt: skip
  points = list(zip(sizes, losses, strict=True))
  record = {
    'metric': metric,
    'runs': dict(zip(labels, map(list, points), strict=True)),
    'law': law._asdict(),
    'predictions': [p._asdict() for p in predictions],
  }
  with replacing(path) as file:
    file.write(json.dumps(record, indent=1) + '\n')
  drawn = path.with_suffix('.svg')
  with replacing(drawn) as file:
    file.write(picture(dict(zip(labels, points, strict=True)), law, predictions, metric))
  files = f'file  {path.absolute()}\nplot  {drawn.absolute()}\n'
  sys.stdout.write('\n'.join(lines) + f'\n{files}')
  return errors.DONE


def _metric(folders: list[pathlib.Path], summaries: Sequence[Mapping[str, Any]]) -> str:
  """Returns the loss that all runs have.

  Raises InputError for a run that has not finished, or without a common loss.
  """
  for folder, summary in zip(folders, summaries, strict=True):
    if 'metrics' not in summary or 'parameters' not in summary:
      raise InputError(f'{folder}: expected a run that has finished, with summary.json')
  found = [m for m in METRICS if all(m in s['metrics'] for s in summaries)]
  if not found:
    raise InputError(f'scale: expected one of {", ".join(METRICS)} in every run')
  return found[0]
