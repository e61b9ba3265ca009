"""Initial weights: those of a run of bmx, or of a Hugging Face directory."""

import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax

from bmx import config as recipes
from bmx.adapt import adapters, codes, hub, peft
from bmx.adapt.classes import check_order
from bmx.adapt.runs import fitted, is_run, load_run, merged_params
from bmx.adapt.runs import statistics as run_statistics
from bmx.adapt.tokens import check_tokenizer
from bmx.core import hardware, tree
from bmx.core.errors import InputError, did_you_mean
from bmx.core.types import Task, Variables
from bmx.runtime.storage import Place, place
from bmx.train.rundir import read_config
from bmx.train.state import StateSpec, TrainState, variables_of

__all__ = ['concrete', 'encoder', 'is_run', 'load', 'load_variables', 'merged_params', 'model',
           'start', 'statistics']  # fmt: skip

log = logging.getLogger('bmx')


def start(
  task: Task,
  spec: StateSpec,
  init: Mapping[str, str],
  classes: Sequence[str] = (),
  tokenizer: str | None = None,
) -> TrainState:
  """Makes a new state from the folders that the config word `init` names.

  `Task.take` receives the plain weights of init.path; running statistics are read with them. Every
  other collection of `Task.sources` is read from init.COLLECTION.

  Args:
    task: of the run.
    spec: shapes and placement of its state.
    init: 'path', 'reinit' (regex of parameters that are not read), 'adapter' (a folder of PEFT, or
      a run of adapters) and folders by collection.
    classes: of the data, by number.
    tokenizer: text of the tokenizer.json of the data; '' of bytes, None if it is not known.

  Raises:
    InputError: a source without a folder, a folder without a source; parameters that are missing
      or have another shape (all are listed); a head for the same classes in another order; a source
      with another tokenizer.
  """
  folders = {k: v for k, v in init.items() if k not in ('path', 'reinit', 'adapter')}
  for name in folders:
    if name not in task.sources:
      raise InputError(f'init.{name}={folders[name]!r}: the task reads no collection {name!r} from '
                       f'a folder{did_you_mean(name, task.sources)}')  # fmt: skip
  given: dict[str, Any] = {}
  for name, (folder, source) in task.sources.items():
    folder = folders.get(name) or folder
    if not folder:
      raise InputError(f'init.{name}={folder!r}: expected the folder of the weights of {name!r}')
    check_tokenizer(folder, tokenizer, name)
    found = load_variables(folder, spec.abstract.collections[name], source)
    check_order(folder, is_run(folder), found, classes, name)
    given |= {f'{name}/{k}': v for k, v in found.items()}
  plain: dict[str, jax.Array] = {}
  fixed = [k for k in task.constant if k not in task.sources]
  if init['path']:
    plain = load(init['path'], spec.plain, init['reinit'])
    check_order(init['path'], is_run(init['path']), plain, classes)
    total = len(tree.named(spec.plain))
    log.info('weights    %d of %d parameters from %s', len(plain), total, init['path'])
    collections = {k: v for k, v in spec.abstract.collections.items() if k in task.averaged}
    given |= statistics(init['path'], collections, init['reinit'])
    given |= codes.kept(init['path'], task, spec, init['reinit'])
    given |= peft.record_base(task, spec, plain)
  elif any(tree.has_floats(spec.abstract.collections[k]) for k in fixed):
    log.warning(
      'init.path is empty: weights that no step changes (%s) are random', ', '.join(fixed)
    )
  adapter = init.get('adapter', '')
  if not adapter:
    return spec.create(given, plain)
  if not place(adapter).is_dir():
    raise InputError(
      f'init.adapter={adapter!r}: expected a folder; name one of PEFT, or a run of adapters'
    )
  if is_run(adapter):
    state = spec.create(given | adapters.read_given(adapter, task, spec), plain)
    adapters.check_base(adapter, state.collections)
    return state
  state = spec.create(given | peft.load(adapter, task, spec.abstract.params), plain)
  peft.check_base(adapter, variables_of(state))
  return state


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
    InputError: parameters that are missing or have another shape.
  """
  if is_run(folder):
    return load_run(folder, abstract, reinit, step)
  return hub.load(folder, abstract, reinit)


def statistics(
  folder: str, collections: Variables, reinit: str = '', step: str = 'latest'
) -> dict[str, jax.Array]:
  """Reads running statistics: 'COLLECTION/NAME' -> array; {} where the folder has none.

  Args:
    folder: a run of bmx, or a Hugging Face directory.
    collections: the wanted ones, abstract.
    reinit: regex of the names that are not read.
    step: of a run, 'latest', 'best' or a number.

  Raises:
    InputError: arrays that are missing or have another shape.
  """
  if is_run(folder):
    return run_statistics(folder, collections, reinit, step)
  return hub.statistics(folder, collections, reinit)


def load_variables(folder: str, abstract: Variables, task: Task) -> dict[str, jax.Array]:
  """Reads all variables of a task: 'params/NAME' and 'COLLECTION/NAME' -> array.

  Raises InputError if the folder lacks a collection that the task has.
  """
  params = load(folder, abstract['params'])
  found = {f'params/{k}': v for k, v in params.items()}
  found |= statistics(folder, {k: v for k, v in abstract.items() if k in task.averaged})
  missing = {k for k in tree.named(abstract) if k not in found}
  if missing:
    raise InputError(f'{folder} lacks {", ".join(sorted(missing)[:8])}')
  return found


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


def _innermost(task: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns the part of the task inside all wrappers (adapters, distillation)."""
  while isinstance(task.get('inner'), Mapping):
    task = task['inner']
  return task


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
    part = _innermost(read_config(place(path))['config']['task']).get('model', {})
    recipes.check_calls(part)
    if part.get('call') in OWN:  # a run that was stored before its model was written out
      given = {**{k: v for k, v in part.items() if k not in ('call', 'path')}, **overrides}
      return _part(part['path'], given, inner or OWN[part['call']], (*seen, own))
    if inner and inner not in part:
      raise InputError(f'{path} has a model {part.get("call")!r}: expected one with an {inner}')
    # What another run's config left open is settled as any device can compute it.
    part = recipes.settle(part, hardware.preset('cpu', 'float32') | fitted(path))
  if 'encoder' in part:
    part = part['encoder'] | dict(overrides) if inner else {
      **part, 'encoder': {**part['encoder'], **overrides}
    }  # fmt: skip
    return dict(part)
  # Words of a tower are added to its own.
  inside = {k: {**part[k], **v} for k, v in overrides.items()
            if isinstance(v, Mapping) and isinstance(part.get(k), Mapping)}  # fmt: skip
  return {**part, **overrides, **inside}
