"""Weights of runs of bmx: plain, or merged from the parts that a task keeps them in."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from bmx import config as recipes
from bmx.adapt import positions
from bmx.core import hardware, tree
from bmx.core.errors import InputError
from bmx.core.types import Task, Variables
from bmx.parallel import Layout, jit
from bmx.runtime.storage import Place, place
from bmx.train import constants, manifest, package
from bmx.train.checkpoint import Checkpoints
from bmx.train.rundir import read_config
from bmx.train.state import StateSpec

log = logging.getLogger('bmx')


def is_run(folder: str) -> bool:
  """Returns whether a folder is a run of bmx, or a package of `bmx export`.

  Raises InputError if it is not a folder.
  """
  path = place(folder)
  if not folder:
    raise InputError('no weights are named: set --config.init.path=DIR, or --workdir of a run')
  if not path.is_dir():
    raise InputError(
      f'init.path={folder!r}: expected a folder; name a run of bmx, or one of Hugging Face'
    )
  return package.holds_weights(path)


def merged_params(task: Task, spec: StateSpec, folder: str, step: str, layout: Layout) -> Variables:
  """Reads the variables of a run of the same task -> its plain parameters, without the optimizer.

  Raises InputError if the checkpoint does not fit the model.
  """
  path, facts = checkpoint(folder, step)
  leaves, workdir = facts['leaves'], place(folder)
  fixed = {k: v for k, v in spec.variables.items() if k in task.constant}
  constants.check(workdir, facts.get('constants', {}), fixed)
  found = {f'{k}/{n}': v for k, c in constants.load(workdir, fixed).items()
           for n, v in tree.named(c).items()}  # fmt: skip
  for name, abstract in spec.variables.items():
    if name in task.constant:
      continue
    own = name if name == 'params' else f'collections/{name}'
    kind = f'ema/{name}' if _has(leaves, f'ema/{name}') else own
    _check_fit(path, leaves, kind, tree.named(abstract))
    found |= {f'{name}/{k}': v for k, v in _read(path, kind, tree.named(abstract)).items()}
  return jit(task.merged_params, layout)(tree.nested(found))


def statistics(
  folder: str, collections: Variables, reinit: str = '', step: str = 'latest'
) -> dict[str, jax.Array]:
  """Reads the collections (running statistics) that a run has: 'COLLECTION/NAME' -> array.

  Args:
    folder: the run.
    collections: the wanted ones, abstract.
    reinit: regex of the names that are not read.
    step: 'latest', 'best' or a number.

  Raises:
    InputError: arrays that are missing or have another shape.
  """
  if not collections:
    return {}
  path, facts = checkpoint(folder, step)
  found: dict[str, jax.Array] = {}
  for name, abstract in collections.items():
    kinds = [k for k in (f'ema/{name}', f'collections/{name}') if _has(facts['leaves'], k)]
    new = tree.named(tree.mask(abstract, reinit, required=False)) if reinit else {}
    wanted = {k: v for k, v in tree.named(abstract).items() if not new.get(k)}
    if kinds and wanted:
      _check_fit(path, facts['leaves'], kinds[0], wanted)
      found |= {f'{name}/{k}': v for k, v in _read(path, kinds[0], wanted).items()}
  return found


def _has(leaves: Mapping[str, Any], kind: str) -> bool:
  return any(name.startswith(f'{kind}/') for name in leaves)


def checkpoint(folder: str, which: str) -> tuple[Place, dict[str, Any]]:
  """Returns the folder of a verified checkpoint, and its manifest; of a package, like ones."""
  if package.is_package(place(folder)):
    step = package.check_step(place(folder), which)
    log.info('weights    of step %d of the package %s', step, folder)
    return place(folder), {'leaves': package.leaves(place(folder))}
  checkpoints = Checkpoints(place(folder) / 'checkpoints')
  step = checkpoints.newest_valid() if which == 'latest' else checkpoints.choose_whole(which)
  checkpoints.close()
  if step is None:
    raise InputError(f'{folder} has no checkpoint yet')
  log.info('weights    of step %d of %s', step, folder)
  path = checkpoints.folder / str(step)
  return path, manifest.read(path)


def load_run(folder: str, abstract: Any, reinit: str, which: str) -> dict[str, jax.Array]:
  """Reads plain parameters of a run: its moving average if it has one, and merged weights.

  See `restore.load`.
  """
  path, facts = checkpoint(folder, which)
  new = tree.named(tree.mask(abstract, reinit)) if reinit else {}
  wanted = {k: v for k, v in tree.named(abstract).items() if not new.get(k)}
  if not wanted:
    return {}
  why, kind = f' (init.reinit={reinit!r})', _params_kind(facts)
  if not facts.get('constants'):
    table = facts['leaves'].get(f'{kind}/{positions.POSITION}')
    stored = positions.as_stored(abstract, table and table[0][0])
    wanted = {k: v for k, v in tree.named(stored).items() if k in wanted}
    left = _check_fit(path, facts['leaves'], kind, wanted, why)
    _log_unused(folder, left)
    return positions.fit(_read(path, kind, wanted), abstract)
  task, variables = read_variables(folder, path, facts, wanted)
  merged = tree.named(task.merged_params(variables))
  _log_unused(folder, _compare(path, tree.signature(tree.nested(merged)), wanted, why))
  return {k: jax.device_put(merged[k], leaf.sharding) for k, leaf in wanted.items()}


def read_variables(
  folder: str, path: Place, facts: Mapping[str, Any], like: Mapping[str, Any]
) -> tuple[Task, dict[str, Any]]:
  """Reads a run whose task keeps its weights in several parts, without building its data.

  Args:
    folder: the run.
    path: of the checkpoint, see `checkpoint`.
    facts: its manifest.
    like: plain parameters, abstract: an array of the same name and shape is placed alike.

  Returns:
    (its task, 'params' and the constant collections).
  """
  params = read_params(path, facts, like)
  return read_task(folder), {**read_constants(folder, facts, like), 'params': params}


def read_params(path: Place, facts: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
  """Reads the parameters of a checkpoint as they are; see `read_variables`."""
  kind = _params_kind(facts)
  own = {k.removeprefix(f'{kind}/'): v for k, v in facts['leaves'].items()
         if k.startswith(f'{kind}/')}  # fmt: skip
  return tree.nested(_read(path, kind, tree.named(_placed(own, like))))


def read_like(path: Place, facts: Mapping[str, Any], abstract: Any) -> dict[str, jax.Array]:
  """Reads the parameters of a checkpoint, by name, placed like those of the same task.

  Raises InputError if they differ.
  """
  kind, wanted = _params_kind(facts), tree.named(abstract)
  extra = _check_fit(path, facts['leaves'], kind, wanted)
  if extra:
    raise InputError(f'{path} does not fit the model:\n  extra    ' + '\n  extra    '.join(extra))
  return _read(path, kind, wanted)


def read_constants(
  folder: str, facts: Mapping[str, Any], like: Mapping[str, Any]
) -> dict[str, Any]:
  """Reads the constant collections of a run; see `read_variables`."""
  workdir = place(folder)
  fixed = {
    name: _placed(manifest.read(workdir / constants.FOLDER / name)['leaves'], like)
    for name in facts['constants']
  }
  constants.check(workdir, facts['constants'], fixed)
  return constants.load(workdir, fixed)


def read_task(folder: str) -> Task:
  """Builds the task of a run, with choices that any device can compute."""
  part = read_config(place(folder))['config']['task']
  recipes.check_calls(part)
  # The number of outputs changes no weight that is merged.
  choices = hardware.preset('cpu', 'float32') | {'num_outputs': 1} | fitted(folder)
  part = recipes.settle(part, choices)
  return recipes.build(part, f'the task of {folder}')


def fitted(folder: str) -> dict[str, Any]:
  """Returns words of a model that a run settled by its data."""
  resolved = read_config(place(folder)).get('resolved', {})
  return {k: v for k, v in resolved.items() if k == 'num_outputs'}


def _params_kind(facts: Mapping[str, Any]) -> str:
  return 'ema/params' if _has(facts['leaves'], 'ema/params') else 'params'


def _placed(leaves: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
  """Returns abstract arrays of a manifest's leaves, placed as the wanted one of name and shape."""
  some = next(iter(wanted.values())).sharding if wanted else None
  one_device = SingleDeviceSharding(jax.local_devices()[0])
  everywhere = NamedSharding(some.mesh, PartitionSpec()) if some else one_device

  def one(name: str, shape: list[int], dtype: str) -> jax.ShapeDtypeStruct:
    like = wanted.get(name)
    at = like.sharding if like is not None and list(like.shape) == shape else everywhere
    return jax.ShapeDtypeStruct(shape, dtype, sharding=at)

  return tree.nested({name: one(name, *leaf) for name, leaf in leaves.items()})


def read_base(folder: str) -> str:
  """Returns the folder that a run took its weights from; '' if it began anew."""
  return read_config(place(folder))['config'].get('init', {}).get('path', '')


def _log_unused(folder: str, left: Sequence[str]) -> None:
  if left:
    log.info('not used   in %s: %s', folder, ', '.join(left[:8]) + ' ...' * (len(left) > 8))


def _check_fit(
  path: Place, leaves: Mapping[str, Any], kind: str, wanted: Mapping[str, Any], why: str = ''
) -> list[str]:
  """Returns the superfluous leaves. Raises InputError listing missing and different ones."""
  there = {k.removeprefix(f'{kind}/'): v for k, v in leaves.items() if k.startswith(f'{kind}/')}
  return _compare(path, there, wanted, why)


def _compare(
  path: Place, there: Mapping[str, Any], wanted: Mapping[str, Any], why: str
) -> list[str]:
  """Compares the leaves that are there with the wanted ones; see `_check_fit`."""
  lines = tree.difference(there, tree.signature(tree.nested(wanted)))
  bad = [line for line in lines if not line.startswith('extra')]
  if bad:
    raise InputError(f'{path} does not fit the model{why}:\n  ' + '\n  '.join(bad[:40]))
  return [line.split()[1] for line in lines if line.startswith('extra')]


def _read(path: Place, kind: str, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
  """Reads only the wanted leaves of 'params', 'ema/params' or 'collections/NAME', placed."""
  if package.is_package(path):
    stored = kind.removeprefix('collections/')
    found = package.arrays(path, {f'{stored}/{name}': leaf for name, leaf in wanted.items()})
    return {name.removeprefix(f'{stored}/'): leaf for name, leaf in found.items()}
  target = tree.nested({f'{kind}/{name}': leaf for name, leaf in wanted.items()})
  arguments = ocp.args.PyTreeRestore(
    item=target,
    restore_args=ocp.checkpoint_utils.construct_restore_args(target),
    partial_restore=True,
  )
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      found = tree.named(reader.restore(path, args=arguments))
  except Exception as error:  # Orbax raises many kinds
    raise InputError(f'checkpoint {path} cannot be read: {error}') from error
  return {name.removeprefix(f'{kind}/'): leaf for name, leaf in found.items()}
