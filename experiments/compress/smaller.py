"""Smaller models of gpt_char: pruned, and distilled to half the depth; updates results.json.

    BMX_TEST_DATA=DIR python experiments/compress/smaller.py WORKDIR [SEEDS]

DIR holds tinyshakespeare/. WORKDIR keeps the runs: one that is finished is not trained again. Each
case of CASES is a row beside those of gpt_char.py: the loss on the validation text in nats a byte,
the parameters, those of them that are not zero, and their bytes in float32.
"""

import datetime
import json
import os
import pathlib
import statistics
import sys
from typing import Any

import jax
import numpy as np

import bmx
from bmx import config as recipes
from bmx import experiment
from bmx.core import tree
from bmx.train.run import restored
from bmx.train.state import eval_variables

HERE = pathlib.Path(__file__).parent
TEXT = f'{os.environ.get("BMX_TEST_DATA", "")}/tinyshakespeare/input.txt'
METRIC = 'eval/valid/loss'
TUNED = ['steps=300', 'schedule.peak=1e-3', 'schedule.warmup=20']  # after pruning
HALF = ['task.model.depth=2']


def loaded(seed: int, *overrides: str):
  """Returns the config of gpt_char on the text."""
  words = [f'data.path={TEXT}', f'seed={seed}', 'mesh.data=1', *overrides]
  return recipes.load('gpt_char', words)[0]


def dense(seed: int, _: pathlib.Path):
  """The recipe itself."""
  return loaded(seed)


def half(seed: int, _: pathlib.Path):
  """Half of the depth, from scratch."""
  return loaded(seed, *HALF)


def distilled(seed: int, base: pathlib.Path):
  """Half of the depth, taught by the dense model of the seed, in as many steps."""
  c = loaded(seed, *HALF)
  c.init.teacher = str(base)
  c.task = {
    'call': 'bmx.compress.distill:Distill',
    'inner': c.task.to_dict(),
    'teacher': {'call': 'bmx.adapt.restore:model', 'path': c.init.get_ref('teacher')},
    'task_coef': 0.5,
  }
  return c


def pruned(tuned: bool, **words):
  """Returns a case that prunes the dense model by magnitude at once, and tunes what remains."""

  def config(seed: int, base: pathlib.Path):
    c = loaded(seed, f'init.path={base}', *TUNED)
    if not tuned:
      c.steps, c.schedule.peak, c.schedule.floor = 1, 1e-12, 0.0
      c.schedule.warmup = 0
    c.optimizer = {
      'call': 'bmx.compress.prune:prune',
      'inner': c.optimizer.to_dict(),
      'end': 0.0,
      **words,
    }
    return c

  return config


CASES = {
  'dense': dense,
  'half the depth, from scratch': half,
  'half the depth, distilled': distilled,
  '50 % by magnitude': pruned(False, sparsity=0.5),
  '50 % by magnitude, 300 steps': pruned(True, sparsity=0.5),
  '2:4': pruned(False, kind='2:4'),
  '2:4, 300 steps': pruned(True, kind='2:4'),
}


def run(name: str, seed: int, folder: pathlib.Path) -> dict[str, float]:
  """Trains a case -> its loss and its sizes."""
  config = CASES[name](seed, folder / f'dense-{seed}')
  made = experiment.build(config, 'run', jax.devices()[:1])
  workdir = folder / f'{"".join(c if c.isalnum() else "_" for c in name)}-{seed}'
  loss = bmx.train(made, workdir)['metrics'][METRIC]
  state, _ = restored(made, workdir, 'latest')
  plain = jax.device_get(made.task.merged_params(eval_variables(state)))
  nonzero = sum(int(np.count_nonzero(x)) for x in jax.tree.leaves(plain))
  return {'loss': loss, 'parameters': tree.count(plain), 'nonzero': nonzero}


def row(found: list[dict[str, float]], dense: list[dict[str, float]]) -> dict[str, Any]:
  """Returns the means of a case over seeds, and its difference from the dense models."""
  losses, bases = ([one['loss'] for one in some] for some in (found, dense))
  more = [a - b for a, b in zip(losses, bases, strict=True)]
  size, whole = 4 * found[0]['nonzero'], 4 * dense[0]['parameters']
  return {
    'date': str(datetime.date.today()),
    'seeds': len(found),
    'loss': round(statistics.mean(losses), 5),
    'difference': round(statistics.mean(more), 5),
    'differences': [round(d, 5) for d in more],
    'bytes': size,
    'share': round(size / whole, 4),
    'base': {'loss': round(statistics.mean(bases), 5), 'bytes': whole},
    'parameters': found[0]['parameters'],
    'nonzero': found[0]['nonzero'],
  }


def main() -> None:
  """Runs every case, prints a table and updates results.json."""
  folder, seeds = pathlib.Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
  path = HERE / 'results.json'
  stored = json.loads(path.read_text())
  dense: list[dict[str, float]] = []
  for name in CASES:
    found = [run(name, seed, folder) for seed in range(seeds)]
    dense = dense or found
    stored['cases'][name] = row(found, dense)
    print(f'{name:32} {stored["cases"][name]["loss"]:.4f} {found[0]["nonzero"]:>10,}', flush=True)
    path.write_text(json.dumps(stored, indent=1) + '\n')


if __name__ == '__main__':
  main()
