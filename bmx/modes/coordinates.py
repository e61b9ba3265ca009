"""Picture of a sweep: parallel coordinates, drawn by plotly."""

import html
import math
from collections.abc import Sequence
from typing import Any

from bmx.config import Space

AXIS = 170  # pixels that an axis needs; a narrow page scrolls
GREY = '#7d848e'  # can be read on white and on black, as the colors of lines can
COLORS = [[0, '#3b82f6'], [0.5, '#16a34a'], [1, '#ea580c']]
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>:root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }}
body {{ margin: 1rem }} h1 {{ font-size: 1.1rem; overflow-wrap: anywhere }}
div.wide {{ overflow-x: auto }} div.wide > div {{ min-width: {width}px }}
.parcoords text {{ text-shadow: none !important }}</style></head>
<body><h1>{title}</h1><div class="wide"><div>{body}</div></div></body></html>
"""


def picture(trials: Sequence[Any], spaces: Sequence[Space], metric: str) -> str:
  """Returns a page of parallel coordinates: an axis for each word, a line for each trial."""
  from plotly import graph_objects

  values = [t.value for t in trials]
  axes = [_axis(space, [t.params[space.word] for t in trials]) for space in spaces]
  axes.append({'label': html.escape(metric), 'values': values})
  line = {'color': values, 'colorscale': COLORS, 'showscale': True}
  drawn = graph_objects.Parcoords(line=line, dimensions=axes, rangefont={'size': 1})
  figure = graph_objects.Figure(drawn)
  figure.update_layout(paper_bgcolor='rgba(0,0,0,0)', font={'color': GREY, 'size': 14})
  body = figure.to_html(include_plotlyjs=True, full_html=False, config={'responsive': True})
  title = f'{len(trials)} trials by {html.escape(metric)}'
  return PAGE.format(title=title, width=AXIS * len(axes), body=body)


def _axis(space: Space, values: Sequence[Any]) -> dict[str, Any]:
  label = html.escape(space.word)
  if space.kind == 'choice':
    texts = [html.escape(v) for v in space.values]
    at = list(range(len(texts)))
    places = [space.values.index(v) for v in values]
    return {'label': label, 'values': places, 'tickvals': at, 'ticktext': texts}
  if space.kind == 'log':
    low, high = (math.log10(float(v)) for v in space.values)
    ticks = [low + (high - low) * i / 4 for i in range(5)]
    texts = [f'{10**v:.2g}' for v in ticks]
    logs = [math.log10(v) for v in values]
    scale = {'tickvals': ticks, 'ticktext': texts, 'range': [low, high]}
    return {'label': label, 'values': logs, **scale}
  return {'label': label, 'values': list(values), 'range': [float(v) for v in space.values]}
