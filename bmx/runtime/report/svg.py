"""Plain curves as SVG, for an installation without plotly."""

import html
import math
from collections.abc import Mapping, Sequence

from bmx.runtime.report.curves import Curve
from bmx.runtime.writer import brief

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 560, 240, 62, 28, 12
MAX_DOTS = 40  # points of a curve that are drawn as dots with a title


def svg(
  curves: Mapping[str, Curve],
  colours: Mapping[str, str],
  marks: Sequence[float] = (),
  axis: str = 'step',
) -> str:
  """Draws curves over steps as an SVG element.

  Args:
    curves: by name, with at least one point in all.
    colours: of each curve, by name.
    marks: steps of vertical lines.
    axis: name of what lies across; numbers of another axis than steps may be fractions.
  """
  whole = brief if axis != 'step' else lambda x: f'{x:,.0f}'
  x0, x1 = _span([x for c in curves.values() for x in c.steps])
  y0, y1 = _span([y for c in curves.values() for y in c.values])
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
  for x in marks:
    if x0 <= x <= x1:
      parts.append(f'<line x1="{sx(x):.1f}" x2="{sx(x):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" '
                   'stroke="#888" stroke-dasharray="3 3"/>')  # fmt: skip
  for name, curve in curves.items():
    points = list(zip(curve.steps, curve.values, strict=True))
    path = ' '.join(f'{sx(x):.1f},{sy(y):.1f}' for x, y in points)
    parts.append(
      f'<polyline fill="none" stroke="{colours[name]}" stroke-width="1.8" points="{path}"/>'
    )
    if len(points) < MAX_DOTS:
      parts += [
        f'<circle cx="{sx(x):.1f}" cy="{sy(y):.1f}" r="2.6" fill="{colours[name]}">'
        f'<title>{html.escape(name)}, {axis} {whole(x)}: {brief(y)}</title></circle>'
        for x, y in points
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
