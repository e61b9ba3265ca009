"""Checkpoints: Orbax writes the arrays, a manifest says when they are whole.

    checkpoints/STEP/               the TrainState, a nested dict of arrays, as Orbax writes it
    checkpoints/STEP/loop.json      the host's part of the state
    checkpoints/STEP/manifest.json  written last: SHA-256 of every file; name, shape, dtype of each
    leaf

A step without a manifest is unfinished: it is ignored, and removed at the next save.
"""

import concurrent.futures
import json
import logging
import pathlib
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
from bmx.train import manifest
from bmx.train.manifest import MANIFEST
from bmx.train.state import TrainState

log = logging.getLogger('bmx')
RETRY_SECONDS = 5.0  # between a failed save and the next attempt


class Checkpoints:
  """The checkpoints of one run.

  Args:
    last: how many of the newest to keep, at least 2, besides the best.
  """

  def __init__(self, folder: pathlib.Path, last: int = 2):
    self.folder, self.last = folder.absolute(), max(last, 2)
    self.saver = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
    self.pool = concurrent.futures.ThreadPoolExecutor(1)
    self.pending: tuple[concurrent.futures.Future[None], pathlib.Path] | None = None
    self.failed_at = 0.0  # the time of a failure that no save has made good yet; 0 is none

  def steps(self) -> list[int]:
    """Steps that have a manifest, oldest first."""
    return sorted(int(p.parent.name) for p in self.folder.glob(f'*/{MANIFEST}'))

  def save(self, state: TrainState, loop: Mapping[str, Any], step: int) -> None:
    """Starts to save; returns once the arrays are copied. Waits for the save before it.

    A save that fails is reported and does not raise: `failed` says so, and the caller saves again.
    """
    self.wait()
    path = self.folder / str(step)
    try:
      self._clean(path)
      self.saver.save(path, args=ocp.args.StandardSave(tree.nested(tree.named(state))))
    except Exception as error:  # Orbax raises many kinds; none may end the training
      self._report(path, error)
      return
    task = self.pool.submit(self._finish, path, tree.signature(state), dict(loop))
    self.pending = task, path

  def _report(self, path: pathlib.Path, error: BaseException) -> None:
    log.error('SAVING %s FAILED, and will be tried again: %s', path, error)
    self.failed_at = time.monotonic()

  def failed(self) -> bool:
    """Whether the last save has failed, some seconds ago."""
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
    manifest.join(path, jax.process_count(), step=int(path.name), leaves=leaves)
    keep = {*self.steps()[-self.last :], loop.get('best_step')}
    for step in self.steps():
      if step not in keep:
        shutil.rmtree(self.folder / str(step))

  def wait(self) -> None:
    """Until the save that was started is whole on disk, or has failed."""
    if self.pending is None:
      return
    (pending, path), self.pending = self.pending, None
    try:
      pending.result()
      self.failed_at = 0.0
    except Exception as error:  # as in save
      self._report(path, error)

  def close(self) -> None:
    self.wait()
    self.pool.shutdown()
    try:
      self.saver.close()
    except Exception as error:  # Orbax tells of a failed save once more; it has been reported
      log.debug('closing the saver: %s', error)

  def _clean(self, target: pathlib.Path) -> None:
    """Removes what an interrupted save left, and a damaged `target`."""
    if jax.process_index() or not self.folder.exists():
      return
    for path in self.folder.iterdir():
      if path.is_dir() and (path == target or not (path / MANIFEST).exists()):
        log.warning('removing the unfinished or damaged checkpoint %s', path.name)
        shutil.rmtree(path)

  def choose(self, which: str) -> int:
    """The step that 'latest', 'best' or a number names. Raises InputError where there is none."""
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
    if not which.isdigit() or int(which) not in steps:
      raise InputError(f'no checkpoint of step {which!r}; there are {", ".join(map(str, steps))}')
    return int(which)

  def choose_whole(self, which: str) -> int:
    """`choose`, and raises InputError where its files are not what was written."""
    step = self.choose(which)
    bad = self.verify(step)
    if bad:
      raise InputError(
        f'checkpoint {step} is damaged: {"; ".join(bad)}; choose another with --step'
      )
    return step

  def loop(self, step: int) -> dict[str, Any]:
    return json.loads((self.folder / str(step) / 'loop.json').read_text())

  def verify(self, step: int) -> list[str]:
    """What is wrong with a checkpoint; see `manifest.damage`."""
    return manifest.damage(self.folder / str(step))

  def newest_valid(self) -> int | None:
    """The newest step whose files are what was written; None where nothing was ever saved. All
    processes call it, read a share of the files each, and get the same answer.

    Raises InputError where there are checkpoints and all are damaged: a run never starts afresh by
    itself.
    """
    steps = agreed(self.steps())
    share = jax.process_index(), jax.process_count()
    for step in reversed(steps):
      bad = manifest.damage(self.folder / str(step), share)
      if not anywhere(bool(bad)):
        return step
      what = '; '.join(bad) or 'another process found it, see the files in WORKDIR/logs'
      log.warning('CHECKPOINT %d IS DAMAGED and will not be used: %s', step, what)
    if steps:
      raise InputError(
        f'every checkpoint in {self.folder} is damaged ({steps}); remove it to start anew'
      )
    return None

  def restore(self, step: int, abstract: TrainState) -> TrainState:
    """The state of a step, each array placed as `abstract` says, whatever mesh wrote it.

    Raises InputError listing missing, extra and differently shaped or typed leaves.
    """
    path = self.folder / str(step)
    leaves = json.loads((path / MANIFEST).read_text())['leaves']
    lines = tree.difference(leaves, tree.signature(abstract))
    if lines:
      raise InputError(f'checkpoint {path} does not fit the model:\n  ' + '\n  '.join(lines[:40]))
    target = tree.nested(tree.named(abstract))
    flat = tree.named(self.saver.restore(path, args=ocp.args.StandardRestore(target)))
    return tree.map_named(lambda name, _: flat[name], abstract)
