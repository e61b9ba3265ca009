"""Measures the recipes of speech: results.json is written as they go.

    BMX_TEST_DATA=DIR python experiments/speech/run.py STAGE [WORKDIR] [--seed=0] [--limit=0]

DIR holds fsdd/recordings.tar, the recordings of the Free Spoken Digit Dataset. The run is in
WORKDIR (/tmp/bmx-speech), and continues there if the script is started again; seconds are those of
all starts. --limit ends a run, with its state saved, after so many CPU seconds.

- ctc: word and character error rates of fsdd_ctc on the same speakers and on the one left out.
- cnn: accuracy of fsdd_cnn on the same splits.
"""

import datetime
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time
from typing import Any

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
DATA = os.environ.get('BMX_TEST_DATA', '')
RECIPES = {'ctc': ('fsdd_ctc', ('wer', 'cer', 'loss')), 'cnn': ('fsdd_cnn', ('accuracy', 'loss'))}
EVERY = 20  # seconds between two looks at a run


def cpu_seconds(pid: int) -> float:
  """CPU seconds of a process so far, its threads included."""
  fields = pathlib.Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def evaluations(workdir: pathlib.Path, wanted: tuple[str, ...]) -> list[dict[str, Any]]:
  """The evaluations that a run has written so far."""
  path = workdir / 'metrics.jsonl'
  lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
  found = []
  for line in lines:
    values = {k.removeprefix('eval/'): round(v, 4) for k, v in line.items()
              if k.startswith('eval/') and k.rpartition('/')[2] in wanted}  # fmt: skip
    if values:
      found.append({'step': line['step'], **values})
  return found


def read() -> dict[str, Any]:
  """The content of results.json."""
  path = HERE / 'results.json'
  return json.loads(path.read_text()) if path.exists() else {}


def write(name: str, values: dict[str, Any]) -> None:
  """Replaces the part of results.json with this name."""
  path, every = HERE / 'results.json', read()
  path.write_text(json.dumps({**every, name: values}, indent=1) + '\n')


def measure(stage: str, workdir: pathlib.Path, seed: int, limit: int) -> None:
  """Trains a recipe, and writes its results so far every few seconds."""
  recipe, wanted = RECIPES[stage]
  earlier = read().get(recipe, {}) if (workdir / 'config.json').exists() else {}
  before = earlier.get('cpu_seconds', 0)
  began = time.perf_counter() - earlier.get('seconds', 0)
  process = subprocess.Popen(
    [sys.executable, '-m', 'bmx.main', f'--config=configs/{recipe}.py',
     f'--config.data.path={DATA}/fsdd/recordings.tar', f'--config.seed={seed}',
     f'--workdir={workdir}'],
    cwd=ROOT,
  )  # fmt: skip
  about = {
    'date': datetime.date.today().isoformat(),
    'machine': f'{len(os.sched_getaffinity(0))} of {os.cpu_count()} × {platform.machine()} CPU',
    'seed': seed,
  }
  while process.poll() is None:
    spent = before + cpu_seconds(process.pid)
    if limit and spent > limit:
      process.terminate()
      process.wait()
    now = {'cpu_seconds': round(spent), 'seconds': round(time.perf_counter() - began)}
    write(recipe, {**about, **now, 'done': False, 'evaluations': evaluations(workdir, wanted)})
    time.sleep(EVERY)
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  done = {
    'cpu_seconds': round(before + usage.ru_utime + usage.ru_stime),
    'seconds': round(time.perf_counter() - began),
    'done': process.returncode == 0,
    'evaluations': evaluations(workdir, wanted),
  }
  if process.returncode == 0:
    summary = json.loads((workdir / 'summary.json').read_text())
    done |= {'steps': summary['steps'], 'parameters': summary['parameters']}
  write(recipe, about | done)


def main() -> None:
  """Runs the stage that the command line names."""
  words = [a for a in sys.argv[1:] if not a.startswith('--')]
  flags = dict(a[2:].split('=', 1) for a in sys.argv[1:] if a.startswith('--'))
  seed, limit = int(flags.get('seed', 0)), int(flags.get('limit', 0))
  if not words or words[0] not in RECIPES or not DATA:
    raise SystemExit(__doc__)
  folder = pathlib.Path(words[1] if len(words) > 1 else '/tmp/bmx-speech')
  measure(words[0], folder / f'{words[0]}_{seed}', seed, limit)


if __name__ == '__main__':
  main()
