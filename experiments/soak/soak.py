"""Kills runs with SIGKILL at random moments and asks for the same bits: writes results.json here.

    python experiments/soak/soak.py [KILLS]

Each case is one model on one layout, with accumulation, a moving average and early stopping on. It
runs once undisturbed; then it is started again and again, killed after a random time or in the
middle of a save, until it has had its share of kills and is let through. Final state and metrics
must be equal.
"""

import datetime
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

from bmx.runtime.writer import TIMES, read_metrics

HERE = pathlib.Path(__file__).parent
MODELS = {
  'digits_mlp': ['steps=60000', 'every.log=500', 'every.eval=5000', 'every.save=500'],
  'mnist_cnn': ['steps=400', 'every.eval=100', 'every.save=10'],
  'gpt_char': ['steps=300', 'every.eval=100', 'every.save=10', 'task.model.dropout=0.1'],
}
LAYOUTS = {'one': [], 'data': [], 'fsdp': ['mesh.fsdp=4'], 'tensor': ['mesh.model=4']}

# The recipe in a file of its own: its tiny variant with what the soak wants on top.
RECIPE = """
import runpy
def get_config(variant=''):
  c = runpy.run_path({path!r})['get_config']('tiny')
  c.grad = {{'call': 'bmx.train.gradients:Accumulate', 'steps': 2}}
  c.ema = 0.99
  first = next(iter(c.eval))
  c.eval.held = c.eval[first]
  c.stop.metric, c.stop.patience = 'eval/held/loss', 1000
  c.keep.metric = 'eval/held/loss'
  return c
"""


class Case:
  """One model on one layout."""

  def __init__(self, model: str, layout: str, folder: pathlib.Path):
    self.name, self.folder = f'{model} {layout}', folder / f'{model}-{layout}'
    self.folder.mkdir()
    recipe = self.folder / 'recipe.py'
    recipe.write_text(RECIPE.format(path=str(HERE.parent.parent / f'configs/{model}.py')))
    count = 1 if layout == 'one' else 8
    flags = f'--xla_force_host_platform_device_count={count} '
    flags += '--xla_cpu_collective_call_terminate_timeout_seconds=300'
    self.env = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
    self.command = [sys.executable, '-m', 'bmx.main', f'--config={recipe}']
    overrides = [*MODELS[model], *LAYOUTS[layout], f'cache={folder / "programs"}']
    self.command += [f'--config.{o}' for o in overrides]
    self.draw = random.Random(self.name)

  def start(self, run: str) -> subprocess.Popen:
    command = [*self.command, f'--workdir={self.folder / run}']
    return subprocess.Popen(command, env=self.env, stderr=subprocess.PIPE, text=True)

  def finish(self, run: str) -> dict:
    process = self.start(run)
    _, errors = process.communicate()
    if process.returncode:
      raise SystemExit(f'{self.name}: {errors}')
    return json.loads((self.folder / run / 'summary.json').read_text())

  def kill(self, run: str, in_save: bool) -> bool:
    """-> whether SIGKILL came before the end; counted from the first new line of metrics."""
    path, process = self.folder / run / 'metrics.jsonl', self.start(run)
    size = path.stat().st_size if path.exists() else 0
    while process.poll() is None and not (path.exists() and path.stat().st_size > size):
      time.sleep(0.001)
    deadline = time.monotonic() + (10 if in_save else self.draw.uniform(0, 0.6))
    while process.poll() is None and time.monotonic() < deadline:
      if in_save and any((self.folder / run).glob('checkpoints/*orbax-checkpoint-tmp*')):
        break
      time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL

  def lines(self, run: str) -> list[dict]:
    lines = read_metrics(self.folder / run / 'metrics.jsonl')
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def soak(case: Case, kills: int) -> dict:
  expected = case.finish('straight')
  done = in_save = 0
  while done < kills:
    aimed = done % 3 == 2
    if not case.kill('killed', aimed):
      break
    done, in_save = done + 1, in_save + aimed
  summary = case.finish('killed')
  return {
    'kills': done,
    'aimed_at_a_save': in_save,
    'same_state': summary['state_digest'] == expected['state_digest'],
    'same_metrics': case.lines('killed') == case.lines('straight'),
  }


def main() -> None:
  kills = int(sys.argv[1]) if len(sys.argv) > 1 else 100
  pairs = list(itertools.product(MODELS, LAYOUTS))
  results = {}
  with tempfile.TemporaryDirectory() as folder:
    for i, (model, layout) in enumerate(pairs):
      share = kills // len(pairs) + (i < kills % len(pairs))
      case = Case(model, layout, pathlib.Path(folder))
      results[case.name] = soak(case, share)
      sys.stdout.write(f'{case.name}: {results[case.name]}\n')
      sys.stdout.flush()
  commit = subprocess.check_output(['git', 'rev-parse', '--short', 'HEAD'], cwd=HERE, text=True)
  record = {
    'commit': commit.strip(),
    'date': datetime.date.today().isoformat(),
    'machine': f'{os.cpu_count()} CPU cores',
    'kills': sum(r['kills'] for r in results.values()),
    'all_equal': all(r['same_state'] and r['same_metrics'] for r in results.values()),
    'cases': results,
  }
  (HERE / 'results.json').write_text(json.dumps(record, indent=1) + '\n')


if __name__ == '__main__':
  main()
