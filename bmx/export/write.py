"""Writes the folder of a package; it appears when its check has passed."""

import contextlib
import datetime
import importlib.metadata
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from bmx.core.errors import InputError
from bmx.export.program import PLATFORMS, Signature
from bmx.runtime.files import replacing, write_json
from bmx.runtime.storage import Place
from bmx.train import package
from bmx.train.manifest import sha256

CARD, LOADER = 'README.md', 'loader.py'


def check_output(folder: pathlib.Path) -> None:
  """Raises InputError if a folder to write is there already, unless it is empty."""
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise InputError(f'--output={folder}: expected a new folder; name another, or remove it')


@contextlib.contextmanager
def draft(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Returns an empty folder that becomes `folder` when the context ends without an exception."""
  folder, part = folder.absolute(), None
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = pathlib.Path(tempfile.mkdtemp(prefix=f'.{folder.name}.', dir=folder.parent))
    part.chmod(0o777 & ~_umask())  # a temporary folder is private
  except OSError as error:
    raise InputError(f'--output={folder} cannot be written: {error}') from None
  try:
    yield part
    if folder.is_dir():  # empty, see `check_output`
      folder.rmdir()
    part.replace(folder)
  finally:
    shutil.rmtree(part, ignore_errors=True)


def _umask() -> int:
  """Returns the permissions that new files lack."""
  mask = os.umask(0)
  os.umask(mask)
  return mask


def write(
  folder: pathlib.Path,
  source: Place,
  config: Mapping[str, Any],
  weights: Mapping[str, np.ndarray],
  program: bytes,
) -> None:
  """Writes all files of a package but package.json and the card.

  Args:
    folder: a draft.
    source: run directory, whose data.json and tokenizer are copied.
    config: content of config.json.
    weights: arrays by name.
    program: serialized.
  """
  for name in package.KEPT:
    if (source / name).is_file():
      (folder / name).write_bytes((source / name).read_bytes())
  write_json(folder / 'config.json', config)
  save_file(dict(weights), folder / package.WEIGHTS, {'format': 'bmx'})
  (folder / package.WEIGHTS).chmod(folder.stat().st_mode & 0o666)  # the library's is private
  (folder / package.PROGRAM).write_bytes(program)
  shutil.copyfile(pathlib.Path(__file__).with_name(LOADER), folder / LOADER)
  for path in folder.iterdir():
    with path.open('rb') as file:
      os.fsync(file.fileno())


def facts(name: str, step: int, signature: Signature, error: float) -> dict[str, Any]:
  """Returns the content of package.json without the digests.

  Args:
    name: of the run.
    step: of the checkpoint.
    signature: of the program.
    error: the largest one of the check.
  """
  return {
    'format': package.FORMAT,
    'name': name,
    'step': step,
    'platforms': list(PLATFORMS),
    'inputs': dict(signature.inputs),
    'outputs': dict(signature.outputs),
    'most': dict(signature.most),
    'created': datetime.date.today().isoformat(),
    'versions': {name: _version(name) for name in ('bmx-jax', 'jax')},
    'error': error,
  }


def _version(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
    return ''


def seal(folder: pathlib.Path, facts: Mapping[str, Any], card: str = '') -> None:
  """Writes the card, if one is given, and package.json with the SHA-256 of every file but the card.

  People write on a card.
  """
  if card:
    with replacing(folder / CARD) as file:
      file.write(card)
  names = sorted(p.name for p in folder.iterdir() if p.name not in (package.NAME, CARD))
  digests = {name: sha256(folder / name) for name in names}
  write_json(folder / package.NAME, {**facts, 'files': digests})
