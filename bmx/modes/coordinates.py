"""Picture of a sweep: parallel coordinates, drawn by plotly."""

import html
import math
from collections.abc import Sequence
from typing import Any

from bmx.config import Space


def picture(trials: Sequence[Any], spaces: Sequence[Space], metric: str) -> str:
  """Returns a page of parallel coordinates: an axis for each word, a line for each trial."""
  from plotly import graph_objects

  values = [t.value for t in trials]
  axes = [_axis(space, [t.params[space.word] for t in trials]) for space in spaces]
  axes.append({'label': html.escape(metric), 'values': values})
  line = {'color': values, 'colorscale': 'Viridis', 'showscale': True}
  figure = graph_objects.Figure(graph_objects.Parcoords(line=line, dimensions=axes))
  return figure.to_html(include_plotlyjs=True, full_html=True)


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
    return {'label': label, 'values': logs, 'tickvals': ticks, 'ticktext': texts}
  return {'label': label, 'values': list(values), 'range': [float(v) for v in space.values]}
