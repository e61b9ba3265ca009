"""Copies of objects on this machine, for readers that need a file."""

import hashlib
import os
import pathlib
import secrets
import shutil

from bmx.core import paths
from bmx.core.errors import InputError
from bmx.runtime import cache, storage


def fetch(path: str | os.PathLike[str]) -> pathlib.Path:
  """Returns a path of this machine that holds the content of `path`.

  An object, or all objects below an address, are copied once to the user's cache folder, under
  their generations: a changed object is copied again. Every host has its own copy.

  Raises InputError as `storage.place` does, and if nothing is at an address.
  """
  if not storage.is_address(path):
    return paths.local(path)
  source = storage.place(path)
  import fsspec

  name = str(source).removeprefix('gs://')
  try:
    found = fsspec.filesystem('gcs').find(name, detail=True)
    objects = {key.removeprefix(name).strip('/'): about for key, about in found.items()}
    stamp = sorted((key, about['generation']) for key, about in objects.items())
    if not objects:
      raise FileNotFoundError(str(path))
    key = hashlib.sha256(repr((name, stamp)).encode()).hexdigest()[:32]
    target = cache.place('objects') / key / source.name
    if not target.exists():
      _copy(source, list(objects), target)
  except FileNotFoundError:
    raise InputError(f'no file {path}') from None
  except OSError as error:
    raise InputError(f'{path} cannot be copied to this machine: {error}') from None
  return target


def _copy(source: storage.Place, names: list[str], target: pathlib.Path) -> None:
  """Copies objects; `target` appears when all of them are there."""
  part = target.parent.with_name(f'{target.parent.name}.{secrets.token_hex(4)}.part')
  try:
    for name in names:
      file = part / target.name / name if name else part / target.name
      file.parent.mkdir(parents=True, exist_ok=True)
      with (source / name if name else source).open('rb') as there, file.open('wb') as here:
        shutil.copyfileobj(there, here)
    if not target.exists():
      part.replace(target.parent)
  finally:
    shutil.rmtree(part, ignore_errors=True)
