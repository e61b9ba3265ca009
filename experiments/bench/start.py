"""Time to the first step: seconds from the command to its first training step.

    python experiments/bench/start.py

Each command in a process of its own, with an empty cache of programs and then with a full one.
Writes start.json here: `help`, and for each recipe `cold` and `warm`, with the part of it that is
compilation.
"""

import datetime
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
RECIPES = ('digits_mlp', 'gpt_char')


def first_step(recipe: str, cache: str) -> dict[str, float]:
  """Times a run that ends after its first step, and logs it."""
  with tempfile.TemporaryDirectory() as folder:
    words = ['steps=1', 'epochs=0.0', 'schedule.warmup=0', f'cache={cache}']
    command = [sys.executable, '-m', 'bmx.main', f'--config=configs/{recipe}.py']
    command += [f'--workdir={folder}/run', *[f'--config.{w}' for w in words]]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    seen, compiled = 0.0, 0.0
    assert process.stderr
    for line in process.stderr:
      if found := re.search(r'compiled in ([\d.]+) s', line):
        compiled = float(found[1])
      if line.startswith('step 1/1 ') and not seen:
        seen = time.perf_counter() - began
    if process.wait():
      raise SystemExit(f'{command} failed')
  return {'seconds': round(seen, 2), 'compile': compiled}


def main() -> None:
  """Times the recipes and writes start.json."""
  began = time.perf_counter()
  subprocess.run([sys.executable, '-m', 'bmx.main', '--help'], cwd=ROOT, check=True,
                 capture_output=True)  # fmt: skip
  results: dict = {'help': round(time.perf_counter() - began, 2)}
  for recipe in RECIPES:
    with tempfile.TemporaryDirectory() as cache:
      results[recipe] = {kind: first_step(recipe, cache) for kind in ('cold', 'warm')}
  results |= {
    'date': datetime.date.today().isoformat(),
    'machine': f'{len(os.sched_getaffinity(0))} × {platform.machine()} CPU',
  }
  text = json.dumps(results, indent=1)
  pathlib.Path(__file__).with_suffix('.json').write_text(text + '\n')
  sys.stdout.write(text + '\n')


if __name__ == '__main__':
  main()
