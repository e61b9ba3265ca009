"""Checkpoints: Orbax writes the arrays, a manifest marks them complete.

    checkpoints/STEP/               the TrainState, a nested dict of arrays, as Orbax writes it
    checkpoints/STEP/loop.json      the host's part of the state
    checkpoints/STEP/manifest.json  written last: step; identity of the run; name, shape, dtype of
                                    each leaf; SHA-256 of every file and of itself
    checkpoints/STEP.after.json     the host's part after hooks that ran later at the same step
    constants/NAME/                 constant collections, see `train.constants`

A step without a manifest is unfinished: it is ignored, and removed at the next save. Other files
and folders in `checkpoints` are left alone, see `train.stepdirs`.
"""

import concurrent.futures
import logging
import time
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.runtime import storage
from bmx.runtime.files import read_json, tolerated, write_json
from bmx.runtime.processes import agreed, anywhere
from bmx.runtime.storage import Place
from bmx.train import constants, hoststate, manifest, stepdirs
from bmx.train.manifest import seal
from bmx.train.state import TrainState, split_constant, with_constant

log = logging.getLogger('bmx')
RETRY_SECONDS = 5.0  # between a failed save and the next attempt


class Checkpoints:
  """The checkpoints of one run.

  Attributes:
    saved: the step that was saved or restored last; None before.

  Args:
    folder: the directory `checkpoints` of a run.
    last: number of the newest checkpoints to keep, at least 2, besides the best.
    constant: names of collections that are kept in `constants` beside `folder`, not in checkpoints.
  """

  def __init__(self, folder: Place, last: int = 2, constant: tuple[str, ...] = ()):
    self.folder = storage.absolute(folder)
    stepdirs.check_path(self.folder)
    self.last, self.constant = max(last, 2), constant
    self.digests: dict[str, str] = {}  # of the constant collections, once they are on disk
    self.saver = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
    self.pool = concurrent.futures.ThreadPoolExecutor(1)
    self.pending: tuple[concurrent.futures.Future[None], Place] | None = None
    self.failed_at = 0.0  # time of a failure that no later save has made good; 0: none
    self.saved: int | None = None
    self.saved_loop = ''  # digest of its loop.json
    self.valid: dict[int, bool] = {}  # steps that this process wrote or verified

  def steps(self) -> list[int]:
    """Returns the steps that have a manifest, oldest first."""
    return stepdirs.steps(self.folder)

  def save(self, state: TrainState, loop: Mapping[str, Any], step: int) -> None:
    """Starts to save; returns once the arrays are copied. Waits for the previous save.

    A save that fails is logged and does not raise: `failed` reports it, and the caller saves again.
    Raises manifest.Untold if this process failed and process 0 waits for it.
    """
    self.wait()
    path = self.folder / str(step)
    self.saved, self.saved_loop = step, seal(loop)
    try:
      self.save_constants(state)
      state = split_constant(state, self.constant)[0]
      if not jax.process_index():
        self.valid.pop(step, None)
        stepdirs.clean(self.folder, path)
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
    hoststate.write_after(self.folder, loop, step, self.saved_loop)

  def _report(self, path: Place, error: BaseException) -> None:
    log.error('SAVING %s FAILED, and will be tried again: %s', path, error)
    self.failed_at = time.monotonic()

  def failed(self) -> bool:
    """Whether the last save failed more than RETRY_SECONDS ago."""
    if self.pending is not None and self.pending[0].done():
      self.wait()
    return bool(self.failed_at) and time.monotonic() - self.failed_at > RETRY_SECONDS

  def failed_anywhere(self) -> bool:
    """Whether the last save failed on any process. Collective: every process must call."""
    return anywhere(bool(self.failed_at))

  def _finish(self, path: Place, leaves: dict[str, list], loop: dict[str, Any]) -> None:
    self.saver.wait_until_finished()
    first = jax.process_index() == 0
    if first:
      write_json(path / 'loop.json', loop)
    manifest.write_part(path, jax.process_index())
    if not first:
      return
    step, digests = int(path.name), self.digests
    facts = {'step': step, 'run': self._run(), 'leaves': leaves, 'constants': digests}
    manifest.join(path, jax.process_count(), **facts)
    self.valid[step] = True
    with tolerated(self.folder):  # the new step is complete, whatever happens to an old one
      self._remove_old(loop.get('best_step'))

  def _remove_old(self, best: int | None) -> None:
    """Removes checkpoints older than the `last` newest valid ones, except the best."""
    kept = 0
    for step in reversed(self.steps()):
      if kept < self.last:
        kept += self._is_valid(step)
      elif step != best:
        stepdirs.remove(self.folder, step)

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
    except manifest.Untold:  # the end of this process ends the others
      raise
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
      return int(best)
    if which not in map(str, steps):
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
    """Returns the newest host state of a step. Collective; see `hoststate.newest`."""
    return hoststate.newest(self.folder, step)

  def _run(self) -> str:
    """The identity of the run, from its config.json; '' without one."""
    try:
      return str(read_json(self.folder.parent / 'config.json').get('run', ''))
    except (OSError, ValueError, AttributeError):
      return ''

  def verify(self, step: int, share: tuple[int, int] = (0, 1)) -> list[str]:
    """Returns a line for each damaged file of a checkpoint; see `manifest.damage`.

    A checkpoint of another run or another step is damaged.
    """
    expected = {'step': step, 'run': self._run()}
    return manifest.damage(self.folder / str(step), share, expected)

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
      bad = self.verify(step, share)
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
    try:
      flat = tree.named(self.saver.restore(path, args=ocp.args.StandardRestore(target)))
    except Exception as error:  # Orbax raises many kinds
      raise InputError(f'checkpoint {path} cannot be read: {error}') from error
    self.saved, self.saved_loop = step, seal(hoststate.saved(self.folder, step))
    state = tree.map_named(lambda name, _: flat[name], rest)
    return with_constant(state, constants.load(self.folder.parent, fixed))
