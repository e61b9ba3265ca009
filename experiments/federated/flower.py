"""Two silos and a server as processes of Flower, against the simulation; writes flower.json.

    python -m venv FLOWER
    FLOWER/bin/pip install flwr==1.41.0 jax==0.10.2 flax optax orbax-checkpoint grain \
      ml_collections scikit-learn scipy pyarrow safetensors tensorboardX pillow importlib_resources
    python experiments/federated/flower.py FLOWER FOLDER

Each silo has a folder in FOLDER with digits of its own and reads no other; the server has none of
theirs. After round 1 silo 1 is killed, after round 3 it is started again. The parameters after the
last round are compared with those of a simulation in this process, in which a silo that did not
answer has no rows. Takes minutes: Flower starts a process for each answer.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from silo_recipe import built
from sklearn.datasets import load_digits

from bmx.core import tree
from bmx.parallel import jit
from bmx.train.state import state_spec
from bmx.train.step import train_step

HERE = pathlib.Path(__file__).parent
SIZES, ROUNDS, PORT = [900, 537], 6, 19094
KILL_AFTER, START_AFTER = 1, 3  # rounds
TIMEOUT, PATIENCE, MOST_SECONDS = 90, 15, 1500
PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "bmx-federated"
version = "1.0.0"
description = "bmx and Flower"
license = "Apache-2.0"
dependencies = []
[tool.hatch.build.targets.wheel]
packages = ["."]
[tool.flwr.app]
publisher = "bmx"
[tool.flwr.app.components]
serverapp = "flower_app:server"
clientapp = "flower_app:client"
[tool.flwr.app.config]
"""
SUPERLINK = '[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{}"\ninsecure = true\n'


def write_folders(folder: pathlib.Path) -> list[str]:
  """Writes the archives of silos and server, and the app -> archives of the silos."""
  folder.mkdir(parents=True, exist_ok=True)
  digits: Any = load_digits()
  order = np.random.default_rng(0).permutation(len(digits.target))
  parts = np.split(order, np.cumsum(SIZES))
  paths = []
  for name, part in zip(('silo_0', 'silo_1', 'server'), parts, strict=True):
    (folder / name).mkdir()
    paths.append(str(folder / name / 'digits.npz'))
    image = digits.images[part].astype(np.float32)[..., None]
    np.savez(paths[-1], image=image, label=digits.target[part])
  app = folder / 'app'
  app.mkdir()
  for name in ('flower_app.py', 'silo_recipe.py'):
    shutil.copy(HERE / name, app)
  words = {'rounds': ROUNDS, 'sizes': json.dumps(SIZES), 'folder': str(folder / 'server'),
           'public': paths[2], 'timeout': TIMEOUT, 'patience': PATIENCE}  # fmt: skip
  (app / 'pyproject.toml').write_text(
    PROJECT + ''.join(f'{k} = {json.dumps(v)}\n' for k, v in words.items())
  )
  (folder / 'flwr').mkdir()
  (folder / 'flwr' / 'config.toml').write_text(SUPERLINK.format(f'127.0.0.1:{PORT}'))
  return paths[:2]


class Processes:
  """The processes of Flower, each a group of its own.

  Args:
    flower: folder of its environment.
    folder: of the run.
  """

  def __init__(self, flower: pathlib.Path, folder: pathlib.Path):
    self.flower, self.folder = flower.absolute(), folder
    self.running: dict[str, subprocess.Popen] = {}
    own = {'FLWR_HOME': str(folder / 'flwr'), 'FLWR_TELEMETRY_ENABLED': '0', 'JAX_PLATFORMS': 'cpu',
           'PATH': f'{self.flower}/bin:{os.environ["PATH"]}',
           'PYTHONPATH': str(HERE.parent.parent)}  # fmt: skip
    self.environment = {**os.environ, **own}

  def start(self, name: str, *command: str, cwd: str = '') -> None:
    """Starts a program of Flower's environment."""
    with open(self.folder / f'{name}.log', 'a') as log:
      self.running[name] = subprocess.Popen(
        [str(self.flower / 'bin' / command[0]), *command[1:]],
        cwd=self.folder / cwd,
        env=self.environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
      )

  def silo(self, number: int, archive: str) -> None:
    """Starts a silo."""
    config = f'silo={number} archive="{archive}"'
    self.start(f'silo_{number}', 'flower-supernode', '--insecure', f'--superlink=127.0.0.1:{PORT}',
               f'--port={PORT + 1 + number}', f'--node-config={config}',
               cwd=f'silo_{number}')  # fmt: skip

  def kill(self, name: str) -> None:
    """Kills a program and all that it started, as a lost machine would end."""
    process = self.running.pop(name)
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextlib.contextmanager
def flower(environment: pathlib.Path, folder: pathlib.Path) -> Iterator[Processes]:
  """Context of a SuperLink; kills what still runs at its end."""
  processes = Processes(environment, folder)
  try:
    processes.start('superlink', 'flower-superlink', '--insecure', f'--port={PORT}',
                    '--disable-runtime-dependency-installation')  # fmt: skip
    while 'running on' not in (folder / 'superlink.log').read_text():
      time.sleep(0.5)
      if processes.running['superlink'].poll() is not None:
        sys.exit((folder / 'superlink.log').read_text())
    yield processes
  finally:
    for name in list(processes.running):
      processes.kill(name)


def rounds(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The lines that the server has written."""
  path = folder / 'server' / 'rounds.jsonl'
  return [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []


def train(environment: pathlib.Path, folder: pathlib.Path, archives: list[str]) -> None:
  """Trains with Flower, while silo 1 is killed and started again."""
  began, killed, again = time.time(), False, False
  with flower(environment, folder) as processes:
    for number, archive in enumerate(archives):
      processes.silo(number, archive)
    processes.start('run', 'flwr', 'run', 'app', 'here')
    while not (folder / 'server' / 'params.npz').exists():
      if time.time() - began > MOST_SECONDS or processes.running['run'].poll():
        names = ('superlink', 'silo_0', 'run')
        logs = [(folder / f'{name}.log').read_text()[-3000:] for name in names]
        sys.exit('\n'.join(['no result', *logs]))
      done = len(rounds(folder))
      if done > KILL_AFTER and not killed:
        print(f'round {done - 1} has ended: silo 1 is killed', flush=True)
        processes.kill('silo_1')
        killed = True
      if done > START_AFTER and not again:
        print(f'round {done - 1} has ended: silo 1 is started again', flush=True)
        processes.silo(1, archives[1])
        again = True
      time.sleep(0.5)


def simulated(archives: list[str], answered: list[list[str]]) -> list[Any]:
  """Returns the parameters of the simulation, by name, given who answered in each round."""
  x = built({f'silo_{i}': path for i, path in enumerate(archives)})
  step, state = jit(train_step(x), x.layout), state_spec(x).create()
  rows = x.data.batch_size
  for number, silos in enumerate(answered):
    indices, weights = (part[0] for part in x.data.compose(number, 1))
    batch = x.data.rows(indices, number * rows + np.arange(rows))
    there = np.isin(batch['client'], [int(s) for s in silos])
    state, _ = step(state, {**batch, 'weights': np.where(there, weights, 0).astype(np.float32)})
  return list(tree.named(jax.device_get(state.params)).values())


def main() -> None:
  """Runs both and compares them."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('flower', type=pathlib.Path, help='folder of the environment of Flower')
  parser.add_argument(
    'folder', type=pathlib.Path, help='of the silos; if it has run, only compares'
  )
  given = parser.parse_args()
  folder, trained = given.folder.absolute(), given.folder / 'server' / 'params.npz'
  if not trained.exists():
    train(given.flower, folder, write_folders(folder))
  lines = rounds(folder)
  with np.load(trained) as file:
    found = [file[k] for k in file.files]
  archives = [str(folder / f'silo_{i}' / 'digits.npz') for i in range(len(SIZES))]
  expected = simulated(archives, [line['silos'] for line in lines])
  flat = [np.concatenate([np.ravel(x) for x in arrays]) for arrays in (found, expected)]
  difference = float(np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1]))
  result = {
    'date': datetime.date.today().isoformat(),
    'machine': f'{os.cpu_count()} × {platform.machine()} CPU, shared with other work',
    'flwr': '1.41.0',
    'silos': SIZES,
    'rounds': lines,
    'relative_difference_of_parameters': difference,
  }
  (HERE / 'flower.json').write_text(json.dumps(result, indent=1) + '\n')
  print(json.dumps(result, indent=1))


if __name__ == '__main__':
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  main()
