"""Mode `drift`: whether new examples differ from those that a run was evaluated on."""

import dataclasses
import logging
import pathlib
import sys
import time
from typing import Any

from bmx.core import errors
from bmx.core.data import Data
from bmx.core.ranges import check_number
from bmx.core.terminal import printable
from bmx.feedback import columns, pictures
from bmx.feedback.drift import Column, compare
from bmx.modes import Request
from bmx.modes.feedback import need_input, old_entry, window_data
from bmx.modes.reports import checked_page, own_page
from bmx.modes.start import need_run, open_run
from bmx.runtime.files import replacing, write_json
from bmx.runtime.storage import Place
from bmx.runtime.writer import table
from bmx.train.evaluate import join, predictions
from bmx.train.run import restored

log = logging.getLogger('bmx')


def run(request: Request) -> int:
  """Prints a table, and writes a page (--output, or WORKDIR/drift/INPUT.html) and its numbers."""
  need_run('drift', request)
  need_input('drift', request)
  words = request.config.feedback
  check_number('feedback.level', words.level, above=0, below=1)
  check_number('feedback.sample', words.sample, at_least=2)
  page = checked_page(request.output)
  x, workdir, stored = open_run(request, labels=False)
  entry = old_entry(x.config)
  sides: dict[str, Data] = {
    'reference': x.evals[entry].data,
    'window': window_data(x, stored, request.input),
  }
  state, step = restored(x, workdir, request.step)
  task, embedding = columns.with_hidden(x.task)
  found: dict[str, list[Column]] = {}
  for name, data in sides.items():
    chosen = columns.sample(data, words.sample, x.seed)
    rows = join(list(predictions(chosen, task, x.layout, state)))
    found[name] = [*columns.inputs(chosen, rows), *columns.outputs(rows, x.data.metadata)]
  findings = compare(found['reference'], found['window'], words.level, x.seed)
  facts = _facts(request, workdir, step, entry, sides, found)
  if any(c.kind == 'vector' for c in found['window']):
    facts['embedding'] = 'pixels' if 'image' in x.data.spec else embedding
  page = page or own_page(workdir / 'drift', pathlib.Path(request.input).stem or 'input')
  title = f'Drift of {x.name}'
  with replacing(page) as file:
    file.write(pictures.page(title, facts, findings, found['reference'], found['window']))
  columns_found = [dataclasses.asdict(f) for f in findings]
  drifted = [f.name for f in findings if f.drifted]
  write_json(page.with_suffix('.json'), {**facts, 'drifted': drifted, 'columns': columns_found})
  sys.stdout.write(printable(table(pictures.rows_of(findings))) + '\n')
  log.info('%d of %d columns drifted%s; page %s', len(drifted), len(findings),
           ': ' + ', '.join(drifted) if drifted else '', page)  # fmt: skip
  return errors.DONE


def _facts(
  request: Request,
  workdir: Place,
  step: int,
  entry: str,
  sides: dict[str, Data],
  found: dict[str, list[Column]],
) -> dict[str, Any]:
  """Facts of a comparison, for people and for programs."""
  rows = {name: f'{len(found[name][0].values):,} of {data.size:,} examples'
          for name, data in sides.items()}  # fmt: skip
  return {
    'run': str(workdir),
    'step': step,
    'reference': f'eval.{entry}, {rows["reference"]}',
    'window': f'{request.input}, {rows["window"]}',
    'level': request.config.feedback.level,
    'correction': 'Holm, over all columns',
    'written': time.strftime('%Y-%m-%d %H:%M:%S'),
  }
