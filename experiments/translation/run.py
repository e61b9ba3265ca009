"""BLEU and chrF of `multi30k_transformer` on validation and test 2016, with beams.

    python experiments/translation/run.py --data=FOLDER_OF_MULTI30K [--seeds=1] [--workdir=DIR]

Writes results.json beside this file after every evaluation of a run: scores with sacrebleu's
signatures, CPU seconds of the process, date, machine and seed. A run in --workdir continues where
it was ended; its CPU seconds are then those since. The last evaluation of a run counts: the test
set selects no step.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

from bmx.tasks.translation import SIGNATURES

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / 'results.json'
RECIPE = 'multi30k_transformer'
TICKS = os.sysconf('SC_CLK_TCK')


def cpu_seconds(pid: int) -> float:
  """CPU seconds of a running process, of all its threads."""
  fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  return (int(fields[11]) + int(fields[12])) / TICKS


def evaluations(workdir: pathlib.Path) -> list[dict]:
  """Steps of a run with their scores on both sets."""
  path = workdir / 'metrics.jsonl'
  lines = path.read_text().splitlines() if path.exists() else []
  found = [json.loads(line) for line in lines if line.endswith('}') and 'eval/test/bleu' in line]
  keep = lambda m: {k: v for k, v in m.items() if k == 'step' or k.startswith('eval/')}
  return [keep(m) for m in found]


def record(seed: int, workdir: pathlib.Path, seconds: float, finished: bool) -> None:
  """Writes the state of a run."""
  results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {'runs': []}
  results['signatures'] = SIGNATURES
  run = {
    'seed': seed,
    'finished': finished,
    'cpu_seconds': round(seconds),
    'cores': len(os.sched_getaffinity(0)),
    'machine': f'{platform.machine()} CPU, shared',
    'date': datetime.date.today().isoformat(),
    'evaluations': evaluations(workdir),
  }
  results['runs'] = sorted(
    [r for r in results['runs'] if r['seed'] != seed] + [run], key=lambda r: r['seed']
  )
  RESULTS.write_text(json.dumps(results, indent=1) + '\n')


def train(data: str, seed: int, workdir: pathlib.Path) -> None:
  """Runs the recipe, and records its evaluations as they come."""
  command = [sys.executable, '-m', 'bmx.main', f'--config={RECIPE}', f'--config.folder={data}',
             f'--config.seed={seed}', f'--workdir={workdir}']  # fmt: skip
  process = subprocess.Popen(command, cwd=HERE.parent.parent)
  known, seconds = 0, 0.0
  while process.poll() is None:
    time.sleep(5)
    try:
      seconds = cpu_seconds(process.pid)
    except (OSError, IndexError):
      continue  # it has just ended
    if len(evaluations(workdir)) > known:
      known = len(evaluations(workdir))
      record(seed, workdir, seconds, False)
  if process.returncode:
    raise SystemExit(process.returncode)
  record(seed, workdir, seconds, True)


def main() -> None:
  """Trains one seed after another."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--data', required=True, help='folder of train.de.gz, train.en.gz, ...')
  parser.add_argument('--seeds', type=int, default=1)
  parser.add_argument('--workdir', default='', help='keeps the runs in DIR/SEED')
  given = parser.parse_args()
  with tempfile.TemporaryDirectory() as temporary:
    for seed in range(given.seeds):
      train(given.data, seed, pathlib.Path(given.workdir or temporary) / str(seed))


if __name__ == '__main__':
  main()
