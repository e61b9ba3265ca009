"""Mode `card`: the model card of a run, from its files and its predictions of `eval` entries."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bmx.core import errors
from bmx.core.errors import InputError
from bmx.core.experiment import Eval, Experiment
from bmx.core.types import HostBatch
from bmx.export.card import check_license, date
from bmx.modes import Request
from bmx.modes.start import need_run, open_run
from bmx.runtime import energy, markdown
from bmx.runtime.files import read_json, replacing
from bmx.runtime.markdown import Part
from bmx.runtime.report import starts
from bmx.runtime.report.layout import duration
from bmx.runtime.storage import Place, place
from bmx.runtime.writer import brief
from bmx.tasks.scores import interval, scores, wilson
from bmx.train import datafile
from bmx.train.datafile import DataFile
from bmx.train.evaluate import join, predictions
from bmx.train.run import restored
from bmx.train.rundir import read_config
from bmx.train.state import TrainState

log = logging.getLogger('bmx')
UNKNOWN = 'not recorded'
CLASSES = 24  # names that are listed
LEVEL = 0.05  # intervals hold 1 - LEVEL
HIDDEN = ('secret', 'fingerprint')  # words of privacy that a card leaves out


class Facts(NamedTuple):
  """What the files of a run hold; {} for a file that is missing.

  Attributes:
    stored: config.json.
    data: data.json; None without it.
    summary: summary.json.
    begun: starts of the run.
    reliability: of the newest reliability.STEP.json.
    gate: gate.json.
  """

  stored: Mapping[str, Any]
  data: DataFile | None
  summary: Mapping[str, Any]
  begun: list[starts.Start]
  reliability: Mapping[str, Any]
  gate: Mapping[str, Any]


def run(request: Request) -> int:
  """Writes WORKDIR/card.md and card.html."""
  need_run('card', request)
  terms = check_license(request.config.export.license)
  facts, workdir, results = _measured(request)
  name = str(facts.stored.get('name', request.name))
  parts = card(facts, results, terms)
  front = {**({'license': terms} if terms else {}), 'library_name': 'jax', 'tags': '[bmx]'}
  for suffix, text in (('md', markdown.markdown(name, front, parts)),
                       ('html', markdown.page(name, parts))):  # fmt: skip
    with replacing(workdir / f'card.{suffix}') as file:
      file.write(text)
  log.info('%s, %s', workdir / 'card.md', workdir / 'card.html')
  return errors.DONE


def _measured(request: Request) -> tuple[Facts, Place, Part]:
  """Reads the files of a run, and measures its results where the data of its `eval` are there."""
  workdir = place(request.workdir)
  try:
    x, _, _ = open_run(request)
  except InputError as error:
    facts = facts_of(workdir)
    log.warning('results without intervals: %s', error)
    return facts, workdir, recorded(facts.summary, str(error))
  state, step = restored(x, workdir, request.step)
  return facts_of(workdir), workdir, measured(x, state, step)


def facts_of(workdir: Place) -> Facts:
  """Reads the files of a run."""
  known = {p.name: p for p in workdir.glob('*.json')}
  steps = [int(n.split('.')[1]) for n in known if n.startswith('reliability.')]
  newest = f'reliability.{max(steps)}.json' if steps else ''
  read = lambda name: read_json(known[name]) if name in known else {}
  return Facts(read_config(workdir), datafile.read(workdir), read('summary.json'),
               starts.read(workdir), read(newest), read('gate.json'))  # fmt: skip


def measured(x: Experiment, state: TrainState, step: int) -> Part:
  """Returns the results of every `eval` entry with their intervals.

  Args:
    x: the experiment.
    state: of the run.
    step: of `state`.
  """
  rows = []
  for name, entry in x.evals.items():
    if isinstance(entry, Eval):
      found = join(list(predictions(entry.data, x.task, x.layout, state)))
      size = f'{entry.data.size:,}'
      source = str(entry.data.metadata.get('source', UNKNOWN))
      rows += [(name, source, size, *line) for line in _scored(found, x)]
  said = f'Of step {step:,}; one run: the spread over seeds is {UNKNOWN}.'
  head = ('data', 'source', 'examples', 'metric', 'value', 'interval (95 %)', 'by')
  return Part('Results', said if rows else UNKNOWN, head, rows)


def _scored(rows: HostBatch, x: Experiment) -> Iterator[tuple[str, str, str, str]]:
  """Yields metric, value, interval and the name of the interval."""
  if x.task.labels_for_metrics not in (('label',), ('y',)):
    yield 'see the recorded metrics', '', UNKNOWN, ''
    return
  values = scores(rows)
  if 'label' in rows:
    low, high = wilson(int(values.sum()), len(values))
    yield 'accuracy', f'{values.mean():.4f}', f'{low:.4f} to {high:.4f}', 'Wilson'
    return
  low, high = interval(-values, LEVEL, x.seed)
  yield ('mean absolute error', brief(float(-values.mean())), f'{brief(low)} to {brief(high)}',
         'bootstrap, percentiles')  # fmt: skip


def recorded(summary: Mapping[str, Any], reason: str) -> Part:
  """Returns the results that a run logged, without intervals.

  Args:
    summary: summary.json.
    reason: why nothing was measured.
  """
  metrics = summary.get('metrics', {})
  rows = [(k, brief(v), UNKNOWN) for k, v in metrics.items() if k.startswith('eval/')]
  return Part('Results', f'Not measured anew: {reason}', ('metric', 'value', 'interval'), rows)


def card(facts: Facts, results: Part, terms: str) -> list[Part]:
  """Returns the parts of a card.

  Args:
    facts: of the run.
    results: see `measured`.
    terms: license of the weights; '' if none was given.
  """
  config = facts.stored['config']
  parts = [
    Part('', str(config.get('description', ''))),
    _model(facts, terms),
    _data(facts),
    _training(facts),
    results,
    _logged(facts.summary),
    _slices(facts.reliability),
    _gate(facts.gate),
    _privacy(config, facts.summary),
    _energy(facts.summary),
    _limits(facts),
  ]
  return [p for p in parts if p.text or p.rows]


def _table(title: str, rows: Mapping[str, Any], text: str = '') -> Part:
  known = lambda v: UNKNOWN if v in (None, '', (), []) else str(v)
  return Part(title, text, ('', ''), [(k, known(v)) for k, v in rows.items()])


def _model(facts: Facts, terms: str) -> Part:
  task = facts.stored['config'].get('task', {})
  model = task.get('model', {}) if isinstance(task, Mapping) else {}
  names = [str(n) for n in (facts.data.state.get('class_names', ()) if facts.data else ())]
  more = f', ... ({len(names)})' if len(names) > CLASSES else ''
  count = facts.summary.get('parameters')
  return _table('Model', {
    'model': model.get('call'),
    'task': task.get('call'),
    'parameters': f'{count:,}' if count else None,
    'classes': ', '.join(names[:CLASSES]) + more,
    'license of the weights': terms,
    'started from': facts.stored['config'].get('init', {}).get('path') or 'random weights',
  })  # fmt: skip


def _data(facts: Facts) -> Part:
  data = facts.data
  if data is None:
    return Part('Training data', UNKNOWN)
  known = data.metadata
  return _table('Training data', {
    'source': known.get('source'),
    'license': known.get('license'),
    'examples': f'{data.size:,}',
    'SHA-256 of the examples': data.digest,
    'inputs': ', '.join(f'{k} {list(v.shape)}' for k, v in data.spec.items() if k != 'weights'),
    'how it was collected': known.get('collected'),
  })  # fmt: skip


def _training(facts: Facts) -> Part:
  config, summary = facts.stored['config'], facts.summary
  begun = facts.begun
  part = lambda word: config.get(word, {}).get('call') if config.get(word) else None
  return _table('Training', {
    'steps': f'{summary["steps"]:,}' if 'steps' in summary else None,
    'batch size': config.get('batch_size'),
    'seed': config.get('seed'),
    'optimizer': part('optimizer'),
    'schedule': part('schedule'),
    'device': summary.get('device'),
    'wall time': duration(summary['seconds']) if 'seconds' in summary else None,
    'begun': date(begun[0].began) if begun else None,
    'versions': markdown.versions(facts.stored.get('versions', {})),
    'commit': facts.stored.get('git_commit'),
    'SHA-256 of the final state': summary.get('state_digest'),
  })  # fmt: skip


def _logged(summary: Mapping[str, Any]) -> Part:
  found = {k: brief(v) for k, v in summary.get('metrics', {}).items() if k.startswith('eval/')}
  return Part('Recorded metrics', '', ('at the end of training', ''), list(found.items()))


def _slices(reliability: Mapping[str, Any]) -> Part:
  groups = reliability.get('groups', [])
  rows = [
    (g['name'], f'{g["rows"]:,}', f'{g["accuracy"]:.4f}', f'{g["low"]:.4f} to {g["high"]:.4f}',
     f'{g["calibration_error"]:.4f}')
    for g in groups
  ]  # fmt: skip
  head = ('data', 'examples', 'accuracy', 'interval (Wilson, 95 %)', 'calibration error')
  said = f'Step {reliability["step"]:,}.' if groups else f'{UNKNOWN}; bmx eval RUN --slices=COLUMN'
  return Part('Slices and calibration', said, head, rows)


def _gate(gate: Mapping[str, Any]) -> Part:
  if not gate:
    return Part('')
  verdict = 'accepted' if gate['accepted'] else 'refused'
  return Part('Comparison', f'{verdict} in place of {gate["champion"]}, {gate["written"]}')


def _privacy(config: Mapping[str, Any], summary: Mapping[str, Any]) -> Part:
  words = config.get('privacy')
  if not words:
    return Part('Privacy', 'Trained without differential privacy: weights may reveal examples.')
  own = str(words.get('call', '')).startswith('bmx.privacy')
  spent = summary.get('metrics', {}).get('epsilon')
  shown = {k: v for k, v in words.items() if k not in HIDDEN and v not in (0, '', 0.0)}
  batch = config.get('batch_size')
  return _table('Privacy', {
    'ε spent': f'{spent:.4g}' if spent is not None else None,
    'how examples were sampled': f'Poisson, {batch} expected in a batch' if own else None,
    **{f'privacy.{k}': v for k, v in shown.items()},
  })  # fmt: skip


def _energy(summary: Mapping[str, Any]) -> Part:
  used = summary.get('energy')
  return Part('Energy', energy.text(used) if used and used.get('kwh') is not None else UNKNOWN)


def _limits(facts: Facts) -> Part:
  """Limits that the files show; intended use is for people to write."""
  groups = [g for g in facts.reliability.get('groups', []) if '=' in g['name']]
  worst = min(groups, key=lambda g: g['accuracy'], default=None)
  config = facts.stored['config']
  tested = 'test' in config.get('eval', {})
  chosen = [config.get(word, {}).get('metric') for word in ('stop', 'keep')]
  selecting = dict.fromkeys(metric for metric in chosen if metric)
  return _table('Limits', {
    'lowest accuracy of a slice': f'{worst["accuracy"]:.4f}, {worst["name"]}' if worst else None,
    'metrics that selected the checkpoint': ', '.join(selecting) or 'none',
    'measured on a test set': 'yes, the entry test' if tested else 'no',
    'intended use': None,
    'known biases of the data': None,
  })  # fmt: skip
