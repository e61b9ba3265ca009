"""Private training measured: accuracy of mnist_dp at an ε, and the cost of gradients of examples.

    BMX_TEST_DATA=DIR python experiments/privacy/run.py train [--epsilon=E] [--seeds=N] [WORDS]
    python experiments/privacy/run.py cost

DIR holds tfds/mnist. `train` prints accuracy, ε and CPU seconds of each seed; further words are
those of the config, such as epochs=2. `cost` prints CPU seconds and bytes of temporaries of one
gradient of a batch, plain and clipped by example, whole and in 8 micro-batches. Both add a line of
JSON to results.jsonl.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import resource
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

HERE = pathlib.Path(__file__).parent
ACCURACY = 'eval/test/accuracy'
ROWS = 640


def note(result: dict[str, Any]) -> None:
  """Prints a result and adds it to results.jsonl, with date and machine."""
  where = {'date': str(datetime.date.today()), 'machine': f'{platform.machine()}, CPU'}
  line = json.dumps({**where, **result})
  print(line, flush=True)
  with open(HERE / 'results.jsonl', 'a') as file:
    file.write(line + '\n')


def train(epsilon: float, seeds: int, words: list[str]) -> None:
  """Trains the recipe with seeds 0, 1, ... and secrets of their own."""
  found = []
  for seed in range(seeds):
    with tempfile.TemporaryDirectory() as folder:
      secret = pathlib.Path(folder, 'secret')
      secret.write_text(secrets.token_hex(32))
      given = {
        'privacy.epsilon': epsilon,
        'privacy.secret': secret,
        'seed': seed,
        'data.data_dir': pathlib.Path(os.environ['BMX_TEST_DATA'], 'tfds'),
      }
      more = [f'--{k}={v}' for k, v in given.items()] + [f'--{word}' for word in words]
      command = [sys.executable, '-m', 'bmx', 'train', 'mnist_dp', *more]
      before = resource.getrusage(resource.RUSAGE_CHILDREN)
      subprocess.run([*command, f'--workdir={folder}/run'], check=True, cwd=HERE.parent.parent)
      after = resource.getrusage(resource.RUSAGE_CHILDREN)
      summary = json.loads(pathlib.Path(folder, 'run', 'summary.json').read_text())
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    values = {k: summary['metrics'][k] for k in (ACCURACY, 'epsilon')}
    found.append({'seed': seed, 'cpu_seconds': round(spent, 1), 'steps': summary['steps']} | values)
  mean = statistics.mean(f[ACCURACY] for f in found)
  note({'train': 'mnist_dp', 'words': words, 'seeds': found, 'mean_accuracy': round(mean, 5)})


def cost(repeats: int = 3) -> None:
  """Measures gradients of the recipe's model on a batch of random images."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from bmx.core.types import Noise
  from bmx.models.cnn import CNN
  from bmx.parallel.sharding import unbox
  from bmx.privacy import Clipped
  from bmx.tasks.classification import Classification
  from bmx.train.gradients import Accumulate, Gradient

  random = np.random.default_rng(0)
  batch = {
    'image': random.normal(size=(ROWS, 28, 28, 1)).astype(np.float32),
    'label': random.integers(0, 10, ROWS).astype(np.int32),
    'weights': np.ones(ROWS, np.float32),
  }
  task, noise = Classification(CNN(10, (8, 16), 3, (32,), 'tanh')), Noise(jax.random.PRNGKey(0), 0)
  noise = noise.replace(step=jnp.int32(0))  # type: ignore
  variables = unbox(dict(task.init(noise, batch)))
  clipped = Clipped(Gradient(task))
  cases = {
    'plain': Gradient(task),
    'by example': clipped,
    'by example, 8 micro-batches': Accumulate(clipped, 8, ROWS),
  }
  for name, gradient in cases.items():
    program = jax.jit(lambda v, b, g=gradient: g(v, b, noise).sum)
    program = program.lower(variables, batch).compile()
    jax.block_until_ready(program(variables, batch))
    began = time.process_time()
    for _ in range(repeats):
      jax.block_until_ready(program(variables, batch))
    spent = (time.process_time() - began) / repeats
    memory = program.memory_analysis().temp_size_in_bytes
    note({'cost': name, 'rows': ROWS, 'cpu_seconds': round(spent, 3), 'temporary_bytes': memory})


def main() -> None:
  """Runs one of the two measurements."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('kind', choices=('train', 'cost'))
  parser.add_argument('words', nargs='*')
  parser.add_argument('--epsilon', type=float, default=2.91)
  parser.add_argument('--seeds', type=int, default=3)
  given = parser.parse_intermixed_args()
  if given.kind == 'cost':
    cost()
  else:
    train(given.epsilon, given.seeds, given.words)


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  main()
