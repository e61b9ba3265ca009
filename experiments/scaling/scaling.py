"""What growth costs, from the compilers: FLOPs, bytes moved and collective bytes of each device.

    python experiments/scaling/scaling.py [devices|size]

`devices`: llama_8b on 8 to 4,096 chips of v5p, 4 rows of 4,096 tokens a chip (weak scaling).
`size`: 0.2 to 70 billion parameters on 64 chips (FSDP 16 × tensor 4), 1 row a chip. Writes
results.json and scaling.svg here. FLOPs are those of `core.costs` (forward × 3); bytes moved are
what the compiler says that a step reads and writes, its loops counted once, so they are read beside
one another and not as a time.
"""

import datetime
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
SLICES = {8: '2x2x2', 64: '4x4x4', 512: '8x8x8', 4096: '16x16x16'}
FSDP = {8: 8, 64: 64, 512: 64, 4096: 64}
DEVICES = {
  n: ('llama_8b', f'v5p:{shape}', [
    f'batch_size={4 * n}', 'mesh.model=1', f'mesh.fsdp={FSDP[n]}', f'mesh.data={n // FSDP[n]}'])
  for n, shape in SLICES.items()
}  # fmt: skip
SIZES = {
  recipe: (recipe, 'v5p:4x4x4', ['batch_size=64', 'mesh.fsdp=16', 'mesh.model=4', *more])
  for recipe, more in {
    'gpt2_124m': ['grad.steps=1', 'task.model.heads=16', 'task.model.width=1024'],
    'llama_1b': ['grad.steps=1'],
    'llama_8b': [],
    'llama_70b': [],
  }.items()
}


def one(recipe, topology, overrides):
  """Compiles one case in this process -> its figures."""
  from bmx.plan import topology as topologies

  topologies.prepare()
  from bmx import config as recipes
  from bmx import experiment
  from bmx.plan import communication, hlo
  from bmx.plan.compile import compile_step
  from bmx.train.start import published_parameters, step_costs
  from bmx.train.state import state_spec

  config, name = recipes.load(str(ROOT / f'configs/{recipe}.py'), ['mesh.data=1', *overrides])
  x = experiment.build(config, name, topologies.devices(topology), read=False)
  made = compile_step(x)
  plan = state_spec(x)
  costs = made.program.cost_analysis()
  costs = costs[0] if isinstance(costs, list) else costs
  return {
    'devices': x.layout.devices,
    'parameters': published_parameters(x, plan),
    'flops': step_costs(x, plan).flops / x.layout.devices,
    'bytes_accessed': costs.get('bytes accessed', 0.0),
    'received': sum(hlo.total(made.collectives).values()),
    'received_by_kind': hlo.total(made.collectives),
    'analytic_estimate': communication.expected(x, made.params),
    'peak': made.peak,
  }


def run(what, case):
  """Compiles a case in its own process."""
  command = [sys.executable, __file__, '--one', what, str(case)]
  result = subprocess.run(command, capture_output=True, text=True, check=False)
  if result.returncode:
    return {'error': result.stderr.strip().splitlines()[-1][:300]}
  return json.loads(result.stdout.splitlines()[-1])


def draw(record):
  """Draws two panels of log-log lines, as SVG."""
  head = 'xmlns="http://www.w3.org/2000/svg" width="960" height="400" font-family="sans-serif"'
  parts = [f'<svg {head} font-size="12">', '<rect width="960" height="400" fill="#fff"/>']
  for left, what, label in ((60, 'devices', 'devices (llama_8b)'), (540, 'size', 'parameters')):
    rows = [r for r in record.get(what, {}).values() if 'error' not in r]
    if rows:
      parts += panel(left, rows, 'devices' if what == 'devices' else 'parameters', label)
  (HERE / 'scaling.svg').write_text('\n'.join([*parts, '</svg>']) + '\n')


LINES = {'flops': '#1f77b4', 'bytes_accessed': '#2ca02c', 'received': '#d62728', 'peak': '#9467bd'}


def panel(left, rows, across, label):
  """Draws one panel, from x = `left` on."""
  import math

  xs = [math.log10(r[across]) for r in rows]
  span = (max(xs) - min(xs)) or 1
  place = lambda x: left + (x - min(xs)) / span * 340
  parts = [f'<text x="{left + 170}" y="385" text-anchor="middle">{label}</text>']
  parts += [f'<text x="{place(x):.0f}" y="365" text-anchor="middle">{r[across]:,}</text>'
            for x, r in zip(xs, rows, strict=True) if across == 'devices'
            or r is rows[0] or r is rows[-1]]  # fmt: skip
  for i, (name, colour) in enumerate(LINES.items()):
    ys = [math.log10(max(r[name], 1)) for r in rows]
    points = ' '.join(f'{place(x):.1f},{330 - (y - 8) / 8 * 280:.1f}'
                      for x, y in zip(xs, ys, strict=True))  # fmt: skip
    parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    parts.append(f'<text x="{left}" y="{18 + 14 * i}" fill="{colour}">{name} per device: '
                 f'{rows[0][name]:.3g} → {rows[-1][name]:.3g}</text>')  # fmt: skip
  return parts


def main():
  """Compiles the chosen cases; updates results.json and scaling.svg."""
  if sys.argv[1:2] == ['--one']:
    cases = DEVICES if sys.argv[2] == 'devices' else SIZES
    case = int(sys.argv[3]) if sys.argv[2] == 'devices' else sys.argv[3]
    sys.stdout.write(json.dumps(one(*cases[case])) + '\n')
    return
  path = HERE / 'results.json'
  record = json.loads(path.read_text()) if path.exists() else {}
  for what, cases in (('devices', DEVICES), ('size', SIZES)):
    if sys.argv[1:] and what not in sys.argv[1:]:
      continue
    record[what] = {}
    for case in cases:
      record[what][str(case)] = run(what, case)
      sys.stdout.write(f'{what} {case}: {record[what][str(case)]}\n')
      sys.stdout.flush()
  record['date'] = datetime.date.today().isoformat()
  path.write_text(json.dumps(record, indent=1) + '\n')
  draw(record)


if __name__ == '__main__':
  main()
