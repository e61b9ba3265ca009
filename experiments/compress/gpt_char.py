"""Compression of gpt_char on tinyshakespeare: validation loss over bytes of the weights.

    BMX_TEST_DATA=DIR python experiments/compress/gpt_char.py [--seeds=N] [CASE ...]

DIR holds tinyshakespeare/input.txt. Trains one run for each seed (kept in --runs=FOLDER, where a
later call finds it), compresses it by every case, and writes results.json and gpt_char.svg here.
A case given by name is measured again; the others keep their results, as do those of smaller.py.
"""

import argparse
import datetime
import html
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from bmx.runtime.report.svg import ticks

HERE = pathlib.Path(__file__).parent
DATA = f'{os.environ.get("BMX_TEST_DATA", "")}/tinyshakespeare/input.txt'
LOSS = 'eval/valid/loss'
FAR = 0.015  # nats; points above are not drawn
Facts = dict[str, Any]  # 'loss', in nats a character, and 'bytes' of the weights


def bmx(*arguments: str) -> None:
  """Runs a command of bmx from the checkout."""
  command = [sys.executable, '-m', 'bmx', *arguments]
  subprocess.run(command, check=True, cwd=HERE.parent.parent)


def base(runs: pathlib.Path, seed: int) -> pathlib.Path:
  """Returns the run that everything starts from, after training it where it is missing."""
  folder = runs / f'base_{seed}'
  if not (folder / 'summary.json').exists():
    words = f'--data.path={DATA}', f'--seed={seed}', '--hooks.samples.every=0', '--every.eval=0'
    bmx('train', 'gpt_char', *words, f'--workdir={folder}')
  return folder


def compressed(*words: str) -> Callable[[pathlib.Path, int], Facts]:
  """Returns a case: `bmx compress` with these words."""

  def case(runs: pathlib.Path, seed: int) -> Facts:
    with tempfile.TemporaryDirectory(dir=runs) as folder:
      bmx('compress', str(base(runs, seed)), *words, f'--output={folder}/run')
      table = json.loads(pathlib.Path(folder, 'run', 'compress.json').read_text())
    return facts(table['after']) | {'base': facts(table['before'])}

  return case


def facts(row: dict[str, float]) -> Facts:
  """Returns loss and bytes of one side of the table of `bmx compress`."""
  return {'loss': row[LOSS], 'bytes': int(row['bytes'])}


# name -> function of (folder of runs, seed) -> facts; g16: groups of 16, not 32
CASES: dict[str, Callable[[pathlib.Path, int], Facts]] = {
  'int8': compressed('--int8'),
  'int8 × int8': compressed('--int8', '--activations=int8'),
  'fp8': compressed('--fp8'),
  'int4': compressed('--int4'),
  'int4 g16': compressed('--int4', '--group=16'),
  'int4 AWQ': compressed('--int4', '--awq'),
  'int4 GPTQ': compressed('--int4', '--gptq'),
  'int4 GPTQ g16': compressed('--int4', '--gptq', '--group=16'),
  'int4 GPTQ g16, 4,096 texts': compressed('--int4', '--gptq', '--group=16', '--examples=4096'),
  'nf4': compressed('--nf4'),
  'nf4 GPTQ': compressed('--nf4', '--gptq'),
}


def measure(name: str, runs: pathlib.Path, seeds: int) -> Facts:
  """Returns the means of a case over seeds, and its difference from the uncompressed runs."""
  made = [CASES[name](runs, seed) for seed in range(seeds)]
  losses, bases = [m['loss'] for m in made], [m['base']['loss'] for m in made]
  more = [a - b for a, b in zip(losses, bases, strict=True)]
  return {
    'date': datetime.date.today().isoformat(),
    'seeds': seeds,
    'loss': round(statistics.mean(losses), 5),
    'difference': round(statistics.mean(more), 5),
    'differences': [round(d, 5) for d in more],
    'bytes': made[0]['bytes'],
    'share': round(made[0]['bytes'] / made[0]['base']['bytes'], 4),
    'base': {'loss': round(statistics.mean(bases), 5), 'bytes': made[0]['base']['bytes']},
  }


def points(results: dict[str, Facts]) -> list[tuple[str, float, float]]:
  """Returns (name, share of the bytes, loss added) of the cases, those of smaller.py too.

  Points far above the others are left out.
  """
  found = [(name, r['share'], r['difference']) for name, r in results.items()]
  return sorted((p for p in found if p[2] < FAR), key=lambda p: p[2])


def picture(results: dict[str, Facts]) -> str:
  """Draws the loss added by each case over its share of the bytes, as SVG."""
  width, height, left, bottom = 900, 600, 150, 50
  found = points(results)
  most, least = max(p[2] for p in found) + 0.001, min(0.0, *(p[2] for p in found)) - 0.001
  right = max(p[1] for p in found) * 1.1
  sx = lambda share: left + share / right * (width - left - 20)
  sy = lambda d: 20 + (most - d) / (most - least) * (height - bottom - 20)
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
    'font-family="sans-serif" font-size="11">',
    f'<rect width="{width}" height="{height}" fill="white"/>',
    f'<line x1="{left}" x2="{width - 20}" y1="{sy(0):.1f}" y2="{sy(0):.1f}" stroke="#888"/>',
    f'<text x="{width / 2}" y="{height - 10}">bytes of the weights, share of float32</text>',
    f'<text transform="translate(16 {height / 2 + 60}) rotate(-90)">loss added, nats</text>',
  ]
  for share in ticks(0, right):
    parts.append(
      f'<text x="{sx(share):.1f}" y="{height - 30}" text-anchor="middle">{share:.1f}</text>'
    )
  for d in ticks(least, most):
    parts.append(f'<text x="{left - 98}" y="{sy(d) + 4:.1f}" text-anchor="start">{d:+.3f}</text>')
  free: dict[int, float] = {}  # column -> lowest place that a label may have
  for name, share, d in found:
    x, y = sx(share), sy(d)
    # Labels of the smallest models are on the left of all their dots, the others beside theirs.
    side, label = ('end', sx(0.19)) if share < 0.25 else ('start', x + 8)
    column = round(label / 60)
    at = free[column] = min(y + 4, free.get(column, height) - 12)
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="#1f77b4"/>'
                 f'<text x="{label:.1f}" y="{at:.1f}" text-anchor="{side}">{html.escape(name)}'
                 '</text>')  # fmt: skip
  return '\n'.join([*parts, '</svg>']) + '\n'


def main() -> None:
  """Measures the chosen cases and updates results.json and gpt_char.svg."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('cases', nargs='*')
  parser.add_argument('--seeds', type=int, default=1)
  parser.add_argument('--runs', default='', help='folder of the runs; removed at the end if absent')
  args = parser.parse_args()
  runs = pathlib.Path(args.runs or tempfile.mkdtemp()).absolute()
  runs.mkdir(parents=True, exist_ok=True)
  path = HERE / 'results.json'
  stored = json.loads(path.read_text()) if path.exists() else {}
  results = stored.get('cases', {})
  for name in args.cases or CASES:
    results[name] = measure(name, runs, args.seeds)
    machine = f'{os.cpu_count()} × {platform.machine()} CPU'
    path.write_text(json.dumps({'machine': machine, 'cases': results}, indent=1) + '\n')
    (HERE / 'gpt_char.svg').write_text(picture(results))
  if not args.runs:
    shutil.rmtree(runs)


if __name__ == '__main__':
  main()
