"""Time to the first step: seconds from the command to its first training step.

    python experiments/bench/start.py            # whole commands
    python experiments/bench/start.py phases     # parts of them, for more recipes

Each command in a process of its own, with an empty cache of programs and then with a full one.
Writes start.json here: `help`, and for each recipe `cold` and `warm`, with the part of it that is
compilation. `phases` has CPU seconds of imports, of building the experiment without its data, of
tracing a step and of compiling it with an empty cache.
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
# Whose parts are timed; `:tiny` has the program of its recipe, only smaller.
PARTS = ('digits_mlp', 'gpt_char', 'bert_base:tiny', 'moe:tiny', 'multi30k_transformer:tiny',
         'emoji_clip:tiny', 'cifar10_resnet:tiny', 'cifar10_vit:tiny', 'mnist_detect:tiny',
         'mnist_flow:tiny', 'char_lstm:tiny', 'adult_mlp:tiny')  # fmt: skip
PHASES = """
import json, sys, time
marks = [time.process_time()]
mark = lambda: marks.append(time.process_time())
import jax
from bmx import config as recipes
from bmx import experiment
from bmx.modes import train
from bmx.plan.compile import lower_step
from bmx.train.state import state_spec
mark()
config, name = recipes.load(sys.argv[1], ['mesh.data=1'])
x = experiment.build(config, name, jax.devices()[:1])
mark()
lowered = lower_step(x, state_spec(x))
mark()
lowered.compile()
mark()
names = ('imports', 'build', 'trace', 'compile')
print(json.dumps({k: round(b - a, 2) for k, a, b in zip(names, marks, marks[1:])}))
"""


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


def phases(recipe: str) -> dict[str, float]:
  """Returns the CPU seconds of the parts of a start, in a process without a cache of programs."""
  command = [sys.executable, '-c', PHASES, recipe]
  made = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
  return json.loads(made.stdout.splitlines()[-1])


def write(results: dict) -> None:
  """Adds results to start.json."""
  path = pathlib.Path(__file__).with_suffix('.json')
  every = json.loads(path.read_text()) if path.exists() else {}
  about = {
    'date': datetime.date.today().isoformat(),
    'machine': f'{len(os.sched_getaffinity(0))} × {platform.machine()} CPU',
  }
  text = json.dumps(every | {name: found | about for name, found in results.items()}, indent=1)
  path.write_text(text + '\n')
  sys.stdout.write(text + '\n')


def main() -> None:
  """Times the recipes and writes start.json."""
  if sys.argv[1:] == ['phases']:
    write({'phases': {recipe: phases(recipe) for recipe in PARTS}})
    return
  began = time.perf_counter()
  subprocess.run([sys.executable, '-m', 'bmx.main', '--help'], cwd=ROOT, check=True,
                 capture_output=True)  # fmt: skip
  results: dict = {'help': {'seconds': round(time.perf_counter() - began, 2)}}
  for recipe in RECIPES:
    with tempfile.TemporaryDirectory() as cache:
      results[recipe] = {kind: first_step(recipe, cache) for kind in ('cold', 'warm')}
  write(results)


if __name__ == '__main__':
  main()
