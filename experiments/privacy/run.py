"""Private training measured: accuracy of mnist_dp at an ε.

    BMX_TEST_DATA=DIR python experiments/privacy/run.py train [--epsilon=E] [--seeds=N] [WORDS]

DIR holds tfds/mnist. It prints accuracy, ε and CPU seconds of each seed, and adds a line of JSON to
results.jsonl; further words are those of the config, such as epochs=2. Costs: cost.py.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import resource
import secrets
import statistics
import subprocess
import sys
import tempfile
from typing import Any

HERE = pathlib.Path(__file__).parent
ACCURACY = 'eval/test/accuracy'


def note(result: dict[str, Any]) -> None:
  """Prints a result and adds it to results.jsonl, with date and machine."""
  where = {'date': str(datetime.date.today()), 'machine': f'{platform.machine()}, CPU'}
  line = json.dumps({**where, **result})
  print(line, flush=True)
  with open(HERE / 'results.jsonl', 'a') as file:
    file.write(line + '\n')


def train(epsilon: float, seeds: int, words: list[str]) -> None:
  """Trains the recipe with seeds 0, 1, ... and secrets of their own."""
  found = []
  for seed in range(seeds):
    with tempfile.TemporaryDirectory() as folder:
      secret = pathlib.Path(folder, 'secret')
      secret.write_text(secrets.token_hex(32))
      given = {
        'privacy.epsilon': epsilon,
        'privacy.secret': secret,
        'seed': seed,
        'data.data_dir': pathlib.Path(os.environ['BMX_TEST_DATA'], 'tfds'),
      }
      more = [f'--{k}={v}' for k, v in given.items()] + [f'--{word}' for word in words]
      command = [sys.executable, '-m', 'bmx', 'train', 'mnist_dp', *more]
      before = resource.getrusage(resource.RUSAGE_CHILDREN)
      subprocess.run([*command, f'--workdir={folder}/run'], check=True, cwd=HERE.parent.parent)
      after = resource.getrusage(resource.RUSAGE_CHILDREN)
      summary = json.loads(pathlib.Path(folder, 'run', 'summary.json').read_text())
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    values = {k: summary['metrics'][k] for k in (ACCURACY, 'epsilon')}
    found.append({'seed': seed, 'cpu_seconds': round(spent, 1), 'steps': summary['steps']} | values)
  mean = statistics.mean(f[ACCURACY] for f in found)
  note({'train': 'mnist_dp', 'words': words, 'seeds': found, 'mean_accuracy': round(mean, 5)})


def main() -> None:
  """Runs the measurement."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('kind', choices=('train',))
  parser.add_argument('words', nargs='*')
  parser.add_argument('--epsilon', type=float, default=2.91)
  parser.add_argument('--seeds', type=int, default=3)
  given = parser.parse_intermixed_args()
  train(given.epsilon, given.seeds, given.words)


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  main()
