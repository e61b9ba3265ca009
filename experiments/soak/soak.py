"""Kills runs with SIGKILL and asks for the same bits: writes results.json here.

    python experiments/soak/soak.py [KILLS] [CASE ...]
    python experiments/soak/soak.py 24 wrapped

Each case is one model on one layout, with accumulation, a moving average (of the statistics of
batch norm too), the best and the newest checkpoints; one case stops early, one has two processes.
It runs once undisturbed; then it is started again and again and killed, until it has had its share
of kills and is let through. Kills are aimed, see `AIMS`. Final state and metrics must be equal, and
there must be a report.
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
from collections.abc import Callable

from peers import free_port

from bmx.runtime.writer import TIMES, read_metrics

HERE = pathlib.Path(__file__).parent
RECIPES = ('digits_mlp', 'mnist_cnn', 'gpt_char')
# A step of the small network on eight devices takes ten times as long as on one.
MODELS = {
  'digits_mlp': ['steps=60000', 'every.log=500', 'every.eval=5000', 'every.save=500'],
  'digits_mlp on 8': ['steps=6000', 'every.log=100', 'every.eval=1000', 'every.save=100'],
  'mnist_cnn': ['steps=400', 'every.eval=100', 'every.save=10'],
  'gpt_char': ['steps=300', 'every.eval=100', 'every.save=10', 'task.model.dropout=0.1'],
}
LAYOUTS = {'one': [], 'data': [], 'fsdp': ['mesh.fsdp=4'], 'tensor': ['mesh.model=4']}

# Further cases: model, layout, overrides.
EXTRA = {
  'digits_mlp stopping': ('digits_mlp', ['steps=4000', 'every.log=100', 'every.eval=200',
                                         'every.save=300', 'stop.patience=3',
                                         'schedule.every=200']),
  'gpt_char two processes': ('gpt_char', [*MODELS['gpt_char'], 'mesh.fsdp=4']),
}  # fmt: skip
# Tasks and optimizers around the small GPT: lines of its recipe. With any of them the record is
# wrapped.json.
INNER = 'c.task.model.dropout, inner = 0.1, c.task\n  c.task'
ADAPT = f"{INNER} = {{'call': 'bmx.adapt.%s', 'inner': inner, 'rank': 2"
ROUND = (
  f"{INNER} = {{'call': 'bmx.compress.quantize:FakeQuantize', 'inner': inner, 'kind': 'int8'}}"
)
PRUNE = "tx = c.optimizer\n  c.optimizer = {'call': 'bmx.compress.prune:prune', 'inner': tx}"
TEACHER = "{'call': 'bmx.adapt.restore:model', 'path': '{teacher}'}"
WRAPPED = {
  'lora one': ADAPT % 'lora:LoRA' + '}',
  'lora over nf4 one': ADAPT % 'lora:LoRA' + ", 'base': 'nf4', 'group': 16}",
  'adalora one': ADAPT % 'adalora:AdaLoRA' + ", 'init_rank': 4, 'tinit': 20, 'tfinal': 50}",
  'distillation one': f"{INNER} = {{'call': 'bmx.compress.distill:Distill', 'inner': inner,\n"
                      f"    'teacher': {TEACHER}}}\n  c.init.teacher = '{{teacher}}'",
  'pruning one': f'c.task.model.dropout = 0.1\n  {PRUNE}',
  'pruning, rounding one': f'{ROUND}\n  {PRUNE}',
}  # fmt: skip
# What a kill waits for; the kills of a case take turns but for its first ('first write') and its
# last two ('end').
AIMS = ('some time', 'save', 'clean-up')

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
  if {stopping}:  # a rate that only does harm
    c.schedule = {{'call': 'bmx.optim.schedules:exponential'}}
    c.schedule.update(peak=1e-2, every=4, factor=2.0)
  {more}
  return c
"""


class Case:
  """One model on one layout."""

  def __init__(self, name: str, model: str, overrides: list[str], folder: pathlib.Path):
    self.name, self.folder = name, folder / name.replace(' ', '-')
    self.folder.mkdir()
    self.processes = 2 if name.endswith('two processes') else 1
    recipe = self.folder / 'recipe.py'
    path = str(HERE.parent.parent / f'configs/{model}.py')
    more = WRAPPED.get(name, 'pass').replace('{teacher}', str(folder / 'teacher'))
    recipe.write_text(RECIPE.format(path=path, stopping=name.endswith('stopping'), more=more))
    count = 1 if name.endswith(('one', 'stopping')) else 8 // self.processes
    flags = f'--xla_force_host_platform_device_count={count} '
    flags += '--xla_cpu_collective_call_terminate_timeout_seconds=300'
    self.env = {**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'}
    self.command = [sys.executable, '-m', 'bmx.main', f'--config={recipe}']
    overrides = [*overrides, f'cache={self.folder / "programs"}']
    self.command += [f'--config.{o}' for o in overrides]
    self.draw = random.Random(self.name)

  def start(self, run: str) -> list[subprocess.Popen]:
    command = [*self.command, f'--workdir={self.folder / run}']
    more = [['--processes=2', f'--process={i}', f'--coordinator=localhost:{free_port()}']
            for i in range(self.processes)] if self.processes > 1 else [[]]  # fmt: skip
    for words in more[1:]:
      words[-1] = more[0][-1]
    with (self.folder / 'log').open('w') as log:
      return [subprocess.Popen(command + words, env=self.env, stderr=log) for words in more]

  def finish(self, run: str) -> dict:
    if any([process.wait() for process in self.start(run)]):
      raise SystemExit(f'{self.name}: {(self.folder / "log").read_text()}')
    return json.loads((self.folder / run / 'summary.json').read_text())

  def kill(self, run: str, aim: str, last: int) -> bool:
    """Kills a run; returns whether SIGKILL came before its end. Kills one of several processes."""
    processes = self.start(run)
    victim, waits = self.draw.choice(processes), self.events(self.folder / run, last)[aim]
    alive = lambda: all(p.poll() is None for p in processes)
    for happened, seconds in waits:
      deadline = time.monotonic() + seconds
      while alive() and time.monotonic() < deadline and not happened():
        time.sleep(0.0005)
    victim.send_signal(signal.SIGKILL)
    codes = [process.wait() for process in processes]
    return -signal.SIGKILL in codes

  def events(self, workdir: pathlib.Path, last: int) -> dict[str, list[tuple[Callable, float]]]:
    """Maps an aim to its (condition, seconds at most), in order."""
    metrics, folder = workdir / 'metrics.jsonl', workdir / 'checkpoints'
    size = metrics.stat().st_size if metrics.exists() else 0
    never, some = (lambda: False), self.draw.uniform(0, 0.6)
    logged = (lambda: metrics.exists() and metrics.stat().st_size > size), 300.0
    saving = (lambda: any(folder.glob('*orbax-checkpoint-tmp*'))), 10.0
    half = lambda: any(p.name.isdigit() and not (p / 'manifest.json').exists()
                       for p in folder.glob('*'))  # fmt: skip
    ended = lambda: (folder / str(last) / 'manifest.json').exists()
    return {
      'first write': [(workdir.exists, 300.0), (never, self.draw.uniform(0, 0.02))],
      'some time': [logged, (never, some)],
      'save': [logged, saving],
      'clean-up': [logged, (half, 10.0)],
      'end': [(ended, 600.0), (never, self.draw.uniform(0, 0.4))],
    }

  def lines(self, run: str) -> list[dict]:
    lines = read_metrics(self.folder / run / 'metrics.jsonl')
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def soak(case: Case, kills: int) -> dict:
  """Kills a case `kills` times, and compares its end with that of an undisturbed run."""
  expected = case.finish('straight')
  aims = ['first write', *itertools.islice(itertools.cycle(AIMS), max(kills - 3, 0)), 'end', 'end']
  done = dict.fromkeys(('first write', *AIMS, 'end'), 0)
  for aim in aims[:kills]:
    done[aim] += case.kill('killed', aim, expected['steps'])
  summary = case.finish('killed')
  return {
    'kills': sum(done.values()),
    'aims': done,
    'same_state': summary['state_digest'] == expected['state_digest'],
    'same_steps': summary['steps'] == expected['steps'],
    'same_metrics': case.lines('killed') == case.lines('straight'),
    'report': (case.folder / 'killed/report.html').is_file(),
  }


def layout_case(model: str, layout: str) -> tuple[str, list[str]]:
  """Returns recipe and overrides of a model on a layout."""
  small = model == 'digits_mlp' and layout != 'one'
  return model, MODELS['digits_mlp on 8' if small else model] + LAYOUTS[layout]


def main() -> None:
  """Runs the chosen cases and writes results.json."""
  kills = int(sys.argv[1]) if len(sys.argv) > 1 else 100
  wrapped = {name: ('gpt_char', MODELS['gpt_char'][:3]) for name in WRAPPED}
  cases = (
    wrapped
    | EXTRA
    | {f'{m} {k}': layout_case(m, k) for m, k in itertools.product(RECIPES, LAYOUTS)}
  )
  chosen = sys.argv[2:] or [name for name in cases if name not in WRAPPED]
  chosen = list(WRAPPED) if chosen == ['wrapped'] else chosen
  results = {}
  with tempfile.TemporaryDirectory() as folder:
    if any(name.startswith('distillation') for name in chosen):
      teacher = Case('teacher one', 'gpt_char', ['steps=20'], pathlib.Path(folder))
      teacher.finish('run')
      (teacher.folder / 'run').rename(pathlib.Path(folder) / 'teacher')
    for i, name in enumerate(chosen):
      share = kills // len(chosen) + (i < kills % len(chosen))
      case = Case(name, *cases[name], pathlib.Path(folder))
      results[case.name] = soak(case, share)
      sys.stdout.write(f'{case.name}: {results[case.name]}\n')
      sys.stdout.flush()
  commit = subprocess.check_output(['git', 'rev-parse', '--short', 'HEAD'], cwd=HERE, text=True)
  record = {
    'commit': commit.strip(),
    'date': datetime.date.today().isoformat(),
    'machine': f'{os.cpu_count()} CPU cores',
    'kills': sum(r['kills'] for r in results.values()),
    'all_equal': all(
      v for r in results.values() for k, v in r.items() if k not in ('kills', 'aims')
    ),
    'cases': results,
  }
  file = 'wrapped.json' if set(chosen) & set(WRAPPED) else 'results.json'
  (HERE / file).write_text(json.dumps(record, indent=1) + '\n')


if __name__ == '__main__':
  main()
