"""Codes of a compressed run that a task keeps as they are: rounding them again would lose more."""

import logging
import re
from collections.abc import Mapping
from typing import Any

import jax

from bmx.adapt import runs
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Task
from bmx.models.kernels import QUANTIZED
from bmx.ops import stored
from bmx.runtime.storage import place
from bmx.train import constants, manifest
from bmx.train.state import StateSpec

log = logging.getLogger('bmx')


def kept(folder: str, task: Task, spec: StateSpec, reinit: str = '') -> dict[str, jax.Array]:
  """Reads the codes of a compressed run for a task with stored kernels: 'quantized/NAME' -> array.

  The merged weights of a run of adapters are other ones than its codes: they are rounded anew.

  Args:
    folder: that `init.path` names.
    task: of the new run.
    spec: of its state.
    reinit: regex of the parameters that are not read.

  Raises:
    InputError: a kernel that both store, in another kind or in other groups.
  """
  if QUANTIZED not in task.constant or not runs.is_run(folder):
    return {}
  path = place(folder) / constants.FOLDER
  if not (path / QUANTIZED).is_dir():
    return {}
  if (path / 'frozen').is_dir():
    log.warning('weights    the merged weights of %s are rounded to the nearest codes', folder)
    return {}
  there, wanted = _leaves(manifest.read(path / QUANTIZED)['leaves']), _wanted(spec)
  shared = [k for k in wanted if k in there and not (reinit and re.search(reinit, k))]
  _check(folder, {k: (there[k], wanted[k]) for k in shared})
  if not shared:
    return {}
  like = tree.named(spec.abstract.collections[QUANTIZED])
  _, facts = runs.checkpoint(folder, 'latest')
  codes = tree.named(runs.read_constants(folder, facts, like)[QUANTIZED])
  log.info('weights    codes of %d of %d kernels are those of %s', len(shared), len(wanted), folder)
  return {f'{QUANTIZED}/{k}': v for k, v in codes.items() if k.rpartition('/')[0] in shared}


def _wanted(spec: StateSpec) -> dict[str, dict[str, Any]]:
  return _leaves(tree.signature(spec.abstract.collections[QUANTIZED]))


def _leaves(signature: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Groups the shapes and dtypes of codes by kernel: PATH -> {'int4': ..., 'scale': ...}."""
  found: dict[str, dict[str, Any]] = {}
  for name, leaf in signature.items():
    path, _, part = name.rpartition('/')
    found.setdefault(path, {})[part] = [list(leaf[0]), str(leaf[1])]
  return found


def _check(folder: str, pairs: Mapping[str, tuple[dict[str, Any], dict[str, Any]]]) -> None:
  lines = [f'{path}: {_brief(own)} there, {_brief(new)} in the task'
           for path, (own, new) in pairs.items() if own != new]  # fmt: skip
  if lines:
    raise InputError(
      f'init.path={folder!r}: expected kernels stored as in that run, whose codes would be rounded '
      'a second time; set base and group (kind and group of Quantized) to those of the run, or '
      "task.base='float32', which keeps their values:\n  " + '\n  '.join(lines[:8])
    )


def _brief(leaf: Mapping[str, Any]) -> str:
  """Formats kind, group and factors of a stored kernel."""
  kind = stored.kind_of(leaf)
  if kind in stored.WHOLE:
    text = kind
  else:
    shape, scale = leaf[kind][0], leaf['scale'][0]
    axis = next(i for i in range(len(shape)) if scale[i] == 1 and shape[i] > 1)
    text = f'{kind} in groups of {2 * shape[axis]}'
  return text + (' with factors of the inputs' if 'inputs' in leaf else '')
