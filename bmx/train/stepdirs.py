"""Folders of `checkpoints/`: which ones bmx made, and their removal.

A folder is of bmx if its name is a step, without leading zeros, and it holds a manifest or the
metadata that Orbax writes first; or if its name is a step with the suffix of an unfinished save.
Every other file, folder and symbolic link is ignored and never removed.
"""

import glob
import logging
import pathlib
import re
import shutil

from bmx.core.errors import InputError
from bmx.train.manifest import MANIFEST

log = logging.getLogger('bmx')
AFTER = '{}.after.json'
STEP_NAME = re.compile(r'0|[1-9][0-9]{0,17}')
UNFINISHED_NAME = re.compile(r'(0|[1-9][0-9]{0,17})\.orbax-checkpoint-tmp.*')
ORBAX_METADATA = '_CHECKPOINT_METADATA'


def steps(folder: pathlib.Path) -> list[int]:
  """Returns the steps that have a manifest, oldest first."""
  found = [p.parent for p in folder.glob(f'*/{MANIFEST}')]
  return sorted(int(p.name) for p in found if STEP_NAME.fullmatch(p.name) and not p.is_symlink())


def check_path(path: pathlib.Path) -> None:
  """Raises InputError if Orbax cannot read below a path: it searches files by a pattern."""
  if glob.has_magic(str(path)) or '\\' in str(path):
    raise InputError(
      f'{path}: expected a path without any of * ? [ and backslash, as checkpoints below it could '
      'not be read; name another directory'
    )


def check_names(folder: pathlib.Path) -> None:
  """Raises InputError if something that bmx did not make has the name of a step."""
  for path in folder.iterdir() if folder.is_dir() else ():
    if STEP_NAME.fullmatch(path.name) and not _made_here(path):
      raise InputError(
        f'{path}: expected a checkpoint of bmx, as its name is a step; move it elsewhere'
      )


def clean(folder: pathlib.Path, target: pathlib.Path) -> None:
  """Removes unfinished checkpoints, a damaged `target`, and STEP.after.json without a step."""
  for path in folder.iterdir() if folder.is_dir() else ():
    name = path.name.removesuffix('.after.json')
    if name != path.name and STEP_NAME.fullmatch(name) and path.is_file():
      if name == target.name or not (folder / name / MANIFEST).exists():
        path.unlink()
    elif _made_here(path) and (path == target or not (path / MANIFEST).exists()):
      log.warning('removing the unfinished or damaged checkpoint %s', path.name)
      _discard(path)


def remove(folder: pathlib.Path, step: int) -> None:
  """Removes a step; a removal that is cut short leaves no step, see `_discard`."""
  _discard(folder / str(step))
  (folder / AFTER.format(step)).unlink(missing_ok=True)


def _discard(path: pathlib.Path) -> None:
  """Removes a folder under the name of an unfinished save, which a killed process may leave."""
  if not UNFINISHED_NAME.fullmatch(path.name):
    left = path.with_name(f'{path.name}.orbax-checkpoint-tmp-removed')
    if left.exists():
      shutil.rmtree(left)
    path = path.rename(left)
  shutil.rmtree(path)


def _made_here(path: pathlib.Path) -> bool:
  """Whether bmx made a folder, complete or not."""
  if path.is_symlink() or not path.is_dir():
    return False
  if UNFINISHED_NAME.fullmatch(path.name):
    return True
  marks = (MANIFEST, ORBAX_METADATA)
  return bool(STEP_NAME.fullmatch(path.name)) and any((path / m).exists() for m in marks)
