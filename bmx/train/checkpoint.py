"""Checkpoints: Orbax writes the arrays, a manifest marks them complete.

    checkpoints/STEP/               the TrainState, a nested dict of arrays, as Orbax writes it
    checkpoints/STEP/loop.json      the host's part of the state
    checkpoints/STEP/manifest.json  written last: SHA-256 of every file; name, shape, dtype of each
                                    leaf
    checkpoints/STEP.after.json     the host's part after hooks that ran later at the same step
    constants/NAME/                 constant collections, see `train.constants`

A step without a manifest is unfinished: it is ignored, and removed at the next save. Other files
and folders in `checkpoints` are left alone.
"""

import concurrent.futures
import hashlib
import json
import logging
import pathlib
import re
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.runtime.processes import agreed, anywhere
from bmx.runtime.writer import write_json
from bmx.train import constants, manifest
from bmx.train.manifest import MANIFEST
from bmx.train.state import TrainState, split_constant, with_constant

log = logging.getLogger('bmx')
RETRY_SECONDS = 5.0  # between a failed save and the next attempt
STEP_NAME = re.compile(r'(0|[1-9]\d*)')
UNFINISHED_NAME = re.compile(r'(0|[1-9]\d*)(\.orbax-checkpoint-tmp.*)?')
AFTER = '{}.after.json'


class Checkpoints:
  """The checkpoints of one run.

  Attributes:
    saved: the step that was saved or restored last; None before.

  Args:
    folder: the directory `checkpoints` of a run.
    last: number of the newest checkpoints to keep, at least 2, besides the best.
    constant: names of collections that are kept in `constants` beside `folder`, not in checkpoints.
  """

  def __init__(self, folder: pathlib.Path, last: int = 2, constant: tuple[str, ...] = ()):
    self.folder, self.last, self.constant = folder.absolute(), max(last, 2), constant
    self.digests: dict[str, str] = {}  # of the constant collections, once they are on disk
    self.saver = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
    self.pool = concurrent.futures.ThreadPoolExecutor(1)
    self.pending: tuple[concurrent.futures.Future[None], pathlib.Path] | None = None
    self.failed_at = 0.0  # time of a failure that no later save has made good; 0: none
    self.saved: int | None = None
    self.saved_loop = ''  # digest of its loop.json
    self.valid: dict[int, bool] = {}  # steps that this process wrote or verified

  def steps(self) -> list[int]:
    """Returns the steps that have a manifest, oldest first."""
    found = [p.parent for p in self.folder.glob(f'*/{MANIFEST}')]
    return sorted(int(p.name) for p in found if STEP_NAME.fullmatch(p.name) and not p.is_symlink())

  def save(self, state: TrainState, loop: Mapping[str, Any], step: int) -> None:
    """Starts to save; returns once the arrays are copied. Waits for the previous save.

    A save that fails is logged and does not raise: `failed` reports it, and the caller saves again.
    """
    self.wait()
    path = self.folder / str(step)
    self.saved, self.saved_loop = step, _digest(loop)
    try:
      self.save_constants(state)
      state = split_constant(state, self.constant)[0]
      self._clean(path)
      self.saver.save(path, args=ocp.args.StandardSave(tree.nested(tree.named(state))))
    except Exception as error:  # Orbax raises many kinds; none may end the training
      self._report(path, error)
      return
    task = self.pool.submit(self._finish, path, tree.signature(state), dict(loop))
    self.pending = task, path

  def save_constants(self, state: TrainState) -> None:
    """Writes the constant collections, once; waits until they are on disk.

    Raises Stop if they cannot be written.
    """
    fixed = split_constant(state, self.constant)[1]
    if fixed and not self.digests:
      self.digests = constants.save(self.folder.parent, fixed)

  def save_after(self, loop: Mapping[str, Any], step: int) -> None:
    """Replaces STEP.after.json, atomically; `step` is the step that was saved or restored last.

    A failure is logged: a resumed run then repeats the hooks of that step.
    """
    if jax.process_index() or step != self.saved:
      return
    content = {'loop': dict(loop), 'of': self.saved_loop}
    path = self.folder / AFTER.format(step)
    try:
      write_json(path, content | {'digest': _digest(content)})
    except OSError as error:
      log.error('%s cannot be written: %s', path, error)

  def _report(self, path: pathlib.Path, error: BaseException) -> None:
    log.error('SAVING %s FAILED, and will be tried again: %s', path, error)
    self.failed_at = time.monotonic()

  def failed(self) -> bool:
    """Whether the last save failed more than RETRY_SECONDS ago."""
    if self.pending is not None and self.pending[0].done():
      self.wait()
    return bool(self.failed_at) and time.monotonic() - self.failed_at > RETRY_SECONDS

  def _finish(self, path: pathlib.Path, leaves: dict[str, list], loop: dict[str, Any]) -> None:
    self.saver.wait_until_finished()
    first = jax.process_index() == 0
    if first:
      write_json(path / 'loop.json', loop)
    manifest.write_part(path, jax.process_index())
    if not first:
      return
    step, digests = int(path.name), self.digests
    manifest.join(path, jax.process_count(), step=step, leaves=leaves, constants=digests)
    self.valid[step] = True
    self._remove_old(loop.get('best_step'))

  def _remove_old(self, best: int | None) -> None:
    """Removes checkpoints older than the `last` newest valid ones, except the best."""
    kept = 0
    for step in reversed(self.steps()):
      if kept < self.last:
        kept += self._is_valid(step)
      elif step != best:
        shutil.rmtree(self.folder / str(step))
        (self.folder / AFTER.format(step)).unlink(missing_ok=True)

  def _is_valid(self, step: int) -> bool:
    """`verify`, once per step."""
    if step not in self.valid:
      self.valid[step] = not self.verify(step)
    return self.valid[step]

  def wait(self) -> None:
    """Waits until the save that was started is complete on disk, or has failed."""
    if self.pending is None:
      return
    (pending, path), self.pending = self.pending, None
    try:
      pending.result()
      self.failed_at = 0.0
    except Exception as error:  # as in save
      self._report(path, error)

  def close(self) -> None:
    """Waits for the save and stops the threads."""
    self.wait()
    self.pool.shutdown()
    try:
      self.saver.close()
    except Exception as error:  # Orbax raises a failed save once more; it has been reported
      log.debug('closing the saver: %s', error)

  def _clean(self, target: pathlib.Path) -> None:
    """Removes unfinished checkpoints, a damaged `target`, and after.json files without a step."""
    if jax.process_index() or not self.folder.exists():
      return
    self.valid.pop(int(target.name), None)
    for path in self.folder.iterdir():
      name = path.name.removesuffix('.after.json')
      if name != path.name and STEP_NAME.fullmatch(name):
        if name == target.name or not (self.folder / name / MANIFEST).exists():
          path.unlink()
        continue
      ours = UNFINISHED_NAME.fullmatch(name) and path.is_dir() and not path.is_symlink()
      if ours and (path == target or not (path / MANIFEST).exists()):
        log.warning('removing the unfinished or damaged checkpoint %s', path.name)
        shutil.rmtree(path)

  def choose(self, which: str) -> int:
    """Returns the step named by 'latest', 'best' or a number.

    Raises InputError if it does not exist.
    """
    steps = self.steps()
    if not steps:
      raise InputError(f'no checkpoint in {self.folder}')
    if which == 'latest':
      return steps[-1]
    if which == 'best':
      best = self.loop(steps[-1]).get('best_step')
      if best not in steps:
        raise InputError(
          f'no best checkpoint in {self.folder}: set --config.keep.metric to have one'
        )
      return best
    if not which.isdecimal() or int(which) not in steps:
      raise InputError(f'no checkpoint of step {which!r}; there are {", ".join(map(str, steps))}')
    return int(which)

  def choose_whole(self, which: str) -> int:
    """Returns `choose(which)`. Raises InputError if one of its files is damaged."""
    step = self.choose(which)
    bad = self.verify(step)
    if bad:
      raise InputError(
        f'checkpoint {step} is damaged: {"; ".join(bad)}; choose another with --step'
      )
    return step

  def loop(self, step: int) -> dict[str, Any]:
    """Returns the newest host state of a step: STEP.after.json if it is valid, else loop.json.

    Collective: every process must call.
    """
    loop = json.loads((self.folder / str(step) / 'loop.json').read_text())
    after = self._after(step, _digest(loop))
    return loop if anywhere(after is None) else after or loop

  def _after(self, step: int, of: str) -> dict[str, Any] | None:
    """Returns the host state in STEP.after.json; None if absent, damaged or of another save."""
    path = self.folder / AFTER.format(step)
    if not path.exists():
      return None
    try:
      content = dict(json.loads(path.read_text()))
      if content.pop('digest') == _digest(content) and content['of'] == of:
        return dict(content['loop'])
    except (ValueError, KeyError, TypeError, OSError) as error:
      log.debug('%s: %s', path, error)
    log.warning('%s IS DAMAGED and is not used: the hooks of its step are repeated', path)
    return None

  def verify(self, step: int) -> list[str]:
    """Returns a line for each damaged file of a checkpoint; see `manifest.damage`."""
    return manifest.damage(self.folder / str(step))

  def newest_valid(self) -> int | None:
    """Returns the newest step without damage; None if nothing was ever saved.

    Collective: every process must call; each hashes a share of the files, and all get the same
    answer.

    Raises InputError if there are checkpoints and all are damaged: a run never starts anew by
    itself.
    """
    steps = agreed(self.steps())
    share = jax.process_index(), jax.process_count()
    for step in reversed(steps):
      bad = manifest.damage(self.folder / str(step), share)
      self.valid[step] = not anywhere(bool(bad))
      if self.valid[step]:
        return step
      reason = '; '.join(bad) or 'another process found it, see the files in WORKDIR/logs'
      log.warning('CHECKPOINT %d IS DAMAGED and will not be used: %s', step, reason)
    if steps:
      raise InputError(
        f'every checkpoint in {self.folder} is damaged ({steps}); remove it to start anew'
      )
    return None

  def check(self, step: int, abstract: TrainState) -> None:
    """Compares a checkpoint and the constant collections with a state.

    Collective: every process must call.

    Raises InputError listing missing, extra and differently shaped or typed leaves; if a constant
    collection is damaged, or is not the one that the checkpoint was saved with.
    """
    path = self.folder / str(step)
    facts = manifest.read(path)
    rest, fixed = split_constant(abstract, self.constant)
    lines = tree.difference(facts['leaves'], tree.signature(rest))
    if lines:
      raise InputError(f'checkpoint {path} does not fit the model:\n  ' + '\n  '.join(lines[:40]))
    digests = facts.get('constants', {})
    if not digests or digests != self.digests:  # else written or checked by this process
      constants.check(self.folder.parent, digests, fixed)
    self.digests = digests

  def restore(self, step: int, abstract: TrainState) -> TrainState:
    """Returns the state of a step, each array placed as `abstract` is, whatever mesh wrote it.

    Raises InputError as `check` does.
    """
    self.check(step, abstract)
    path = self.folder / str(step)
    rest, fixed = split_constant(abstract, self.constant)
    target = tree.nested(tree.named(rest))
    flat = tree.named(self.saver.restore(path, args=ocp.args.StandardRestore(target)))
    loop = json.loads((path / 'loop.json').read_text())
    self.saved, self.saved_loop = step, _digest(loop)
    state = tree.map_named(lambda name, _: flat[name], rest)
    return with_constant(state, constants.load(self.folder.parent, fixed))


def _digest(value: Mapping[str, Any]) -> str:
  """SHA-256 of a value as JSON, the same before it is written and after it is read."""
  return hashlib.sha256(json.dumps(dict(value), sort_keys=True).encode()).hexdigest()
