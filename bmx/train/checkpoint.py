"""Checkpoints: Orbax writes the arrays, a manifest says when they are whole.

    checkpoints/STEP/state/         the TrainState, a nested dict of arrays
    checkpoints/STEP/loop.json      the host's part of the state
    checkpoints/STEP/manifest.json  written last: SHA-256 of every file; name, shape, dtype of each
    leaf

A step without a manifest is unfinished: it is ignored, and removed at the next save.
"""

import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.train.state import TrainState

log = logging.getLogger('bmx')
MANIFEST = 'manifest.json'
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
      self.saver.save(path, args=ocp.args.StandardSave(nested(tree.named(state))))
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
    if jax.process_index():
      return
    write_json(path / 'loop.json', loop)
    files = sorted(p for p in path.rglob('*') if p.is_file())
    digests = {str(p.relative_to(path)): sha256(p) for p in files}
    write_json(path / MANIFEST, {'step': int(path.name), 'files': digests, 'leaves': leaves})
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

  def loop(self, step: int) -> dict[str, Any]:
    return json.loads((self.folder / str(step) / 'loop.json').read_text())

  def verify(self, step: int) -> list[str]:
    """What is wrong with a checkpoint: files that are missing or are not what was written."""
    path = self.folder / str(step)
    try:
      files = dict(json.loads((path / MANIFEST).read_text())['files'])
    except (ValueError, KeyError, TypeError, OSError) as error:
      return [f'{MANIFEST} cannot be read: {error}']
    bad = []
    for name, digest in files.items():
      if not (path / name).is_file():
        bad.append(f'{name} is missing')
      elif sha256(path / name) != digest:
        bad.append(f'{name} is damaged: its SHA-256 is not the one that was written')
    return bad

  def newest_valid(self) -> int | None:
    """The newest step whose files are what was written; None where nothing was ever saved.

    Raises InputError where there are checkpoints and all are damaged: a run never starts afresh by
    itself.
    """
    steps = self.steps()
    for step in reversed(steps):
      bad = self.verify(step)
      if not bad:
        return step
      log.warning('CHECKPOINT %d IS DAMAGED and will not be used: %s', step, '; '.join(bad))
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
    manifest = json.loads((path / MANIFEST).read_text())
    lines = tree.difference(manifest['leaves'], tree.signature(abstract))
    if lines:
      raise InputError(f'checkpoint {path} does not fit the model:\n  ' + '\n  '.join(lines[:40]))
    target = nested(tree.named(abstract))
    flat = tree.named(self.saver.restore(path, args=ocp.args.StandardRestore(target)))
    return tree.map_named(lambda name, _: flat[name], abstract)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
  """
  >>> nested({'a/b': 1, 'a/c': 2})
  {'a': {'b': 1, 'c': 2}}
  """
  result: dict[str, Any] = {}
  for name, value in flat.items():
    *folders, leaf = name.split('/')
    place = result
    for folder in folders:
      place = place.setdefault(folder, {})
    place[leaf] = value
  return result


def sha256(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def write_json(path: pathlib.Path, value: Any) -> None:
  """The whole file or none of it, on disk before the call returns."""
  part = path.with_name(path.name + '.part')
  with part.open('w') as file:
    json.dump(value, file, indent=1, default=str)
    file.write('\n')
    file.flush()
    os.fsync(file.fileno())
  part.replace(path)
