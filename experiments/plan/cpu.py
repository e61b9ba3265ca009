"""Forecasts of `bmx plan --topology=cpu` beside trainings on this machine, for six recipes.

    BMX_TEST_DATA=DIR python experiments/plan/cpu.py [WORD ...]   # recipes whose name has a word

DIR holds tfds/, a TFDS directory with MNIST and cifar10_jpeg. Each recipe is planned, then trained
for some log windows, of which the first is left out; cpu.json here has the seconds of a step of
both. Both are times of the wall: leave the machine alone meanwhile.
"""

import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

from bmx.runtime.writer import read_metrics

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
RESULTS = HERE / 'cpu.json'
TFDS = f'--data.data_dir={os.environ.get("BMX_TEST_DATA", "")}/tfds'
WINDOWS = 4
# Recipe -> (steps of a log window, further words).
CASES: dict[str, tuple[int, list[str]]] = {
  'digits_mlp': (400, []),
  'mnist_cnn': (40, [TFDS]),
  'gpt_char': (40, []),
  'char_lstm': (40, []),
  'bert_base:tiny': (100, []),
  'cifar10_resnet': (8, [TFDS]),
}


def bmx(*words: str) -> None:
  """Runs a command of bmx."""
  subprocess.run([sys.executable, '-m', 'bmx', *words], check=True, cwd=ROOT)


def planned(recipe: str, words: list[str], folder: pathlib.Path) -> dict[str, float]:
  """Plans a recipe for this machine -> seconds of a step, bound and measured."""
  bmx('plan', recipe, '--topology=cpu', f'--output={folder}', *words)
  answer = json.loads((folder / 'plan.json').read_text())['answer']
  return {
    'bound': answer['bound']['step_seconds'],
    'planned': answer['measured']['step_seconds'],
  }


def trained(recipe: str, window: int, words: list[str], folder: pathlib.Path) -> float:
  """Trains a few log windows -> median seconds of a step."""
  steps = window * WINDOWS
  length = [f'--steps={steps}', f'--every.log={window}', '--every.eval=0', '--every.save=0',
            '--schedule.warmup=2', '--epochs=0']  # fmt: skip
  bmx('train', recipe, f'--workdir={folder}', *length, *words)
  found = [m['step_seconds'] for m in read_metrics(folder / 'metrics.jsonl') if 'step_seconds' in m]
  return statistics.median(found[1:])


def main() -> None:
  """Measures every chosen recipe."""
  results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
  for recipe, (window, words) in CASES.items():
    if sys.argv[1:] and not any(word in recipe for word in sys.argv[1:]):
      continue
    with tempfile.TemporaryDirectory() as folder:
      os.environ['XDG_CACHE_HOME'] = f'{folder}/cache'  # or a plan of another day answers
      found = planned(recipe, words, pathlib.Path(folder) / 'plan')
      found['trained'] = trained(recipe, window, words, pathlib.Path(folder) / 'run')
    found['planned_over_trained'] = found['planned'] / found['trained']
    results[recipe] = {
      'date': datetime.date.today().isoformat(),
      'machine': f'{os.cpu_count()} × {platform.machine()} CPU',
      **{k: float(f'{v:.4g}') for k, v in found.items()},
    }
    RESULTS.write_text(json.dumps(results, indent=1) + '\n')
    sys.stdout.write(f'{recipe}: {results[recipe]}\n')


if __name__ == '__main__':
  main()
