"""Initial weights: those of a run of bmx, or of a Hugging Face directory."""

import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import orbax.checkpoint as ocp

from bmx import config as recipes
from bmx.adapt import hub
from bmx.adapt.classes import check_order
from bmx.core import hardware, tree
from bmx.core.errors import InputError, did_you_mean
from bmx.core.types import Task, Variables
from bmx.parallel import Layout, jit
from bmx.runtime.storage import Place, place
from bmx.train import constants, manifest
from bmx.train.checkpoint import Checkpoints
from bmx.train.rundir import read_config
from bmx.train.state import StateSpec, TrainState

log = logging.getLogger('bmx')


def is_run(folder: str) -> bool:
  """Returns whether a folder is a run of bmx. Raises InputError if it is not a folder."""
  path = place(folder)
  if not folder:
    raise InputError('no weights are named: set --config.init.path=DIR, or --workdir of a run')
  if not path.is_dir():
    raise InputError(
      f'init.path={folder!r}: expected a folder; name a run of bmx, or one of Hugging Face'
    )
  return (path / 'checkpoints').is_dir()


def start(
  task: Task, spec: StateSpec, init: Mapping[str, str], classes: Sequence[str] = ()
) -> TrainState:
  """Makes a new state from the folders that the config word `init` names.

  `Task.take` receives the plain weights of init.path; running statistics of a run are read with
  them. Every other collection of `Task.sources` is read from init.COLLECTION.

  Args:
    task: of the run.
    spec: shapes and placement of its state.
    init: 'path', 'reinit' (regex of parameters that are not read) and folders by collection.
    classes: of the data, by number.

  Raises:
    InputError: a source without a folder, a folder without a source; parameters that are missing
      or have another shape (all are listed); a head for the same classes in another order.
  """
  folders = {k: v for k, v in init.items() if k not in ('path', 'reinit')}
  for name in folders:
    if name not in task.sources:
      raise InputError(f'init.{name}={folders[name]!r}: the task reads no collection {name!r} from '
                       f'a folder{did_you_mean(name, task.sources)}')  # fmt: skip
  given: dict[str, jax.Array] = {}
  for name, (folder, source) in task.sources.items():
    folder = folders.get(name) or folder
    if not folder:
      raise InputError(f'init.{name}={folder!r}: expected the folder of the weights of {name!r}')
    found = load_variables(folder, spec.abstract.collections[name], source)
    check_order(folder, is_run(folder), found, classes, name)
    given |= {f'{name}/{k}': v for k, v in found.items()}
  plain: dict[str, jax.Array] = {}
  if init['path']:
    plain = load(init['path'], spec.plain, init['reinit'])
    check_order(init['path'], is_run(init['path']), plain, classes)
    total = len(tree.named(spec.plain))
    log.info('weights    %d of %d parameters from %s', len(plain), total, init['path'])
    collections = {k: v for k, v in spec.abstract.collections.items() if k in task.averaged}
    given |= _statistics(init['path'], collections, init['reinit'])
  return spec.create(given, plain)


def load(
  folder: str, abstract: Any, reinit: str = '', step: str = 'latest'
) -> dict[str, jax.Array]:
  """Reads plain parameters: name -> array, placed like `abstract`.

  Args:
    folder: a run of bmx, or a Hugging Face directory.
    abstract: parameters with shardings.
    reinit: regex of the names that are not read.
    step: of a run, 'latest', 'best' or a number.

  Raises:
    InputError: parameters that are missing or have another shape; a run whose weights are in
      several parts.
  """
  if is_run(folder):
    return _load_run(folder, abstract, reinit, step)
  return hub.load(folder, abstract, reinit)


def merged_params(task: Task, spec: StateSpec, folder: str, step: str, layout: Layout) -> Variables:
  """Reads the variables of a run of the same task -> its plain parameters, without the optimizer.

  Raises InputError if the checkpoint does not fit the model.
  """
  path, facts = _checkpoint(folder, step)
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


def load_variables(folder: str, abstract: Variables, task: Task) -> dict[str, jax.Array]:
  """Reads all variables of a task: 'params/NAME' and 'COLLECTION/NAME' -> array.

  Raises InputError if the folder lacks a collection that the task has.
  """
  params = load(folder, abstract['params'])
  found = {f'params/{k}': v for k, v in params.items()}
  found |= _statistics(folder, {k: v for k, v in abstract.items() if k in task.averaged})
  missing = {k for k in tree.named(abstract) if k not in found}
  if missing:
    raise InputError(f'{folder} lacks {", ".join(sorted(missing)[:8])}')
  return found


def _statistics(folder: str, collections: Variables, reinit: str = '') -> dict[str, jax.Array]:
  """Reads the collections (running statistics) that a run has: 'COLLECTION/NAME' -> array.

  Args:
    folder: a run of bmx, or a Hugging Face directory, which has none.
    collections: the wanted ones, abstract.
    reinit: regex of the names that are not read.

  Raises:
    InputError: arrays that are missing or have another shape.
  """
  if not collections or not is_run(folder):
    return {}
  path, facts = _checkpoint(folder, 'latest')
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


def _checkpoint(folder: str, which: str) -> tuple[Place, dict[str, Any]]:
  """Returns the folder of a verified checkpoint, and its manifest."""
  checkpoints = Checkpoints(place(folder) / 'checkpoints')
  step = checkpoints.newest_valid() if which == 'latest' else checkpoints.choose_whole(which)
  checkpoints.close()
  if step is None:
    raise InputError(f'{folder} has no checkpoint yet')
  log.info('weights    of step %d of %s', step, folder)
  path = checkpoints.folder / str(step)
  return path, manifest.read(path)


def _load_run(folder: str, abstract: Any, reinit: str, which: str) -> dict[str, jax.Array]:
  """Reads parameters from a checkpoint of a run: its moving average if it has one."""
  if (place(folder) / 'constants').is_dir():
    raise InputError(
      f'{folder} holds adapters of weights that are kept apart; export its merged weights first'
    )
  path, facts = _checkpoint(folder, which)
  leaves = facts['leaves']
  kind = 'ema/params' if _has(leaves, 'ema/params') else 'params'
  new = tree.named(tree.mask(abstract, reinit)) if reinit else {}
  wanted = {k: v for k, v in tree.named(abstract).items() if not new.get(k)}
  left = _check_fit(path, leaves, kind, wanted, f' (init.reinit={reinit!r})')
  if left:
    log.info('not used   in %s: %s', folder, ', '.join(left[:8]) + ' ...' * (len(left) > 8))
  return _read(path, kind, wanted) if wanted else {}


def _check_fit(
  path: Place, leaves: Mapping[str, Any], kind: str, wanted: Mapping[str, Any], why: str = ''
) -> list[str]:
  """Returns the superfluous leaves. Raises InputError listing missing and different ones."""
  there = {k.removeprefix(f'{kind}/'): v for k, v in leaves.items() if k.startswith(f'{kind}/')}
  lines = tree.difference(there, tree.signature(tree.nested(wanted)))
  bad = [line for line in lines if not line.startswith('extra')]
  if bad:
    raise InputError(f'{path} does not fit the model{why}:\n  ' + '\n  '.join(bad[:40]))
  return [line.split()[1] for line in lines if line.startswith('extra')]


def _read(path: Place, kind: str, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
  """Reads only the wanted leaves of 'params', 'ema/params' or 'collections/NAME', placed."""
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


def model(path: str, **overrides: Any) -> nn.Module:
  """Builds the model whose weights `path` holds.

  Args:
    path: a run of bmx, or a Hugging Face directory.
    overrides: arguments of its decoder or encoder (attention, dtype, dropout, scan, ...).
  """
  return recipes.build(_part(path, overrides), f'the model of {path}')


def encoder(path: str, **overrides: Any) -> nn.Module:
  """Builds the encoder of the model whose weights `path` holds, without its head.

  Args:
    path: a run of bmx, or a Hugging Face directory.
    overrides: arguments of the encoder.
  """
  return recipes.build(_part(path, overrides, 'encoder'), f'the encoder of {path}')


OWN = {'bmx.adapt.restore:model': '', 'bmx.adapt.restore:encoder': 'encoder'}


def concrete(part: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a part in which the models of folders are replaced by their own parts.

  Thus the config of a run holds its sizes, and the folder is never read again.
  """
  found: dict[str, Any] = {k: concrete(v) if isinstance(v, Mapping) else v for k, v in part.items()}
  if found.get('call') not in OWN:
    return found
  given = {k: v for k, v in found.items() if k not in ('call', 'path')}
  return _part(found['path'], given, OWN[found['call']])


def _fitted(folder: str) -> dict[str, Any]:
  """Returns words of a model that a run settled by its data."""
  resolved = read_config(place(folder)).get('resolved', {})
  return {k: v for k, v in resolved.items() if k == 'num_outputs'}


def _part(
  path: str, overrides: Mapping[str, Any], inner: str = '', seen: tuple[Place, ...] = ()
) -> dict[str, Any]:
  """Returns the part that builds the model of a folder, or the encoder inside it.

  Raises InputError if folders name each other (`seen`).
  """
  own = place(path)
  own = own.resolve() if isinstance(own, pathlib.Path) else own
  if own in seen:
    raise InputError(f'{path}: expected a run that holds weights; its model is that of itself')
  if not is_run(path):
    part = hub.part(path)
    if inner and 'encoder' not in part and not part['call'].startswith('bmx.models.bert:'):
      raise InputError(f'{path} holds {part["call"]}: expected an encoder')
  else:
    part = read_config(place(path))['config']['task'].get('model', {})
    recipes.check_calls(part)
    if part.get('call') in OWN:  # a run that was stored before its model was written out
      given = {**{k: v for k, v in part.items() if k not in ('call', 'path')}, **overrides}
      return _part(part['path'], given, inner or OWN[part['call']], (*seen, own))
    if inner and inner not in part:
      raise InputError(f'{path} has a model {part.get("call")!r}: expected one with an {inner}')
    # What another run's config left open is settled as any device can compute it.
    part = recipes.settle(part, hardware.preset('cpu', 'float32') | _fitted(path))
  if 'encoder' in part:
    part = part['encoder'] | dict(overrides) if inner else {
      **part, 'encoder': {**part['encoder'], **overrides}
    }  # fmt: skip
    return dict(part)
  return {**part, **overrides}
