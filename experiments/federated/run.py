"""Federated training on the digits, 40 clients, 8 a round; writes results.json and plot.svg.

    python experiments/federated/run.py [CASE ...]

Three seeds, each with a split, clients and parameters of its own; a run takes seconds.
"""

import datetime
import json
import os
import pathlib
import platform
import statistics
import sys
import tempfile

import bmx
from bmx.runtime.report.curves import Curve
from bmx.runtime.report.plots import looks
from bmx.runtime.report.svg import svg
from bmx.runtime.writer import read_metrics

HERE = pathlib.Path(__file__).parent
SEEDS = 3
CASES = {
  'FedAvg, equal clients': ('digits_federated', ['data.alpha=0.0']),
  'FedAvg': ('digits_federated', []),
  'FedProx': ('digits_federated:fedprox', []),
  'SCAFFOLD': ('digits_federated:scaffold', []),
  'FedAdam': ('digits_federated:fedadam', []),
  'FedAvg, half drop out': ('digits_federated', ['grad.dropout=0.5']),
  'FedAvg, secure sums': ('digits_federated', ['grad.secure_bits=16']),
}
METRICS = {'accuracy': 'eval/test/accuracy', 'worst_tenth': 'eval/clients/client_worst_tenth'}


def train(recipe: str, words: list[str], seed: int) -> dict:
  """Trains a recipe -> its last metrics, and the accuracy of the test by round."""
  config, name = bmx.load(recipe, [*words, f'seed={seed}', 'every.eval=5', 'mesh.data=1'])
  with tempfile.TemporaryDirectory() as folder:
    summary = bmx.train(bmx.build(config, name), f'{folder}/run')
    lines = read_metrics(pathlib.Path(folder, 'run', 'metrics.jsonl'))
  rounds = {x['step']: round(x[METRICS['accuracy']], 4) for x in lines if METRICS['accuracy'] in x}
  last = {k: round(summary['metrics'][v], 4) for k, v in METRICS.items()}
  return {'seed': seed, **last, 'rounds': rounds}


def mean(runs: list[dict], key: str) -> float:
  """Mean over the seeds."""
  return round(statistics.mean(run[key] for run in runs), 4)


def plot(results: dict) -> str:
  """Accuracy of the test by round, the mean of the seeds, with a legend."""
  curves = {}
  for name, found in results.items():
    steps = sorted(map(int, found['runs'][0]['rounds']))
    values = [statistics.mean(run['rounds'][str(s)] for run in found['runs']) for s in steps]
    curves[name] = Curve(steps, values, logged=len(steps), last=values[-1])
  colours = {name: colour for name, (colour, _) in looks(list(curves)).items()}
  drawn = svg(curves, colours).replace('<svg ', '<svg y="0" width="560" height="240" ', 1)
  legend = ''.join(
    f'<text x="{70 + 160 * (i % 3)}" y="{260 + 16 * (i // 3)}" fill="{colour}">{name}</text>'
    for i, (name, colour) in enumerate(colours.items())
  )
  return (f'<svg xmlns="http://www.w3.org/2000/svg" width="580" height="310" '
          f'font-family="sans-serif" font-size="11">{drawn}{legend}</svg>\n')  # fmt: skip


def main() -> None:
  """Runs the chosen cases and updates results.json and plot.svg."""
  path = HERE / 'results.json'
  results = json.loads(path.read_text()) if path.exists() else {}
  for name in sys.argv[1:] or CASES:
    runs = [train(*CASES[name], seed) for seed in range(SEEDS)]
    results[name] = {
      'date': datetime.date.today().isoformat(),
      'machine': f'{os.cpu_count()} × {platform.machine()} CPU, shared with other work',
      'mean': {key: mean(runs, key) for key in METRICS},
      'spread': {key: round(max(r[key] for r in runs) - min(r[key] for r in runs), 4)
                 for key in METRICS},
      'runs': runs,
    }  # fmt: skip
    path.write_text(json.dumps(results, indent=1) + '\n')
    results = json.loads(path.read_text())
    (HERE / 'plot.svg').write_text(plot({k: results[k] for k in CASES if k in results}))


if __name__ == '__main__':
  main()
