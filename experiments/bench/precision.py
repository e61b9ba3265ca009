"""Mixed precision beside float32: loss curves of gpt_char; parameters and moments are float32.

    python experiments/bench/precision.py [TEXT]     # a text file; the standard library without

Two seeds of each. Writes precision.svg here, and precision.json: the curves; the largest distance
of the mean ones behind the warm-up; and beside it that of two seeds of float32, the noise.
"""

import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

import numpy as np

from bmx.runtime.report import svg
from bmx.runtime.writer import read_metrics

HERE = pathlib.Path(__file__).parent
DTYPES, SEEDS, STEPS = ('float32', 'bfloat16'), (0, 1), 600
WARM = 100  # steps, which the recipe warms up over: all curves fall together there
COLOURS = ('#1f77b4', '#7fb8e0', '#d62728', '#f0a0a0')


def curve(dtype: str, seed: int, path: str) -> dict[int, float]:
  """Trains gpt_char -> loss by step."""
  with tempfile.TemporaryDirectory() as folder:
    words = [f'dtype={dtype}', f'seed={seed}', f'steps={STEPS}', 'every.log=25', 'every.eval=0',
             'every.save=0', f'data.path={path}']  # fmt: skip
    command = [sys.executable, '-m', 'bmx.main', '--config=configs/gpt_char.py']
    command += [f'--workdir={folder}/run', *[f'--config.{w}' for w in words]]
    subprocess.run(command, check=True, cwd=HERE.parent.parent)
    lines = read_metrics(pathlib.Path(folder, 'run', 'metrics.jsonl'))
  return {line['step']: line['loss'] for line in lines if 'loss' in line}


def picture(series: dict[str, list[tuple[int, float]]]) -> str:
  """Draws the curves over steps, below their legend, as SVG."""
  colours = dict(zip(series, COLOURS, strict=True))
  keys = ''.join(
    f'<rect x="{62 + 125 * n}" y="24" width="10" height="10" fill="{colours[name]}"/>'
    f'<text x="{77 + 125 * n}" y="33">{name}</text>'
    for n, name in enumerate(series)
  )
  chart = svg(series, colours).replace('<svg ', '<svg y="40" width="560" height="240" ')
  return (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 560 284" width="840" '
    'font-family="sans-serif" font-size="11"><rect width="560" height="284" fill="white"/>'
    f'<text x="62" y="15">gpt_char: training loss in nats over steps</text>{keys}{chart}</svg>'
  )


def main() -> None:
  """Trains all curves; writes precision.json and precision.svg."""
  path = str(pathlib.Path(sys.argv[1]).absolute()) if len(sys.argv) > 1 else ''
  curves = {d: [curve(d, seed, path) for seed in SEEDS] for d in DTYPES}
  steps = sorted(curves['float32'][0])
  values = {d: np.array([[c[s] for s in steps] for c in some]) for d, some in curves.items()}
  late = np.array(steps) > WARM
  means = {d: v.mean(0) for d, v in values.items()}
  seeds = np.abs(values['float32'][0] - values['float32'][1])[late]
  result = {
    'largest_distance_of_means': round(
      float(np.abs(means['bfloat16'] - means['float32'])[late].max()), 4
    ),
    'largest_distance_of_two_float32_seeds': round(float(seeds.max()), 4),
    'last_loss': {d: round(float(m[-1]), 4) for d, m in means.items()},
    'steps': STEPS,
    'date': datetime.date.today().isoformat(),
    'machine': f'{len(os.sched_getaffinity(0))} × {platform.machine()} CPU',
  }
  series = {f'{d}, seed {n}': list(zip(steps, map(float, row), strict=True))
            for d in DTYPES for n, row in enumerate(values[d])}  # fmt: skip
  (HERE / 'precision.json').write_text(json.dumps(result | {'curves': series}) + '\n')
  shown = {k: [p for p in s if p[0] >= WARM] for k, s in series.items()}
  (HERE / 'precision.svg').write_text(picture(shown) + '\n')


if __name__ == '__main__':
  main()
