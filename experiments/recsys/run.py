"""Two towers on MovieLens beside popularity: 5 seeds, with and without parts of the recipe.

    python experiments/recsys/run.py --data=ml-latest-small.zip [--seeds=5] [NAME ...]

Writes results.json beside this file after each run, and continues it; plot.svg shows the means with
their standard errors. The step is chosen by recall@10 of the validation ratings, the numbers are
those of the test ratings at that step.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
METRICS = ('recall_at_10', 'ndcg_at_10')
WHOLE = 'two towers'
VARIANTS = {
  WHOLE: [],
  'without logQ': ['--config.task.correction=False'],
  'without genres': ['--config.data.item_features=()'],
  'without history': ['--config.data.history=0'],
  'history alone': ['--config.task.model.user_ids=False'],
}
GOAL = 1.4  # recall@10 over that of popularity


def train(data: str, words: list[str], seed: int) -> dict:
  """Runs the recipe -> the test metrics at the step that validation chooses."""
  with tempfile.TemporaryDirectory() as folder:
    command = [sys.executable, '-m', 'bmx.main', '--config=movielens_two_tower',
               f'--config.data.path={data}', f'--config.seed={seed}', *words,
               f'--workdir={folder}/run']  # fmt: skip
    began = time.perf_counter()
    subprocess.run(command, check=True, cwd=HERE.parent.parent)
    seconds = time.perf_counter() - began
    lines = pathlib.Path(folder, 'run/metrics.jsonl').read_text().splitlines()
  evaluated = [m for m in map(json.loads, lines) if 'eval/valid/recall_at_10' in m]
  best = max(evaluated, key=lambda m: m['eval/valid/recall_at_10'])  # the first of equal ones
  found = {k: best[f'eval/test/{k}'] for k in METRICS}
  popular = {f'popularity_{k}': best[f'eval/test/popularity_{k}'] for k in METRICS}
  return {'seed': seed, 'step': best['step'], 'seconds': round(seconds, 1), **found, **popular}


def summary(runs: list[dict]) -> dict:
  """Means over the seeds with standard errors, and the ratio to popularity."""
  result = {}
  for name in METRICS:
    values, popular = [r[name] for r in runs], runs[0][f'popularity_{name}']
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    result[name] = {
      'mean': round(statistics.mean(values), 5),
      'standard_error': round(error, 5),
      'popularity': round(popular, 5),
      'ratio': round(statistics.mean(values) / popular, 3),
      'ratio_error': round(error / popular, 3),
    }
  return result


def plot(results: dict) -> str:
  """A bar for each variant and one for popularity, recall@10 of the test, with standard errors."""
  results = {name: found for name, found in results.items() if found['runs']}
  popular = next(iter(results.values()))['summary']['recall_at_10']['popularity']
  bars = [('popularity', popular, 0.0)]
  for name, found in results.items():
    recall = found['summary']['recall_at_10']
    bars.append((name, recall['mean'], recall['standard_error']))
  top = 1.2 * max(mean + error for _, mean, error in bars)
  y = lambda value: 220 - 200 * value / top
  shapes = ''
  for i, (name, mean, error) in enumerate(bars):
    x = 60 + 110 * i
    color = '#3b82f6' if i else '#64748b'
    shapes += (
      f'<rect x="{x}" y="{y(mean):.1f}" width="60" height="{220 - y(mean):.1f}" fill="{color}"/>'
    )
    low, high = y(mean - error), y(mean + error)
    shapes += f'<path d="M{x + 30} {low:.1f}V{high:.1f}" stroke="black"/>'
    shapes += f'<text x="{x + 30}" y="240" text-anchor="middle">{name}</text>'
    shapes += f'<text x="{x + 30}" y="{high - 6:.1f}" text-anchor="middle">{mean:.4f}</text>'
  line = y(GOAL * popular)
  right = 60 + 110 * len(bars)
  shapes += f'<path d="M40 {line:.1f}H{right}" stroke="#ea580c" stroke-dasharray="4"/>'
  shapes += f'<text x="{right - 150}" y="{line - 5:.1f}" fill="#ea580c">{GOAL} × popularity</text>'
  return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{right + 20}" height="260" '
          f'font-family="sans-serif" font-size="11"><text x="40" y="14">recall@10, test</text>'
          f'{shapes}</svg>\n')  # fmt: skip


def main() -> None:
  """Runs what results.json lacks."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--data', required=True, help='folder or .zip of MovieLens')
  parser.add_argument('--seeds', type=int, default=5)
  parser.add_argument('names', nargs='*', help=f'of {", ".join(VARIANTS)}')
  given = parser.parse_args()
  path = HERE / 'results.json'
  results = json.loads(path.read_text()) if path.exists() else {}
  for name in given.names or VARIANTS:
    found = results.setdefault(name, {'runs': []})
    for seed in range(given.seeds):
      if seed in [r['seed'] for r in found['runs']]:
        continue
      found['runs'].append(train(given.data, VARIANTS[name], seed))
      found['summary'] = summary(found['runs'])
      found['date'] = datetime.date.today().isoformat()
      found['machine'] = f'{len(os.sched_getaffinity(0))} × {platform.machine()} CPU, shared'
      path.write_text(json.dumps(results, indent=1) + '\n')
      (HERE / 'plot.svg').write_text(plot(results))


if __name__ == '__main__':
  main()
