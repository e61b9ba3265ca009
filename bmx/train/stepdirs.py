"""Folders of `checkpoints/`: which ones bmx made, and their removal.

A folder is of bmx if its name is a step, without leading zeros, and it holds a manifest or the
metadata that Orbax writes first; or if its name is a step with the suffix of an unfinished save.
Every other file, folder and symbolic link is ignored and never removed.
"""

import glob
import logging
import pathlib
import re

from bmx.core.errors import InputError
from bmx.runtime import storage
from bmx.runtime.storage import Place
from bmx.train.manifest import MANIFEST

log = logging.getLogger('bmx')
AFTER = '{}.after.json'
STEP_NAME = re.compile(r'0|[1-9][0-9]{0,17}')
UNFINISHED_NAME = re.compile(r'(0|[1-9][0-9]{0,17})\.orbax-checkpoint-tmp.*')
ORBAX_METADATA = '_CHECKPOINT_METADATA'


def steps(folder: Place) -> list[int]:
  """Returns the steps that have a manifest, oldest first."""
  found = [p.parent for p in folder.glob(f'*/{MANIFEST}') if not storage.is_link(p.parent)]
  return sorted(int(p.name) for p in found if STEP_NAME.fullmatch(p.name))


def check_path(path: Place) -> None:
  """Raises InputError if Orbax cannot read below a path: it searches files by a pattern."""
  if glob.has_magic(str(path)) or '\\' in str(path):
    raise InputError(
      f'{path}: expected a path without any of * ? [ and backslash, as checkpoints below it could '
      'not be read; name another directory'
    )


def check_names(folder: Place) -> None:
  """Raises InputError if something that bmx did not make has the name of a step."""
  for path in folder.iterdir() if folder.is_dir() else ():
    if STEP_NAME.fullmatch(path.name) and not _made_here(path):
      raise InputError(
        f'{path}: expected a checkpoint of bmx, as its name is a step; move it elsewhere'
      )


def clean(folder: Place, target: Place) -> None:
  """Removes unfinished checkpoints, a damaged `target`, and STEP.after.json without a step."""
  for path in folder.iterdir() if folder.is_dir() else ():
    name = path.name.removesuffix('.after.json')
    if name != path.name and STEP_NAME.fullmatch(name) and path.is_file():
      if name == target.name or not (folder / name / MANIFEST).exists():
        path.unlink()
    elif _made_here(path) and (path == target or not (path / MANIFEST).exists()):
      log.warning('removing the unfinished or damaged checkpoint %s', path.name)
      _discard(path)


def remove(folder: Place, step: int) -> None:
  """Removes a step; a removal that is cut short leaves no step, see `_discard`."""
  _discard(folder / str(step))
  (folder / AFTER.format(step)).unlink(missing_ok=True)


def _discard(path: Place) -> None:
  """Removes a folder under the name of an unfinished save, which a killed process may leave.

  An object store has no rename: the manifest goes first, and the mark of an unfinished save last.
  """
  if isinstance(path, pathlib.Path) and not UNFINISHED_NAME.fullmatch(path.name):
    left = path.with_name(f'{path.name}.orbax-checkpoint-tmp-removed')
    if left.exists():
      storage.remove_tree(left)
    path = path.rename(left)
  storage.remove_tree(path, first=(MANIFEST,), last=(ORBAX_METADATA,))


def _made_here(path: Place) -> bool:
  """Whether bmx made a folder, complete or not."""
  if storage.is_link(path) or not path.is_dir():
    return False
  if UNFINISHED_NAME.fullmatch(path.name):
    return True
  marks = (MANIFEST, ORBAX_METADATA)
  return bool(STEP_NAME.fullmatch(path.name)) and any((path / m).exists() for m in marks)
