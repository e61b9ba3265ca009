"""A page that compares runs: their curves in the same charts, differing words, results."""

import dataclasses
import html
from collections.abc import Mapping, Sequence
from typing import Any

from bmx.runtime.report import curves, layout, plots
from bmx.runtime.writer import brief, table

ABSENT = '(absent)'
GENERATOR = '<meta name="generator" content="bmx compare">'
USED = {'joules_per_token': 'J/token', 'joules_per_example': 'J/example', 'kwh': 'kWh',
        'usd': 'USD', 'kg_co2e': 'kg CO2e'}  # fmt: skip
MAX_TEXT = 60  # characters of a value in the terminal


@dataclasses.dataclass(frozen=True)
class Compared:
  """A run to compare.

  Attributes:
    name: unique among the runs, for people.
    lines: of its metrics.jsonl.
    config: of its config.json.
    words: leaves of the config by dotted name.
    summary: of its summary.json; {} of a run that has not finished.
  """

  name: str
  lines: Sequence[Mapping[str, Any]]
  config: Mapping[str, Any]
  words: Mapping[str, Any]
  summary: Mapping[str, Any]


def differing(runs: Sequence[Compared]) -> list[tuple[str, ...]]:
  """Returns (word, value of each run as text) for each word of the configs that differs."""
  names = sorted({word for run in runs for word in run.words})
  rows = [(word, *(str(run.words.get(word, ABSENT)) for run in runs)) for word in names]
  return [row for row in rows if len(set(row[1:])) > 1]


def results(runs: Sequence[Compared]) -> tuple[list[str], list[tuple[str, ...]]]:
  """Returns the head and rows of a table: a run each; its metrics, best values, steps, time."""
  found = [curves.results(run.lines, run.config) for run in runs]
  metrics = [m for m in dict.fromkeys(k for f in found for k in f) if _matters(m)]
  bests = {m for m in metrics for f in found if m in f and _has_better(f[m])}
  head = ['run', *(x for m in metrics for x in ([m, 'best'] if m in bests else [m])), 'steps',
          'seconds', 'parameters']  # fmt: skip
  used = {k: title for k, title in USED.items() if any(_energy(run).get(k) for run in runs)}
  head += used.values()
  rows = []
  for run, values in zip(runs, found, strict=True):
    row = [run.name]
    for m in metrics:
      value = values.get(m)
      row.append(brief(value.newest) if value else '')
      if m in bests:
        row.append(brief(value.best) if value and value.best is not None else '')
    last = max((line['step'] for line in run.lines), default=0)
    row += [f'{last:,}', *(_text(run.summary.get(k)) for k in ('seconds', 'parameters'))]
    row += [_text(_energy(run).get(k)) for k in used]
    rows.append(tuple(row))
  return head, rows


def _matters(metric: str) -> bool:
  return metric.startswith('eval/') or metric == 'loss'


def _has_better(result: curves.Result) -> bool:
  return result.best is not None and result.best != result.newest


def _energy(run: Compared) -> Mapping[str, Any]:
  """Energy of a run that has finished; {} if it is unknown."""
  facts = run.summary.get('energy')
  return facts if isinstance(facts, Mapping) else {}


def _text(value: Any) -> str:
  return layout.number(value) if type(value) in (int, float) else ''


def text(runs: Sequence[Compared]) -> str:
  """Returns both tables for a terminal."""
  words = [tuple(x[:MAX_TEXT] for x in row) for row in differing(runs)]
  head, rows = results(runs)
  kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
  parts = [table([tuple(row[i] for i in kept) for row in (head, *rows)])]
  if words:
    parts.append(table([('word', *(run.name for run in runs)), *words]))
  return '\n\n'.join(parts) + '\n'


def page(runs: Sequence[Compared]) -> str:
  """Returns the page as HTML.

  A curve is named by its run; those of an evaluation have charts of their own, so that a chart
  holds one curve for each run.
  """
  charts: dict[str, dict[str, curves.Curve]] = {}
  for run in runs:
    for metric, split in curves.charts(run.lines).items():
      for name, curve in split.items():
        title = metric if name == 'train' else f'{metric} ({name})'
        charts.setdefault(title, {})[run.name] = curve
  look = plots.looks([run.name for run in runs])
  shown, notes = layout.drawn(charts, look=look)
  head, rows = results(runs)
  words = differing(runs)
  table = (
    layout.grid(('word', *(run.name for run in runs)), words)
    if words
    else '<p>The configs are equal.</p>'
  )
  body = f"""<h1>{len(runs)} runs</h1>
<div class="grid"><div class="card wide"><h2>Results</h2>{layout.grid(head, rows)}</div>
<div class="card wide"><h2>Words that differ</h2>{table}</div></div>
{plots.controls() if shown else ''}
<div class="grid">{''.join(card for card, _ in shown)}</div>
{''.join(f'<p class="soft">{html.escape(note)}</p>' for note in notes)}"""
  made = layout.page('Comparison of runs', body, [figure for _, figure in shown])
  return made.replace('<title>', f'{GENERATOR}<title>', 1)
