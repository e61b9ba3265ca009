"""The host's part of a checkpoint: STEP/loop.json, and STEP.after.json of hooks that ran later."""

import logging
from collections.abc import Mapping
from typing import Any

from bmx.core.errors import InputError
from bmx.runtime.files import numbers, read_json, tolerated, write_json
from bmx.runtime.processes import anywhere
from bmx.runtime.storage import Place, is_link
from bmx.train.manifest import seal
from bmx.train.stepdirs import AFTER

log = logging.getLogger('bmx')


def newest(folder: Place, step: int) -> dict[str, Any]:
  """Returns the newest host state of a step: STEP.after.json if it is valid, else loop.json.

  Collective: every process must call.

  Args:
    folder: the directory `checkpoints` of a run.
    step: of a checkpoint.

  Raises:
    InputError: loop.json cannot be read.
  """
  loop = saved(folder, step)
  after = _after(folder, step, seal(loop))
  return loop if anywhere(after is None) else after or loop


def saved(folder: Place, step: int) -> dict[str, Any]:
  """Returns loop.json of a step. Raises InputError if it cannot be read."""
  path = folder / str(step) / 'loop.json'
  try:
    return dict(numbers(read_json(path)))
  except (OSError, ValueError, TypeError) as error:
    raise InputError(
      f'{path}: expected the state of a run: {error}; choose another with --step'
    ) from None


def _after(folder: Place, step: int, of: str) -> dict[str, Any] | None:
  """Returns the host state in STEP.after.json; None if absent, damaged or of another save."""
  path = folder / AFTER.format(step)
  if not path.is_file() or is_link(path):
    return None
  try:
    content = dict(numbers(read_json(path)))
    if content.pop('digest') == seal(content) and content['of'] == of:
      return dict(content['loop'])
  except (ValueError, KeyError, TypeError, OSError) as error:
    log.debug('%s: %s', path, error)
  log.warning('%s IS DAMAGED and is not used: the hooks of its step are repeated', path)
  return None


def write_after(folder: Place, loop: Mapping[str, Any], step: int, of: str) -> None:
  """Replaces STEP.after.json, atomically. A failure is logged: a resumed run repeats the hooks.

  Args:
    folder: the directory `checkpoints` of a run.
    loop: the host state.
    step: of the checkpoint.
    of: `seal` of its loop.json.
  """
  path, content = folder / AFTER.format(step), {'loop': dict(loop), 'of': of}
  with tolerated(path):
    write_json(path, content | {'digest': seal(content)})
