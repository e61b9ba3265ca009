"""A picture of a power law: runs, the law, and predictions with their intervals."""

import html
import math
from collections.abc import Mapping, Sequence

from bmx.plan.powerlaw import Law, Prediction
from bmx.runtime.report.plots import COLOURS
from bmx.runtime.report.svg import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, ticks
from bmx.runtime.writer import brief

POINTS = 60  # of the drawn law
RIGHT = 12


def picture(
  runs: Mapping[str, tuple[float, float]], law: Law, predictions: Sequence[Prediction], metric: str
) -> str:
  """Draws an SVG: losses over sizes, whose axis is logarithmic.

  Args:
    runs: name -> (size, loss).
    law: fitted to them.
    predictions: of larger sizes.
    metric: name of the loss.
  """
  sizes = [n for n, _ in runs.values()] + [p.size for p in predictions]
  losses = [y for _, y in runs.values()] + [y for p in predictions for y in (p.low, p.high)]
  x0, x1 = math.log10(min(sizes)) - 0.05, math.log10(max(sizes)) + 0.05
  y0, y1 = min(losses), max(losses)
  y0, y1 = y0 - 0.05 * (y1 - y0), y1 + 0.05 * (y1 - y0)
  sx = lambda n: LEFT + (math.log10(n) - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
  sy = lambda y: HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - BOTTOM - TOP)
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + 20}" role="img" '
    'font-family="sans-serif" font-size="11">',
    f'<rect width="{WIDTH}" height="{HEIGHT + 20}" fill="#fff"/>',
  ]
  for y in ticks(y0, y1):
    parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{sy(y):.1f}" y2="{sy(y):.1f}" '
                 f'stroke="#8883"/><text x="{LEFT - 6}" y="{sy(y) + 4:.1f}" text-anchor="end">'
                 f'{brief(y)}</text>')  # fmt: skip
  for n in round_sizes(10**x0, 10**x1):
    parts.append(f'<text x="{sx(n):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{short(n)}</text>')
  grid = [10 ** (x0 + (x1 - x0) * i / POINTS) for i in range(POINTS + 1)]
  line = ' '.join(f'{sx(n):.1f},{sy(law.at(n)):.1f}' for n in grid)
  parts.append(f'<polyline fill="none" stroke="{COLOURS[0]}" stroke-width="1.8" points="{line}"/>')
  for p in predictions:
    parts.append(f'<line x1="{sx(p.size):.1f}" x2="{sx(p.size):.1f}" y1="{sy(p.low):.1f}" '
                 f'y2="{sy(p.high):.1f}" stroke="{COLOURS[1]}" stroke-width="3" opacity="0.6">'
                 f'<title>{p.size:,.0f} parameters: {p.low:.4f} to {p.high:.4f}</title>'
                 '</line>')  # fmt: skip
  for name, (n, y) in runs.items():
    title = f'{html.escape(name)}, {n:,.0f} parameters: {y:.4f}'
    parts.append(f'<circle cx="{sx(n):.1f}" cy="{sy(y):.1f}" r="3" fill="{COLOURS[0]}">'
                 f'<title>{title}</title></circle>')  # fmt: skip
  note = f'{html.escape(metric)} over parameters; dots: runs; bars: 90 % of runs (predicted)'
  parts.append(f'<text x="{LEFT}" y="{HEIGHT + 12}">{note}</text></svg>')
  return '\n'.join(parts) + '\n'


def round_sizes(low: float, high: float) -> list[float]:
  """Returns 1, 2 and 5 times powers of ten between two sizes; powers alone if those are many.

  >>> round_sizes(3e5, 2.5e6)
  [500000.0, 1000000.0, 2000000.0]
  """
  exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  steps = (1, 2, 5) if math.log10(high / low) < 3 else (1,)
  found = [m * 10.0**e for e in exponents for m in steps]
  return [n for n in found if low <= n <= high]


def short(n: float) -> str:
  """Formats a size for an axis.

  >>> short(5e5), short(2e9), short(70)
  ('500 k', '2 B', '70')
  """
  for unit, name in ((1e12, ' T'), (1e9, ' B'), (1e6, ' M'), (1e3, ' k')):
    if n >= unit:
      return f'{n / unit:g}{name}'
  return f'{n:g}'
