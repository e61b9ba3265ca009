"""Weak scaling on paper: 8 to 16,384 chips for four recipes, and where it bends.

    python experiments/plan/weak.py

Every chip keeps its rows; the axis `data` grows. Work and received bytes are those of the recipe on
16 devices (`plan.costs`, `plan.communication`), corrected by the ratio of compiled to counted bytes
of the nearest program that was compiled (experiments/aot/results.json); the network beyond is that
of `plan.times`: slices of at most SLICE chips, or nodes, then the slow network. Compute takes its
bound over the share that published trainings reach. Nothing is compiled or run here, and nothing
above 64 chips was measured. Writes weak.json and weak.svg.
"""

import datetime
import json
import math
import os
import pathlib
from typing import Any, NamedTuple

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=16'

import jax

from bmx import config as recipes
from bmx import experiment
from bmx.core import chips
from bmx.plan import costs, memory, search, times
from bmx.runtime.report.plots import COLOURS

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
COMPILED = json.loads((ROOT / 'experiments/aot/results.json').read_text())
CHIPS = [2**i for i in range(3, 15)]
SLICE = {'v5e': 256, 'v6e': 256, 'v5p': 8192, 'h100': 8}  # v5p: powers of two below 8,960
BATCH = 4e6  # tokens of all chips
CAUSES = ('compute', 'fast links', 'slow network', 'latency')
BENT = 0.9  # share of the speed of 8 chips below which the curve has bent


class Case(NamedTuple):
  """A recipe, its chips, the axes that 8 chips share, rows of a chip, the compiled case."""

  recipe: str
  kind: str
  axes: dict[str, int]
  rows: int
  compiled: str


CASES = [
  Case('gpt2_124m', 'v5e', {}, 32, 'gpt2_124m v5e:2x2'),
  Case('llama_1b', 'v6e', {'fsdp': 8}, 2, 'llama_1b v5e:4x4 fsdp'),
  Case('llama_8b', 'h100', {'fsdp': 8}, 1, 'llama_8b h200:32x8 fsdp-data'),
  Case('moe', 'v5p', {'expert': 8}, 8, 'moe v5p:4x4x4 expert-fsdp'),
]


def counted(case: Case) -> dict[str, Any]:
  """Returns the work of a chip and the bytes it receives by axis, with data above 1."""
  mesh = {'data': 16 // math.prod(case.axes.values()), **case.axes}
  words = [f'mesh.{axis}={mesh.get(axis, 1)}' for axis in ('data', 'fsdp', 'model', 'expert')]
  words += [f'batch_size={16 * case.rows}', 'task.model.remat=dots', 'task.model.attention=xla']
  config, name = recipes.load(str(ROOT / f'configs/{case.recipe}.py'), words)
  if config.grad:
    recipes.apply(config, ['grad.steps=1'])
  x = experiment.build(config, name, jax.devices()[:16], read=False)
  found = costs.count(x, memory.estimate(x))
  ratio = COMPILED[case.compiled]['over_analytic_estimate'] or 1.0
  return {
    'run': found.run / 16,
    'traffic': found.traffic,
    'received': {axis: ratio * size for axis, size in (found.received or {}).items()},
    'compiled_over_counted': ratio,
    'messages': search.messages(x),
    'units': found.units / 16,
    'unit': found.unit,
    'dtype': x.choices['dtype'],
  }


def step(case: Case, work: dict[str, Any], n: int) -> dict[str, Any]:
  """Returns the seconds of a step of n chips by their cause, with and without overlap."""
  chip = chips.KINDS[case.kind]
  data = n // math.prod(case.axes.values())
  mesh = {'data': data, **case.axes}
  received = {a: size for a, size in work['received'].items() if mesh.get(a, 1) > 1}
  sent = times.network(mesh, received, chip, min(n, SLICE[case.kind]))
  bound = max(work['run'] / chip.peak(work['dtype']), work['traffic'] / chip.bandwidth)
  causes = {
    'compute': bound / chip.efficiency,
    'fast links': sum(fast for fast, _ in sent.values()),
    'slow network': sum(slow for _, slow in sent.values()),
    'latency': work['messages'] * search.LATENCY * max(1.0, math.log2(data)),
  }
  late = causes['latency']
  overlapped = max(v for k, v in causes.items() if k != 'latency') + late
  return {'chips': n, **causes, 'overlapped': overlapped, 'apart': sum(causes.values())}


def scaled(case: Case, work: dict[str, Any]) -> dict[str, Any]:
  """Returns the curve of a case: efficiency is the speed of a chip over that among 8."""
  steps = [step(case, work, n) for n in CHIPS]
  for made in steps:
    for way in ('overlapped', 'apart'):
      made[f'efficiency_{way}'] = round(steps[0][way] / made[way], 4)
  bent = [s['chips'] for s in steps if s['efficiency_apart'] < BENT]
  grown = {k: steps[-1][k] - steps[0][k] for k in CAUSES[1:]}
  least = least_tokens(steps, work['units'])
  return {
    **case._asdict(),
    'work': work,
    'steps': [{k: short(v) for k, v in made.items()} for made in steps],
    'bends_at_chips': bent[0] if bent else None,
    'grows_most': max(grown, key=lambda k: grown[k]),
    'bends_below_tokens_of_a_chip': round(least),
    'chips_of_a_batch_of_4m_tokens': int(BATCH / least),
  }


def least_tokens(steps: list[dict[str, Any]], tokens: float) -> float:
  """Returns the tokens of a chip with which the last point has `BENT` of the first's speed.

  Compute grows with the tokens and the rest does not, as that of gradients does not.
  """
  rest = [made['apart'] - made['compute'] for made in (steps[0], steps[-1])]
  compute = (BENT * rest[1] - rest[0]) / (1 - BENT)
  return max(1.0, compute / steps[0]['compute'] * tokens)


def short(value: Any) -> Any:
  """Rounds a number to four digits."""
  return float(f'{value:.4g}') if isinstance(value, float) else value


LOW = 0.85  # where the axis of the picture begins
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 720, 330, 52, 16, 48


def picture(curves: list[dict[str, Any]]) -> str:
  """Draws efficiency over chips: solid with overlap, dashed without."""
  sx = lambda n: LEFT + (math.log2(n) - 3) / 11 * (WIDTH - LEFT - 180)
  sy = lambda share: HEIGHT - BOTTOM - (share - LOW) / (1 - LOW) * (HEIGHT - BOTTOM - TOP)
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
    'font-family="sans-serif" font-size="12">',
    f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
  ]
  for share in (0.85, 0.9, 0.95, 1.0):
    parts.append(f'<line x1="{LEFT}" x2="{sx(2**14):.1f}" y1="{sy(share):.1f}" '
                 f'y2="{sy(share):.1f}" stroke="#8883"/><text x="{LEFT - 6}" '
                 f'y="{sy(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>')  # fmt: skip
  for n in CHIPS:
    parts.append(f'<text x="{sx(n):.1f}" y="{HEIGHT - 28}" text-anchor="middle">{n:,}</text>')
  for i, curve in enumerate(curves):
    for way, dash in (('overlapped', ''), ('apart', ' stroke-dasharray="5 4"')):
      points = ' '.join(f'{sx(s["chips"]):.1f},{sy(min(1, s[f"efficiency_{way}"])):.1f}'
                        for s in curve['steps'])  # fmt: skip
      parts.append(f'<polyline fill="none" stroke="{COLOURS[i]}" stroke-width="1.8"{dash} '
                   f'points="{points}"/>')  # fmt: skip
    y = TOP + 20 * i + 10
    parts.append(f'<text x="{WIDTH - 170}" y="{y}" fill="{COLOURS[i]}">{curve["recipe"]}, '
                 f'{curve["kind"]}</text>')  # fmt: skip
  note = 'chips; speed of a chip over that among 8; dashed: the network waits for compute'
  parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">{note}</text></svg>')
  return '\n'.join(parts) + '\n'


def main() -> None:
  """Writes weak.json and weak.svg."""
  curves = [scaled(case, counted(case)) for case in CASES]
  record = {'date': datetime.date.today().isoformat(), 'bent_below': BENT, 'curves': curves}
  (HERE / 'weak.json').write_text(json.dumps(record, indent=1) + '\n')
  (HERE / 'weak.svg').write_text(picture(curves))


if __name__ == '__main__':
  main()
