"""Curves as figures of plotly, drawn by its scripts in the page, or as plain SVG without it."""

import base64
import functools
import gzip
import html
import importlib.util
import json
import pathlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bmx.runtime.report.curves import Curve
from bmx.runtime.report.svg import svg
from bmx.runtime.writer import brief

COLOURS = (
  '#3b82f6', '#ea580c', '#16a34a', '#a855f7', '#db2777', '#0891b2', '#ca8a04', '#64748b',
)  # fmt: skip
DASHES = ('solid', 'dash', 'dot', 'dashdot')
MAX_DOTS = 40  # points of a curve that are drawn as dots
MIN_SMOOTHED = 10  # points of a curve that can be smoothed
MAX_HOVERED = 8  # curves that one hover label lists
DIGITS = 6  # of numbers in the page
SCRIPT = pathlib.Path(__file__).with_name('page.js')


class Marker(NamedTuple):
  """A vertical line at a step: `kind` is 'restart' or 'schedule'."""

  step: int
  kind: str


def has_plotly() -> bool:
  """Whether the extra `report` is installed."""
  return importlib.util.find_spec('plotly') is not None


@functools.cache
def library() -> str:
  """Returns plotly's script, compressed with gzip, in base64: 2 MB instead of 4.8."""
  from plotly.offline import get_plotlyjs

  return base64.b64encode(gzip.compress(get_plotlyjs().encode(), 6, mtime=0)).decode()


def looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
  """Returns a colour and a dash for each name; no two of the first 32 are equal."""
  n = len(COLOURS)
  return {k: (COLOURS[i % n], DASHES[i // n % len(DASHES)]) for i, k in enumerate(names)}


def figure(
  curves: Mapping[str, Curve], look: Mapping[str, tuple[str, str]], markers: Sequence[Marker]
) -> dict[str, Any]:
  """Returns a figure of plotly, without the colours of its page.

  Each curve has a trace 'line', where points are averaged a trace 'band' from least to largest
  value, and where it may be smoothed an empty trace 'smooth'; `meta` says which.

  Args:
    curves: by name.
    look: colour and dash of each.
    markers: vertical lines.
  """
  data: list[dict[str, Any]] = []
  for name, curve in curves.items():
    colour, dash = look[name]
    line = {'color': colour, 'width': 1.8, 'dash': dash}
    base = {'type': 'scatter', 'name': _escaped(name), 'showlegend': False, 'line': line}
    meta = lambda role, name=name: {'role': role, 'curve': name}
    if curve.low:
      around = {
        'x': [*curve.steps, *curve.steps[::-1]],
        'y': _short([*curve.high, *curve.low[::-1]]),
      }
      thin = {'line': {'width': 0}, 'fill': 'toself', 'fillcolor': f'{colour}33'}
      data.append(
        {**base, **around, **thin, 'hoverinfo': 'skip', 'mode': 'lines', 'meta': meta('band')}
      )
    few = len(curve.steps) < MAX_DOTS
    points = {'x': list(curve.steps), 'y': _short(curve.values), 'marker': {'size': 5}}
    data.append(
      {**base, **points, 'mode': 'lines+markers' if few else 'lines', 'meta': meta('line')}
    )
    if len(curve.steps) >= MIN_SMOOTHED:
      empty = {'x': [], 'y': [], 'mode': 'lines', 'visible': False}
      data.append({**base, **empty, 'meta': meta('smooth')})
  axis = {'automargin': True, 'zeroline': False, 'fixedrange': False}
  layout = {
    'height': 260,
    'margin': {'l': 44, 'r': 10, 't': 8, 'b': 28},
    'hovermode': 'x unified' if len(curves) <= MAX_HOVERED else 'closest',
    'xaxis': {**axis, 'hoverformat': ',d', 'nticks': 6},
    'yaxis': {**axis, 'nticks': 6},
    'shapes': [_line(m) for m in markers],
    'paper_bgcolor': 'rgba(0,0,0,0)',
    'plot_bgcolor': 'rgba(0,0,0,0)',
  }
  return {'data': data, 'layout': layout}


def _line(marker: Marker) -> dict[str, Any]:
  dash = 'dot' if marker.kind == 'restart' else 'dash'
  return {
    'type': 'line', 'x0': marker.step, 'x1': marker.step, 'y0': 0, 'y1': 1, 'yref': 'paper',
    'line': {'width': 1, 'dash': dash, 'color': '#888888'}, 'layer': 'below',
  }  # fmt: skip


def _short(values: Sequence[float]) -> list[float]:
  return [float(f'{v:.{DIGITS}g}') for v in values]


def _escaped(name: str) -> str:
  """A name as plotly shows it: it reads a small part of HTML."""
  return html.escape(name, quote=False)


def card(
  title: str,
  curves: Mapping[str, Curve],
  look: Mapping[str, tuple[str, str]],
  markers: Sequence[Marker] = (),
) -> tuple[str, dict[str, Any]]:
  """Returns the HTML of a chart with its legend, and its figure ({} without plotly)."""
  tag = 'button' if has_plotly() else 'span'
  legend = ''.join(
    f'<{tag} data-curve="{html.escape(k)}"><span class="key {look[k][1]}" '
    f'style="--key: {look[k][0]}"></span>{html.escape(k)} <b>{brief(c.last)}</b></{tag}>'
    for k, c in curves.items()
  )
  name = html.escape(title.replace('_', ' '))
  if has_plotly():
    body, made = '<div class="plot"></div>', figure(curves, look, markers)
  else:
    body = svg(curves, {k: v[0] for k, v in look.items()}, [m.step for m in markers])
    made = {}
  return f'<div class="card"><h2>{name}</h2>{body}<div class="legend">{legend}</div></div>', made


def controls() -> str:
  """Returns the controls of all charts: smoothing and a logarithmic scale."""
  if not has_plotly():
    return (
      '<p class="soft">Curves without hover, smoothing and logarithmic scale: pip install '
      "'bmx-jax[report]' adds them.</p>"
    )
  return (
    '<form class="controls"><label>smoothing <input type="range" id="smoothing" min="0" '
    'max="0.99" step="0.01" value="0" autocomplete="off"> <output id="weight">0</output></label>'
    '<label><input type="checkbox" id="log" autocomplete="off"> logarithmic scale</label></form>'
  )


def scripts(figures: Sequence[Mapping[str, Any]], nonce: str) -> str:
  """Returns the scripts at the end of a page; '' without plotly.

  Args:
    figures: of the charts, in the order of their cards.
    nonce: of the page's policy.
  """
  if not has_plotly() or not figures:
    return ''
  text = json.dumps(list(figures), separators=(',', ':'), allow_nan=False)
  for char in '<>&\u2028\u2029':  # nothing in a name may end the element
    text = text.replace(char, f'\\u{ord(char):04x}')
  return (
    f'<script type="application/json" id="figures">{text}</script>'
    f'<script type="text/plain" id="plotly">{library()}</script>'
    f'<script nonce="{nonce}">{SCRIPT.read_text(encoding="utf-8")}</script>'
  )


def new_nonce() -> str:
  """Returns a secret of one page: scripts without it are not run."""
  return secrets.token_urlsafe(16)
