"""Detects commits that make bmx slower: ratios only, of programs that run side by side.

    taskset -c 0 python experiments/bench/gate.py        # extra `reference`

Writes gate/COMMIT.json here (commit it), with the ratios of bmx to PyTorch in CPU time, of the loop
to the bare step, and compares with the newest one there: exit code 1 if a ratio grew by more
than 5 % and by more than its own spread.
"""

import datetime
import json
import logging
import pathlib
import subprocess
import sys
import time
from typing import Any

import cpu
import loop
import torch

FOLDER = pathlib.Path(__file__).parent / 'gate'
WORSE = 1.05
MODELS = (
  'MLP 784-512-512-10, batch 128',
  'LeNet-size CNN, batch 128',
  'GPT 0.8 M: L4 d128 T64 B12',
)


def measure() -> dict[str, list[float]]:
  """Measures the ratios: name -> median ratio and the middle half of the windows."""
  torch.set_num_threads(1)
  ratios: dict[str, list[float]] = {}
  for name in MODELS:
    found = cpu.compare(name, time.process_time, cpu.WINDOWS)
    ratios |= {f'{name}: {k}': v for k, v in found.items() if k.startswith('bmx/')}
  name = 'digits MLP'  # whose steps are the shortest
  ratios[f'{name}: framework/bare'] = loop.ratio(*loop.RUNS[name])['framework/bare']
  return ratios


def slower(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
  """Lists the ratios that grew by more than 5 % and more than the two spreads allow.

  >>> slower({'a': [1.0, 0.9, 1.1]}, {'a': [1.2, 1.15, 1.3]})
  ['a: 1.000 -> 1.200']
  >>> slower({'a': [1.0, 0.9, 1.1]}, {'a': [1.2, 1.0, 1.3]})
  []
  """
  both = [(k, before[k], now[k]) for k in now if k in before]
  return [
    f'{k}: {a[0]:.3f} -> {b[0]:.3f}' for k, a, b in both if b[0] > WORSE * a[0] and b[1] > a[2]
  ]


def main() -> int:
  """Measures, writes the record and compares -> exit code."""
  logging.getLogger('bmx').setLevel(logging.WARNING)
  git = lambda *words: subprocess.run(
    ['git', *words], capture_output=True, text=True, check=True, cwd=FOLDER.parent
  ).stdout.strip()
  commit, files = git('rev-parse', '--short', 'HEAD'), sorted(FOLDER.glob('*.json'))
  known = [json.loads(p.read_text()) for p in files if p.stem != commit]
  now = {'commit': commit, 'date': datetime.datetime.now().isoformat(timespec='seconds')}
  now |= {'ratios': measure()}
  FOLDER.mkdir(exist_ok=True)
  (FOLDER / f'{commit}.json').write_text(json.dumps(now, indent=1) + '\n')
  last = max(known, key=lambda k: k['date'], default=None)
  lines = slower(last['ratios'], now['ratios']) if last else []
  for line in lines:
    sys.stdout.write(f'slower than {last["commit"]}: {line}\n')
  return 1 if lines else 0


if __name__ == '__main__':
  sys.exit(main())
