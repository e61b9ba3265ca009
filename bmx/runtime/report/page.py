"""The page report.html of one run, from the files of its directory."""

import html
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bmx.runtime import energy
from bmx.runtime.files import read_json, replacing, tolerated
from bmx.runtime.report import curves, layout, plots, starts
from bmx.runtime.report.layout import day, duration, facts, grid, named, number
from bmx.runtime.report.sections import DATA, stored_sections
from bmx.runtime.storage import Place
from bmx.runtime.writer import brief, read_metrics

MAX_BYTES = 100_000  # of the config that is shown
MAX_STARTS = 20  # rows of the table of starts
MAX_SHARE = 0.05  # of a run's time that writing reports may take


class Reports:
  """Decides when a report is due while a run continues: not too often for what it costs.

  Args:
    now: () -> the time in seconds.
  """

  def __init__(self, now: Callable[[], float] = time.monotonic):
    self.now, self.cost = now, 0.0
    self.written = -float('inf')

  def due(self, seconds: float = 0.0) -> bool:
    """Whether `seconds`, and enough for `MAX_SHARE`, have passed since the last report."""
    return self.now() - self.written >= max(seconds, self.cost / MAX_SHARE)

  def write(self, workdir: Place, name: str, summary: Mapping[str, Any]) -> None:
    """Writes the report, and the time that it takes to the next decision."""
    began = self.now()
    write(workdir, name, summary)
    self.written = self.now()
    self.cost = self.written - began


def write(workdir: Place, name: str, summary: Mapping[str, Any]) -> None:
  """Writes the report of a run directory from its files.

  It shows what can be read of metrics.jsonl, config.json, starts.json and sections.json. A report
  that cannot be written is logged.

  Args:
    workdir: the run directory.
    name: of the run, the title.
    summary: 'metrics', 'status' and facts of the run.
  """
  lines = read_metrics(workdir / 'metrics.jsonl')
  stored = _config(workdir)
  given = stored.get('config')
  config = given if isinstance(given, dict) else {}
  begun = starts.read(workdir)
  results = curves.results(lines, config)
  markers = [m for start in begun[1:] for m in _markers(start)]
  shown, notes = layout.drawn(curves.charts(lines), markers)
  kept = sorted(stored_sections(workdir).items(), key=lambda item: item[0] == DATA)
  sections = [s for _, some in kept for s in some]
  cards = layout.cards(sections)
  if markers and shown:
    notes += ['Dotted lines: the run was started again. Dashed lines: with another schedule.']
  body = f"""<h1>{html.escape(name)}</h1>
<p class="soft">{html.escape(str(config.get('description', '')))}</p>
<p class="soft">{_state(summary, begun)}</p>
<div class="tiles">{_tiles(results, config, summary, begun)}</div>
{plots.controls() if shown else ''}
<div class="grid">{''.join(card for card, _ in shown)}</div>
{''.join(f'<p class="soft">{html.escape(note)}</p>' for note in notes)}
<div class="grid">{cards}</div>
<div class="grid"><div class="card"><h2>Results</h2>{_results(results, summary)}</div>
<div class="card"><h2>Run</h2>{facts(_facts(summary, begun))}{_commands(begun)}</div></div>
{_starts(begun)}
<details><summary>Config, versions, data</summary>
<pre>{html.escape(_text(stored))}</pre></details>"""
  path = workdir / 'report.html'
  with tolerated(path), replacing(path) as file:
    file.write(layout.page(name, body, [made for _, made in shown]))


def _config(workdir: Place) -> dict[str, Any]:
  try:
    stored = read_json(workdir / 'config.json')
    return stored if isinstance(stored, dict) else {'config.json': stored}
  except (OSError, ValueError) as error:
    return {'config.json cannot be read': str(error)}


def _text(stored: Any) -> str:
  try:
    text = json.dumps(stored, indent=1)
  except (ValueError, RecursionError) as error:
    return f'config.json cannot be shown: {error}'
  return text if len(text) <= MAX_BYTES else f'{text[:MAX_BYTES]} ... the rest is in config.json'


def _markers(start: starts.Start) -> list[plots.Marker]:
  """Lines of a start that continued a run."""
  again = [plots.Marker(start.step, 'restart')]
  return again + ([plots.Marker(start.step, 'schedule')] if start.rates else [])


def _state(summary: Mapping[str, Any], begun: Sequence[starts.Start]) -> str:
  """Status, dates and time of a run, as HTML."""
  parts = [str(summary.get('status') or 'finished')]
  if begun:
    first, last = day(begun[0].began), day(begun[-1].ended)
    parts += [f'begun {first}' if first == last else f'begun {first}, last written {last}']
  return html.escape(' · '.join(parts))


def wall(begun: Sequence[starts.Start]) -> float:
  """Seconds in which a run was known to run, over all its starts."""
  return sum(max(0.0, s.ended - s.began) for s in begun)


def _tiles(
  results: Mapping[str, curves.Result],
  config: Mapping[str, Any],
  summary: Mapping[str, Any],
  begun: Sequence[starts.Start],
) -> str:
  """The headline result with its best value, and a few numbers of the run."""
  tiles = []
  top = curves.headline(results, config)
  if top:
    found = results[top]
    best = f'best {brief(found.best)} at step {found.step:,}' if found.best is not None else top
    tiles.append(('first', named(top), brief(found.newest), best))
  others = [k for k in results if k.split('/')[-1] == top.split('/')[-1] and k != top]
  tiles += [('', named(k), brief(results[k].newest), '') for k in others[:2]]
  if 'loss' in results and 'loss' not in (top, *others[:2]):
    tiles.append(('', named('loss'), brief(results['loss'].newest), ''))
  if 'steps' in summary:
    tiles.append(('', 'steps', f'{summary["steps"]:,}', ''))
  if begun:
    tiles.append(('', 'wall time', duration(summary.get('seconds', wall(begun))), ''))
  return ''.join(
    f'<div class="tile {kind}"><span>{html.escape(label)}</span><b>{html.escape(value)}</b>'
    f'<span>{html.escape(note)}</span></div>'
    for kind, label, value, note in tiles
  )


def _results(results: Mapping[str, curves.Result], summary: Mapping[str, Any]) -> str:
  """Newest and best value of each metric; those of the summary without lines of it."""
  rows = [
    (k, brief(r.newest), '' if r.best is None else brief(r.best), f'{r.step:,}' if r.step else '')
    for k, r in results.items()
    if k not in curves.RATES
  ]
  rows += [(k, number(v), '', '') for k, v in summary['metrics'].items() if k not in results]
  return grid(('metric', 'newest', 'best', 'at step'), rows)


def _facts(summary: Mapping[str, Any], begun: Sequence[starts.Start]) -> dict[str, Any]:
  """Facts of a run for people, durations first."""
  rest = {k: v for k, v in summary.items() if k not in ('metrics', 'status') and v is not None}
  made: dict[str, Any] = {}
  if 'seconds' in rest or begun:
    made['wall time'] = duration(rest.pop('seconds', wall(begun)))
  parts, hooks = rest.pop('seconds_by_part', {}), rest.pop('hook_seconds', None)
  rest.pop('compile_seconds', None)  # of the parts
  if parts:
    made['of which'] = ', '.join(f'{k} {duration(v)}' for k, v in parts.items() if v >= 0.05)
  if isinstance(hooks, Mapping):
    spent = {k: v for k, v in hooks.items() if v >= 0.05}
    made['hooks of the last start'] = ', '.join(f'{k} {duration(v)}' for k, v in spent.items())
  used = rest.pop('energy', None)
  if isinstance(used, Mapping) and 'source' in used:
    made['energy'] = energy.text(used)
    made['forecast'] = energy.achieved(used, summary.get('seconds', 0.0))
  return {k: v for k, v in (made | rest).items() if v != ''}


def _commands(begun: Sequence[starts.Start]) -> str:
  """The newest command, as HTML."""
  return f'<h3>Command</h3><pre>{html.escape(begun[-1].command)}</pre>' if begun else ''


def _starts(begun: Sequence[starts.Start]) -> str:
  """A table of the starts of a run that was started more than once."""
  if len(begun) < 2:
    return ''
  rows = [
    (day(s.began), f'{s.step:,}', f'{s.reached:,}', duration(s.ended - s.began), _changed(s))
    for s in begun[-MAX_STARTS:]
  ]
  title = f'Starts (the last {MAX_STARTS} of {len(begun)})' if len(begun) > MAX_STARTS else 'Starts'
  table = grid(('begun', 'from step', 'to step', 'time', 'changes'), rows)
  return f'<div class="grid"><div class="card wide"><h2>{title}</h2>{table}</div></div>'


def _changed(start: starts.Start) -> str:
  lines = [': '.join((change[0], ' → '.join(change[1:]))) for change in start.changes if change]
  if len(start.rates) == 2:
    lines.append(f'learning rate there {start.rates[0]:.3g} → {start.rates[1]:.3g}')
  return '; '.join(lines)
