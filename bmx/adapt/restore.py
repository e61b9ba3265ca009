"""Weights to start from: those of a run of bmx, or of a Hugging Face directory."""

import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import orbax.checkpoint as ocp

from bmx import config as recipes
from bmx.adapt import hub
from bmx.core import hardware, tree
from bmx.core.errors import InputError
from bmx.train.checkpoint import Checkpoints
from bmx.train.manifest import MANIFEST
from bmx.train.rundir import read_config
from bmx.train.state import Plan

log = logging.getLogger('bmx')


def is_run(folder: str) -> bool:
  """Whether a folder is a run of bmx. Raises InputError where it is no folder at all."""
  path = pathlib.Path(folder)
  if not folder:
    raise InputError('no weights are named: set --config.init.path=DIR, or --workdir of a run')
  if not path.is_dir():
    raise InputError(
      f'init.path={folder!r} is no folder: name a run of bmx, or one of Hugging Face'
    )
  return (path / 'checkpoints').is_dir()


def start(plan: Plan, folder: str, fresh: str = '') -> Any:
  """A new TrainState whose parameters are those of `folder`, but for names that `fresh` matches.

  What the folder has and the model has no place for (another head) is left there, and told.

  Raises InputError listing every parameter that is missing or has another shape.
  """
  found = load(folder, plan.abstract.params, fresh)
  names = tree.named(plan.abstract.params)
  log.info('weights    %d of %d parameters from %s', len(found), len(names), folder)
  return plan.create(found)


def load(folder: str, abstract: Any, fresh: str = '', step: str = 'latest') -> dict[str, jax.Array]:
  """name -> array placed as `abstract` says, but for the names that `fresh` matches. step: of a
  run, 'latest', 'best' or a number."""
  if is_run(folder):
    return _load_run(folder, abstract, fresh, step)
  return hub.load(folder, abstract, fresh)


def _load_run(folder: str, abstract: Any, fresh: str, which: str) -> dict[str, jax.Array]:
  """From a checkpoint of a run: its moving average where it has one."""
  checkpoints = Checkpoints(pathlib.Path(folder) / 'checkpoints')
  step = checkpoints.newest_valid() if which == 'latest' else checkpoints.choose_whole(which)
  checkpoints.close()
  if step is None:
    raise InputError(f'{folder} has no checkpoint yet')
  log.info('weights    of step %d of %s', step, folder)
  path = checkpoints.folder / str(step)
  leaves = json.loads((path / MANIFEST).read_text())['leaves']
  kind = 'ema' if any(name.startswith('ema/') for name in leaves) else 'params'
  there = {k.removeprefix(f'{kind}/'): v for k, v in leaves.items() if k.startswith(f'{kind}/')}
  new = tree.named(tree.mask(abstract, fresh)) if fresh else {}
  wanted = {k: v for k, v in tree.named(abstract).items() if not new.get(k)}
  lines = tree.difference(there, tree.signature(tree.nested(wanted)))
  left = [line.split()[1] for line in lines if line.startswith('extra')]
  bad = [line for line in lines if not line.startswith('extra')]
  if bad:
    raise InputError(
      f'{path} does not fit the model (init.reinit={fresh!r}):\n  ' + '\n  '.join(bad[:40])
    )
  if left:
    log.info('left       in %s: %s', folder, ', '.join(left[:8]) + ' ...' * (len(left) > 8))
  return _read(path, kind, wanted) if wanted else {}


def _read(path: pathlib.Path, kind: str, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
  """Only the leaves that are wanted, each placed as it says."""
  target = {kind: tree.nested(wanted)}
  arguments = ocp.args.PyTreeRestore(
    item=target,
    restore_args=ocp.checkpoint_utils.construct_restore_args(target),
    partial_restore=True,
  )
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
    return tree.named(reader.restore(path, args=arguments)[kind])


def model(path: str, **overrides: Any) -> nn.Module:
  """The model that `path` holds the weights of; `overrides` are arguments of its decoder or
  encoder (attention, dtype, dropout, scan, ...)."""
  return _build(path, overrides) if is_run(path) else hub.model(path, **overrides)


def encoder(path: str, **overrides: Any) -> nn.Module:
  """The encoder of that model, without its head, for another one."""
  if not is_run(path):
    return hub.encoder(path, **overrides)
  return _build(path, overrides, 'encoder')


def _build(path: str, overrides: Mapping[str, Any], inner: str = '') -> Any:
  part = read_config(pathlib.Path(path))['config']['task'].get('model', {})
  recipes.check_calls(part)
  if part.get('call') == 'bmx.adapt.restore:model':
    given = {**{k: v for k, v in part.items() if k != 'call'}, **overrides}
    return encoder(**given) if inner else model(**given)
  if inner and inner not in part:
    raise InputError(f'{path} has a model {part.get("call")!r} without an {inner}')
  if 'encoder' in part:
    settled = {**part['encoder'], **overrides}
    part = settled if inner else {**part, 'encoder': settled}
  else:
    part = {**part, **overrides}
  # Nobody settles what another run's config left open: as any device can compute it.
  part = recipes.settle(part, hardware.preset('cpu', 'float32'))
  return recipes.build(part, f'the model of {path}')
