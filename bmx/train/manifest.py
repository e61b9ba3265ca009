"""Manifests: SHA-256 of every file of a folder, written when all of them are on disk.

Each process hashes the files that it wrote and writes a part; process 0 joins the parts. A manifest
holds the SHA-256 of its own content. See docs/checkpoints.md for changes that are not detected.
"""

import hashlib
import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from bmx.runtime import storage
from bmx.runtime.files import read_json, write_json
from bmx.runtime.storage import Place

MANIFEST = 'manifest.json'
PART = 'digests.{}.json'  # of one process, until the manifest is written
FAILED = 'digests.{}.failed'  # instead of the part of a process that cannot write it
PATIENCE = 600.0  # seconds that process 0 waits for the parts of the others
POLL_SECONDS = 0.05
PART_BYTES = 1 << 20
SEAL = 'sha256'  # of all other entries of the manifest
# Files without which Orbax cannot read a folder: without them, no manifest is written.
INDEX = ('_METADATA', 'manifest.ocdbt')
DAMAGED = 'is damaged: its SHA-256 differs from the one that was written'
DIGEST = re.compile(r'[0-9a-f]{64}')


class Untold(OSError):
  """A process can neither write its part nor tell process 0, which would wait for it."""


def write_part(path: Place, process: int) -> None:
  """Hashes the files that a process wrote, and waits until they are on disk (fsync).

  Orbax keeps the arrays of process I in `ocdbt.process_I`; process 0 hashes every other file too.

  Raises:
    OSError: the part cannot be written; `join` learns it from an empty file.
    Untold: nor can that file.
  """
  try:
    _write_part(path, process)
  except OSError as error:
    try:
      (path / FAILED.format(process)).touch()
    except OSError:
      raise Untold(f'process {process} cannot write its part of {path}: {error}') from error
    raise


def _write_part(path: Place, process: int) -> None:
  files = map(pathlib.PurePosixPath, storage.files(path))
  mine = [p for p in files if _writer(p) == process and not p.name.startswith('digests.')]
  digests = {str(p): sha256(path / p) for p in sorted(mine)}
  folders = {folder for p in mine for folder in p.parents}
  for place in (*mine, *folders, pathlib.PurePath('..')):
    storage.sync(path / place)
  write_json(path / PART.format(process), digests)


def _writer(file: pathlib.PurePath) -> int:
  owners = [p.removeprefix('ocdbt.process_') for p in file.parts if p.startswith('ocdbt.process_')]
  return int(owners[0]) if owners and owners[0].isdigit() else 0


def join(path: Place, processes: int, **facts: Any) -> None:
  """Waits for the parts of all processes and joins them to the manifest.

  Args:
    path: the folder.
    processes: number of parts.
    **facts: further entries of the manifest.

  Raises:
    OSError: a process could not write its part.
    TimeoutError: a part is missing after `PATIENCE` seconds.
    FileNotFoundError: Orbax has not written its index.
  """
  parts = [path / PART.format(i) for i in range(processes)]
  deadline = time.monotonic() + PATIENCE
  while missing := [p for p in parts if not p.exists()]:
    failed = [i for i in range(processes) if (path / FAILED.format(i)).exists()]
    if failed:
      raise OSError(
        f'processes {failed} could not write their parts of the manifest, see WORKDIR/logs'
      )
    if time.monotonic() > deadline:
      raise TimeoutError(f'{", ".join(p.name for p in missing)} did not appear in {PATIENCE:.0f} s')
    time.sleep(POLL_SECONDS)
  files: dict[str, str] = {}
  for part in parts:
    files |= read_json(part)
    part.unlink()
  absent = [name for name in INDEX if name not in files]
  if absent:
    raise FileNotFoundError(f'{path}: Orbax did not write {", ".join(absent)}')
  content = facts | {'files': files}
  write_json(path / MANIFEST, content | {SEAL: seal(content)})


def seal(content: Mapping[str, Any]) -> str:
  """Returns the SHA-256 of a value as JSON, the same before it is written and after it is read."""
  return hashlib.sha256(json.dumps(dict(content), sort_keys=True).encode()).hexdigest()


def read(path: Place) -> dict[str, Any]:
  """Returns the manifest of a folder.

  Raises OSError or ValueError if it cannot be read, or its content is not what was written.
  """
  facts = read_json(path / MANIFEST)
  if not isinstance(facts, dict):
    raise ValueError('expected an object')
  if facts.pop(SEAL, None) != seal(facts):
    raise ValueError('its content differs from the one that was written')
  files, leaves = facts.get('files'), facts.get('leaves')
  if (
    not isinstance(files, dict)
    or not all(map(_is_digest, files.values()))
    or '\0' in ''.join(files)
  ):
    raise ValueError('expected files with their SHA-256')
  if not isinstance(leaves, dict):
    raise ValueError('expected leaves with shape and dtype')
  return facts


def _is_digest(value: Any) -> bool:
  return isinstance(value, str) and bool(DIGEST.fullmatch(value))


def damage(
  path: Place, share: tuple[int, int] = (0, 1), expected: Mapping[str, Any] | None = None
) -> list[str]:
  """Returns a line for each file that is missing or differs from the file that was written.

  Args:
    path: the folder.
    share: (i, n) verifies every n-th file from the i-th on.
    expected: entries that the manifest must have, with their values.
  """
  try:
    facts = read(path)
  except (ValueError, OSError) as error:
    return [f'{MANIFEST} cannot be read: {error}']
  bad = [
    f'{MANIFEST} has {key}={facts.get(key, "")!r}, expected {value!r}: it is of another place'
    for key, value in (expected or {}).items()
    if facts.get(key, '') != value
  ]
  files = facts['files']
  bad += [f'{name} is not listed in {MANIFEST}' for name in INDEX if name not in files]
  first, stride = share
  own = _own_files(path)
  for name, digest in sorted(files.items())[first::stride]:
    problem = own(name) or (sha256(path / name) != digest and DAMAGED)
    if problem:
      bad.append(f'{name} {problem}')
  return bad


def _own_files(path: Place) -> Callable[[str], str]:
  """Returns a function of a name -> why it names no file of a folder; '' if it does."""
  if not isinstance(path, pathlib.Path):
    names = set(storage.files(path))
    return lambda name: '' if name in names else 'is missing'
  place = os.path.realpath(path)

  def problem(name: str) -> str:
    file = f'{place}/{name}'
    if os.path.realpath(file) != file:  # a symbolic link, '..', an absolute path
      return 'is not a file of this folder'
    return '' if os.path.isfile(file) else 'is missing'

  return problem


def sha256(path: Place) -> str:
  """Returns the SHA-256 of a file, in hexadecimal digits."""
  total = hashlib.sha256()
  with path.open('rb') as file:
    while part := file.read(PART_BYTES):
      total.update(part)
  return total.hexdigest()
