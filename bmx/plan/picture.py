"""A picture of a plan: memory of a device by kind, and hours, of each topology."""

import html

from bmx.plan.answer import Answer
from bmx.plan.memory import GIB

COLORS = {
  'parameters': '#4c78a8', 'moments': '#72b7b2', 'gradients': '#54a24b', 'activations': '#f58518',
  'temporaries': '#b279a2',
}  # fmt: skip
WIDTH, ROW, LEFT = 900, 34, 150


def picture(answers: list[Answer]) -> str:
  """Draws one bar for each topology as SVG: memory counted by hand, and a line where it ends."""
  height = ROW * (len(answers) + 2)
  largest = max(max(a.choice.memory.total, a.chip.usable) for a in answers)
  scale = (WIDTH - LEFT - 200) / largest
  head = 'xmlns="http://www.w3.org/2000/svg" font-family="sans-serif" font-size="12"'
  parts = [f'<svg {head} width="{WIDTH}" height="{height}">',
           f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>']  # fmt: skip
  for i, (kind, color) in enumerate(COLORS.items()):
    x = LEFT + 130 * i
    parts.append(f'<rect x="{x}" y="8" width="12" height="12" fill="{color}"/>')
    parts.append(f'<text x="{x + 18}" y="18">{kind}</text>')
  for row, answer in enumerate(answers, 1):
    parts += _bar(answer, row * ROW, scale)
  note = 'GiB of a device, counted; line: what it has; hours: likely'
  parts.append(f'<text x="{LEFT}" y="{height - 10}">{note}</text>')
  return '\n'.join([*parts, '</svg>', ''])


def _bar(a: Answer, y: int, scale: float) -> list[str]:
  x, parts = float(LEFT), [f'<text x="8" y="{y + 18}">{html.escape(a.topology)}</text>']
  for kind, size in a.choice.memory._asdict().items():
    width = size * scale
    parts.append(
      f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="24" fill="{COLORS[kind]}"/>'
    )
    x += width
  end = LEFT + a.chip.usable * scale
  parts.append(f'<line x1="{end:.1f}" x2="{end:.1f}" y1="{y - 3}" y2="{y + 27}" stroke="#000"/>')
  text = f'{a.choice.memory.total / GIB:.3g} GiB, {a.spending.h:,.3g} h'
  if a.spending.usd is not None:
    text += f', {a.spending.usd:,.0f} USD'
  parts.append(f'<text x="{max(x, end) + 8:.1f}" y="{y + 18}">{text}</text>')
  return parts
