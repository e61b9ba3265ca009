"""Reliability of a classifier on its `eval` entries: by slice, calibration, abstention."""

import html
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from bmx.core.errors import InputError, did_you_mean
from bmx.core.experiment import Eval, Experiment
from bmx.core.ranges import check_number
from bmx.core.types import HostBatch
from bmx.modes.feedback import slice_columns
from bmx.runtime.report import Section, layout
from bmx.tasks import reliability
from bmx.tasks.reliability import Judged
from bmx.tasks.scores import slices_of, wilson
from bmx.train.evaluate import join, predictions
from bmx.train.state import TrainState

ALL = 'all'  # without slices
HEAD = ('data', 'rows', 'accuracy', 'interval', 'confidence', 'calibration error')
COVERAGES = (0.5, 0.8, 0.9)  # of the curve of abstention, in numbers


class Group(NamedTuple):
  """Predictions of a split, or of one slice of it.

  Attributes:
    name: of the entry, or 'COLUMN=VALUE (ENTRY)'.
    rows: examples.
    accuracy: share of them that are right.
    low: lower end of its Wilson interval of confidence 95 %.
    high: its upper end.
    confidence: mean.
    calibration_error: expected calibration error.
  """

  name: str
  rows: int
  accuracy: float
  low: float
  high: float
  confidence: float
  calibration_error: float


class Found(NamedTuple):
  """Reliability of a run.

  Attributes:
    groups: of every entry and slice.
    facts: as JSON holds them: groups, temperature, accuracy at some coverages.
    sections: of the report.
    table: head and rows, for people.
  """

  groups: list[Group]
  facts: dict[str, Any]
  sections: list[Section]
  table: list[tuple[str, ...]]


def measure(x: Experiment, state: TrainState, step: int, words: Any) -> Found:
  """Measures the reliability of the predictions of every `eval` entry.

  Args:
    x: the experiment.
    state: of the run.
    step: of `state`.
    words: `reliability` of the config.

  Raises:
    InputError: a task that does not classify; an unknown column; a temperature without an entry
      besides test.
  """
  check_number('reliability.bins', words.bins, at_least=1)
  if words.entry and not words.temperature:
    raise InputError(f'reliability.entry={words.entry}: expected reliability.temperature=True too')
  names = tuple(name for name in words.slices if name != ALL)
  splits = {k: v for k, v in x.evals.items() if isinstance(v, Eval)}
  fitted_on = _fitting_entry(words, list(splits)) if words.temperature else ''
  rows = {k: join(list(predictions(v.data, x.task, x.layout, state))) for k, v in splits.items()}
  found = {k: _judged(k, v) for k, v in rows.items()}
  groups = [g for k in splits for g in _groups(k, splits[k], rows[k], found[k], names, words)]
  facts: dict[str, Any] = {'groups': [g._asdict() for g in groups], 'bins': words.bins,
                           'interval': 'Wilson, 95 %'}  # fmt: skip
  facts['accuracy_of_most_confident'] = {k: _coverages(v) for k, v in found.items()}
  head, *lines = table = table_of(groups)
  said = '<p class="soft">Intervals: Wilson, 95 %.</p>'
  sections = [Section(f'Reliability by slice (step {step:,})', layout.grid(head, lines) + said)]
  for name, one in found.items():
    sections += [Section(f'{s.title} ({name}, step {step:,})', s.html)
                 for s in reliability.sections(one, words.bins)]  # fmt: skip
  if fitted_on:
    facts['temperature'] = scaled = _temperature(found, fitted_on, words.bins)
    sections.append(_temperature_section(scaled))
  return Found(groups, facts, sections, table)


def _fitting_entry(words: Any, known: list[str]) -> str:
  """The entry that a temperature is fitted on; never the test set."""
  entry = words.entry or next((name for name in known if name != 'test'), '')
  if entry == 'test' or not entry:
    raise InputError(
      'reliability.temperature=True: expected an entry of `eval` besides test to fit on, since the '
      'test set must choose nothing; add one with --config.eval.valid...'
    )
  if entry not in known:
    raise InputError(f'reliability.entry={entry}: expected an entry of `eval` with examples'
                     f'{did_you_mean(entry, known)}')  # fmt: skip
  return entry


def _judged(name: str, rows: HostBatch) -> Judged:
  found = reliability.judged(rows)
  if found is None:
    raise InputError(
      f'reliability: expected a task that predicts one class for each example; eval.{name} has '
      f'{", ".join(rows)}'
    )
  return found


def _groups(
  entry: str, split: Eval, rows: HostBatch, found: Judged, names: tuple[str, ...], words: Any
) -> Iterator[Group]:
  yield group_of(entry, found, words.bins)
  for column in slice_columns(split.data, rows, names, 'reliability.slices'):
    parts = slices_of(column.values, column.values, kind=column.kind)[0]
    for value in np.unique(parts):
      there = parts == value
      one = Judged(found.probability[there], found.label[there])
      yield group_of(f'{column.name}={value} ({entry})', one, words.bins)


def group_of(name: str, found: Judged, bins: int) -> Group:
  """Returns accuracy and calibration of some predictions."""
  correct, confidence = found.correct, found.confidence
  low, high = wilson(int(correct.sum()), len(correct))
  error = reliability.calibration_error(confidence, correct, bins)
  means = float(correct.mean()), low, high, float(confidence.mean())
  return Group(name, len(correct), *means, error)


def table_of(groups: list[Group]) -> list[tuple[str, ...]]:
  """Returns a head and a row of texts for each group."""
  return [HEAD, *(
    (g.name, f'{g.rows:,}', f'{g.accuracy:.4f}', f'[{g.low:.4f}, {g.high:.4f}]',
     f'{g.confidence:.4f}', f'{g.calibration_error:.4f}')
    for g in groups
  )]  # fmt: skip


def _coverages(found: Judged) -> dict[str, float]:
  """Accuracy of the most confident shares of the examples."""
  share, accuracy = reliability.abstention(found.confidence, found.correct)
  return {str(c): float(accuracy[np.searchsorted(share, c - 1e-9)]) for c in COVERAGES}


def _temperature(found: Mapping[str, Judged], entry: str, bins: int) -> dict[str, Any]:
  """Fits a temperature on one entry, and measures every entry with and without it."""
  value = reliability.fit_temperature(found[entry])

  def numbers(one: Judged) -> dict[str, float]:
    error = reliability.calibration_error(one.confidence, one.correct, bins)
    return {'log_loss': reliability.log_loss(one), 'calibration_error': error}

  entries = {
    k: {'before': numbers(v), 'after': numbers(reliability.at_temperature(v, value))}
    for k, v in found.items()
  }
  return {'value': value, 'fitted_on': entry, 'entries': entries}


def _temperature_section(scaled: Mapping[str, Any]) -> Section:
  rows = [
    (name, *(f'{one[when][key]:.4f}' for key in ('log_loss', 'calibration_error')
             for when in ('before', 'after')))
    for name, one in scaled['entries'].items()
  ]  # fmt: skip
  head = ('data', 'log loss', 'at temperature', 'calibration error', 'at temperature')
  said = f'<p>{scaled["value"]:.3f}, fitted on {html.escape(scaled["fitted_on"])}.</p>'
  return Section('Temperature', said + layout.grid(head, rows))
