"""Validation loss of char_lstm on tinyshakespeare; writes results.json beside this.

    BMX_TEST_DATA=DIR python experiments/recurrent/run.py [SEED ...]

DIR holds tinyshakespeare/input.txt. The checkpoint is evaluated with windows of 64 tokens, as that
of gpt_char is, and of 1,024, each from zeros.
"""

import datetime
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
TEXT = f'{os.environ.get("BMX_TEST_DATA", "")}/tinyshakespeare/input.txt'
LENGTHS = (64, 1024)


def bmx(command: str, *words: str) -> None:
  """Runs a command of bmx."""
  subprocess.run([sys.executable, '-m', 'bmx', command, *words], check=True, cwd=HERE.parent.parent)


def cpu_seconds() -> float:
  """CPU seconds of the finished child processes."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def measure(seed: int) -> dict:
  """Trains the recipe whole, and evaluates it with windows of each length."""
  with tempfile.TemporaryDirectory() as folder:
    run = pathlib.Path(folder, 'run')
    began, before = time.perf_counter(), cpu_seconds()
    bmx('train', 'char_lstm', f'--data.path={TEXT}', f'--seed={seed}', f'--workdir={run}')
    found = {
      'seed': seed,
      'seconds': round(time.perf_counter() - began, 1),
      'cpu_seconds': round(cpu_seconds() - before, 1),
    }
    summary = json.loads((run / 'summary.json').read_text())
    found |= {'steps': summary['steps'], 'parameters': summary['parameters']}
    found['loss'] = {}
    for length in LENGTHS:
      bmx('eval', str(run), f'--eval.valid.length={length}', '--eval.valid.batch_size=16')
      written = run / f'evaluation.{summary["steps"]}.json'
      metrics = json.loads(written.read_text())['metrics']
      found['loss'][str(length)] = round(metrics['eval/valid/loss'], 4)
  return found


def main() -> None:
  """Measures the given seeds and writes results.json."""
  seeds = [int(seed) for seed in sys.argv[1:]] or [0]
  results = {
    'date': datetime.date.today().isoformat(),
    'machine': f'{os.cpu_count()} × {platform.machine()} CPU, shared with other work',
    'runs': [measure(seed) for seed in seeds],
  }
  (HERE / 'results.json').write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__':
  main()
