"""report.html: the curves of a run on one page that needs no network and no server.

Hooks and evaluations add to it: a hook returns sections, an evaluation has a method `sections`. The
newest sections of each are kept in WORKDIR/sections.json.
"""

import html
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from bmx.runtime.files import read_json, replacing, tolerated, write_json
from bmx.runtime.writer import TIMES, brief, read_metrics

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 560, 240, 62, 28, 12
COLOURS = ('#2563eb', '#ea580c', '#16a34a', '#9333ea', '#db2777', '#0891b2')
Series = dict[str, list[tuple[float, float]]]

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #888; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1rem; margin: 0 0 .3rem; }
.soft { color: var(--soft); }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 460px), 1fr));
  gap: 1.2rem; margin: 1.5rem 0; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem; }
table { border-collapse: collapse; } td { padding: .1rem 1rem .1rem 0; vertical-align: top; }
td:last-child { font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: currentColor; font-size: 11px; } pre { overflow: auto; max-height: 30rem; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin: 0 .35em 0 0; }
.legend span.item { margin-right: 1.1em; white-space: nowrap; }
"""


class Section(NamedTuple):
  """A part of the report.

  Attributes:
    title: plain text.
    html: a fragment that refers to nothing outside the page. Its author escapes texts of others.
  """

  title: str
  html: str


@runtime_checkable
class HasSections(Protocol):
  """An evaluation with something to show besides its metrics."""

  def sections(self) -> Sequence[Section]:
    """Returns the sections of the newest call."""
    ...


def keep_sections(workdir: pathlib.Path, name: str, given: Any) -> None:
  """Stores what a hook returned: None, a Section or a sequence of them.

  Args:
    workdir: the run directory.
    name: of the hook; its earlier sections are replaced.
    given: nothing is stored, and the earlier sections stay, for None or an empty list.

  Raises TypeError if it is anything else.
  """
  sections = [given] if isinstance(given, Section) else list(given or ())
  if not all(isinstance(s, Section) for s in sections):
    raise TypeError(f'hook {name} returned {given!r}: expected None, Section or a list of Section')
  if sections and jax.process_index() == 0:
    path = workdir / 'sections.json'
    with tolerated(path):
      write_json(path, _sections(workdir) | {name: sections})


def _sections(workdir: pathlib.Path) -> dict[str, list[list[str]]]:
  """Hook -> [title, html] of each of its sections; {} without a whole sections.json."""
  try:
    found = read_json(workdir / 'sections.json')
    return {k: [[str(x) for x in (title, body)] for title, body in v] for k, v in found.items()}
  except (OSError, ValueError, TypeError, AttributeError):
    return {}


def write(workdir: pathlib.Path, name: str, summary: Mapping[str, Any]) -> None:
  """Writes the report of a run directory from its metrics.jsonl, config.json and sections.json.

  It shows what can be read of them. A report that cannot be written is logged.

  Args:
    workdir: the run directory.
    name: of the run, the title.
    summary: 'metrics' and facts of the run.
  """
  lines = read_metrics(workdir / 'metrics.jsonl')
  config = _config(workdir)
  details = html.escape(json.dumps(config, indent=1))
  facts = {k: v for k, v in summary.items() if k != 'metrics' and v is not None}
  sections = [s for some in _sections(workdir).values() for s in some]
  cards = ''.join(
    f'<div class="card"><h2>{html.escape(title)}</h2>{body}</div>' for title, body in sections
  )
  page = f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>{html.escape(name)}</title>
<style>{STYLE}</style></head><body>
<h1>{html.escape(name)}</h1>
<p class="soft">{html.escape(_description(config))}</p>
<div class="grid">{''.join(_card(t, s) for t, s in charts(lines).items())}</div>
<div class="grid"><div class="card"><h2>Final metrics</h2>{_table(summary['metrics'])}</div>
<div class="card"><h2>Run</h2>{_table(facts)}</div></div>
<div class="grid">{cards}</div>
<details><summary>Config, versions, data</summary><pre>{details}</pre>
</details></body></html>
"""
  path = workdir / 'report.html'
  with tolerated(path), replacing(path) as file:
    file.write(page)


def _config(workdir: pathlib.Path) -> Any:
  try:
    return read_json(workdir / 'config.json')
  except (OSError, ValueError) as error:
    return {'config.json cannot be read': str(error)}


def _description(config: Any) -> str:
  try:
    return str(config['config']['description'])
  except (KeyError, TypeError):
    return ''


def charts(lines: list[dict[str, Any]]) -> dict[str, Series]:
  """Returns one chart per metric; training and each evaluation are its series."""
  result: dict[str, Series] = {}
  for line in lines:
    for key, value in line.items():
      if key in ('step', *TIMES) or not isinstance(value, int | float) or not math.isfinite(value):
        continue
      parts = key.split('/')
      series = parts[1] if parts[0] == 'eval' else 'train'
      result.setdefault(parts[-1], {}).setdefault(series, []).append((line['step'], value))
  for key in ('tokens_per_second', 'examples_per_second'):
    points = [(line['step'], line[key]) for line in lines if key in line]
    if points:
      result[key.replace('_', ' ')] = {'train': points}
  order = {'loss': 0, 'accuracy': 1}
  flat = {
    k: v for k, v in result.items() if k != 'skipped' or any(y for p in v.values() for _, y in p)
  }
  return dict(sorted(flat.items(), key=lambda item: order.get(item[0], 2)))


def _card(title: str, series: Series) -> str:
  colours = dict(zip(series, COLOURS * (1 + len(series) // len(COLOURS)), strict=False))
  legend = ''.join(
    f'<span class="item"><span class="key" style="background:{colours[k]}"></span>'
    f'{html.escape(k)} <b>{brief(v[-1][1])}</b></span>'
    for k, v in series.items()
  )
  name = html.escape(title.replace('_', ' '))
  body = f'{svg(series, colours)}<div class="legend">{legend}</div>'
  return f'<div class="card"><h2>{name}</h2>{body}</div>'


def svg(series: Series, colours: Mapping[str, str]) -> str:
  """Draws lines over steps as an SVG element.

  Args:
    series: name -> (step, value) of each point.
    colours: of each series, by name.
  """
  points = [p for s in series.values() for p in s]
  x0, x1 = _span([x for x, _ in points])
  y0, y1 = _span([y for _, y in points])
  sx = lambda x: LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - 12)
  sy = lambda y: HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - BOTTOM - TOP)
  parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">']
  for y in ticks(y0, y1):
    parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{sy(y):.1f}" y2="{sy(y):.1f}" '
                 f'stroke="#8883"/><text x="{LEFT - 6}" y="{sy(y) + 4:.1f}" text-anchor="end">'
                 f'{brief(y)}</text>')  # fmt: skip
  for x in ticks(x0, x1):
    anchor = 'end' if sx(x) > WIDTH - 40 else 'middle'
    parts.append(f'<text x="{sx(x):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{brief(x)}</text>')
  for name, values in series.items():
    path = ' '.join(f'{sx(x):.1f},{sy(y):.1f}' for x, y in values)
    parts.append(
      f'<polyline fill="none" stroke="{colours[name]}" stroke-width="1.8" points="{path}"/>'
    )
    if len(values) < 40:
      parts += [
        f'<circle cx="{sx(x):.1f}" cy="{sy(y):.1f}" r="2.6" fill="{colours[name]}">'
        f'<title>{html.escape(name)}, step {x:,.0f}: {brief(y)}</title></circle>'
        for x, y in values
      ]
  return ''.join(parts) + '</svg>'


def _span(values: list[float]) -> tuple[float, float]:
  low, high = min(values), max(values)
  margin = max(0.5, abs(low) / 2)
  return (low, high) if high > low else (low - margin, high + margin)


def ticks(low: float, high: float, n: int = 5) -> list[float]:
  """Returns round numbers in [low, high], about `n`.

  >>> ticks(0, 10)
  [0, 2, 4, 6, 8, 10]
  """
  raw = (high - low) / n
  unit = 10.0 ** math.floor(math.log10(raw))
  step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  digits = max(0, 2 - math.floor(math.log10(step)))
  values = [round(i * step, digits) for i in range(first, last + 1)]
  return [int(v) if v == int(v) else v for v in values]


def _table(values: Mapping[str, Any]) -> str:
  show = lambda v: brief(v) if isinstance(v, int | float) and not isinstance(v, bool) else str(v)
  rows = ''.join(f'<tr><td>{html.escape(str(k))}</td><td>{html.escape(show(v))}</td></tr>'
                 for k, v in values.items())  # fmt: skip
  return f'<table>{rows}</table>'
