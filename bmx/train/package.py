"""Packages: folders that `bmx export` writes, which bmx reads as it reads a run.

package.json lists the files with their SHA-256. model.safetensors holds plain weights by name:
'params/NAME' and 'COLLECTION/NAME' (running statistics). config.json, data.json and the tokenizer
are those of a run. A package has one step and no state of an optimizer.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.experiment import Experiment
from bmx.core.paths import local
from bmx.data.text import chat_template, special
from bmx.runtime.files import read_json
from bmx.runtime.storage import Place
from bmx.train import datafile
from bmx.train.manifest import sha256
from bmx.train.state import TrainState, state_spec

NAME, WEIGHTS, PROGRAM = 'package.json', 'model.safetensors', 'program.bin'
CONFIG = 'config.json'
TEMPERATURE = 'temperature.json'  # of predictions, fitted on validation data
# Files of a run that a package keeps, as far as there are, and that its readers read.
KEPT = (datafile.NAME, datafile.TOKENIZER, special.CONFIG, special.MAP, special.GENERATION,
        chat_template.NAME, TEMPERATURE)  # fmt: skip
FORMAT = 1
# Names of dtypes in a safetensors file -> those of numpy.
DTYPES = {'F64': 'float64', 'F32': 'float32', 'F16': 'float16', 'BF16': 'bfloat16',
          'I64': 'int64', 'I32': 'int32', 'U32': 'uint32', 'U8': 'uint8'}  # fmt: skip


def is_package(folder: Place) -> bool:
  """Returns whether a folder is a package."""
  return (folder / NAME).is_file()


def holds_weights(folder: Place) -> bool:
  """Returns whether a folder is a run with checkpoints, or a package."""
  return (folder / 'checkpoints').is_dir() or is_package(folder)


def read(folder: Place) -> dict[str, Any]:
  """Returns the content of package.json.

  Raises InputError if it is not that of a package, a listed file is missing or has changed, or one
  was added that would be read.
  """
  path = folder / NAME
  try:
    facts = dict(read_json(path))
    version, files = int(facts['format']), dict(facts['files'])
    facts['step'] = int(facts['step'])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(f'{path}: expected the facts of a package: {error!r}; export again') from None
  if version > FORMAT:
    raise InputError(f'{path}: format={version}: expected at most {FORMAT}; use a newer bmx')
  for name in (WEIGHTS, CONFIG, 'data.json'):
    if name not in files:
      raise InputError(f'{path}: files: expected {name} among them; export again')
  for name, digest in files.items():
    _check_file(folder, name, digest)
  added = [name for name in KEPT if name not in files and (folder / name).is_file()]
  if added:
    raise InputError(f'{folder / added[0]}: the export has no such file, and it would be read; '
                     'remove it')  # fmt: skip
  return facts


def check_config(folder: Place) -> None:
  """Raises InputError if config.json of a package is not the one that was exported."""
  digest = None
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
    digest = dict(read_json(folder / NAME))['files'][CONFIG]
  if digest is not None:
    _check_file(folder, CONFIG, digest)


def _check_file(folder: Place, name: str, digest: str) -> None:
  if pathlib.PurePath(name).name != name or not (folder / name).is_file():
    raise InputError(f'{folder / name}: expected a file of the package; export again')
  if sha256(folder / name) != digest:
    raise InputError(
      f'{folder / name}: expected the file that was exported, found another (its SHA-256 differs); '
      'export again'
    )


def leaves(folder: Place) -> dict[str, list]:
  """Returns shape and dtype of each array, by the names that a checkpoint has: 'params/NAME'."""
  with _opened(folder) as file:
    slices = {k: file.get_slice(k) for k in file.keys()}  # noqa: SIM118
    found = {k: [s.get_shape(), DTYPES.get(s.get_dtype(), s.get_dtype())]
             for k, s in slices.items()}  # fmt: skip
  return {k if k.startswith('params/') else f'collections/{k}': v for k, v in found.items()}


def arrays(folder: Place, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
  """Returns arrays of model.safetensors by name, placed as the abstract ones of `wanted`."""
  with _opened(folder) as file:
    return {k: jax.device_put(file.get_tensor(k), v.sharding) for k, v in wanted.items()}


def check_step(folder: Place, which: str) -> int:
  """Returns the step of a package, whose files are whole; `which` as of checkpoints.

  Raises InputError for another step than that of the package; see `read`.
  """
  step = read(folder)['step']
  if which not in ('latest', str(step)):
    raise InputError(f'--step={which}: expected {step}, the step of the package {folder}')
  return step


def restored(x: Experiment, folder: Place, which: str) -> tuple[TrainState, int]:
  """Returns a new state with the weights of a package, and its step; see `train.run.restored`.

  Raises InputError if the package is damaged, or does not fit the experiment.
  """
  step, spec = check_step(folder, which), state_spec(x)
  given = {k.removeprefix('collections/'): v for k, v in leaves(folder).items()}
  lines = tree.difference(given, tree.signature(spec.variables))
  if lines:
    raise InputError('\n  '.join([f'{folder} does not fit the model:', *lines[:40]]))
  state = spec.create(arrays(folder, tree.named(spec.variables)))
  placed = jax.device_put(np.int32(step), spec.shardings.step)
  return state.replace(step=placed), step  # type: ignore


@contextlib.contextmanager
def _opened(folder: Place) -> Iterator[Any]:
  """Opens model.safetensors. Raises InputError if it cannot be read."""
  path = local(folder) / WEIGHTS
  try:
    with safe_open(path, 'np') as file:
      yield file
  except (SafetensorError, OSError) as error:
    raise InputError(f'{path} cannot be read: {error}') from None
