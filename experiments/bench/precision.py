"""Mixed precision beside float32: loss curves of gpt_char; parameters and moments are float32.

    python experiments/bench/precision.py [TEXT]     # a text file; the standard library without

Two seeds of each. Writes precision.json and precision.svg here: the largest distance of the mean
curves behind the warm-up, beside the largest distance of two seeds of float32, which is the noise.
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

from bmx.core.report import svg
from bmx.core.writer import read_metrics

HERE = pathlib.Path(__file__).parent
DTYPES, SEEDS, STEPS = ('float32', 'bfloat16'), (0, 1), 600


def curve(dtype: str, seed: int, path: str) -> dict[int, float]:
  with tempfile.TemporaryDirectory() as folder:
    words = [f'dtype={dtype}', f'seed={seed}', f'steps={STEPS}', 'every.log=25', 'every.eval=0',
             'every.save=0', f'data.path={path}']  # fmt: skip
    command = [sys.executable, '-m', 'bmx.main', '--config=configs/gpt_char.py']
    command += [f'--workdir={folder}/run', *[f'--config.{w}' for w in words]]
    subprocess.run(command, check=True, cwd=HERE.parent.parent)
    lines = read_metrics(pathlib.Path(folder, 'run', 'metrics.jsonl'))
  return {line['step']: line['loss'] for line in lines if 'loss' in line}


def main() -> None:
  path = str(pathlib.Path(sys.argv[1]).absolute()) if len(sys.argv) > 1 else ''
  curves = {d: [curve(d, seed, path) for seed in SEEDS] for d in DTYPES}
  steps = sorted(curves['float32'][0])
  values = {d: np.array([[c[s] for s in steps] for c in some]) for d, some in curves.items()}
  late = np.array(steps) > 100
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
  (HERE / 'precision.json').write_text(json.dumps(result, indent=1) + '\n')
  series = {f'{d}, seed {n}': list(zip(steps, map(float, row), strict=True))
            for d in DTYPES for n, row in enumerate(values[d])}  # fmt: skip
  colours = dict(zip(series, ('#1f77b4', '#7fb8e0', '#d62728', '#f0a0a0'), strict=True))
  picture = svg(series, colours).replace('<svg ', '<svg xmlns="http://www.w3.org/2000/svg" ')
  (HERE / 'precision.svg').write_text(picture + '\n')


if __name__ == '__main__':
  main()
