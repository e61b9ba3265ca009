"""Manifests: SHA-256 of every file of a folder, written when all of them are on disk.

Each process hashes the files that it wrote and writes a part; process 0 joins the parts.
"""

import hashlib
import json
import pathlib
import time
from typing import Any

from bmx.runtime.writer import write_json

MANIFEST = 'manifest.json'
PART = 'digests.{}.json'  # of one process, until the manifest is written
PATIENCE = 600.0  # seconds that process 0 waits for the parts of the others


def write_part(path: pathlib.Path, process: int) -> None:
  """Hashes the files that a process wrote.

  Orbax keeps the arrays of process I in `ocdbt.process_I`; process 0 hashes every other file too.
  """
  files = [p.relative_to(path) for p in path.rglob('*') if p.is_file()]
  mine = [p for p in files if _writer(p) == process and not p.name.startswith('digests.')]
  write_json(path / PART.format(process), {str(p): sha256(path / p) for p in sorted(mine)})


def _writer(file: pathlib.PurePath) -> int:
  owners = [p.removeprefix('ocdbt.process_') for p in file.parts if p.startswith('ocdbt.process_')]
  return int(owners[0]) if owners and owners[0].isdigit() else 0


def join(path: pathlib.Path, processes: int, **facts: Any) -> None:
  """Waits for the parts of all processes and joins them to the manifest.

  Args:
    path: the folder.
    processes: number of parts.
    **facts: further entries of the manifest.

  Raises TimeoutError if a part is missing after `PATIENCE` seconds.
  """
  parts = [path / PART.format(i) for i in range(processes)]
  deadline = time.monotonic() + PATIENCE
  while missing := [p for p in parts if not p.exists()]:
    if time.monotonic() > deadline:
      raise TimeoutError(f'{", ".join(p.name for p in missing)} did not appear in {PATIENCE:.0f} s')
    time.sleep(0.05)
  files: dict[str, str] = {}
  for part in parts:
    files |= json.loads(part.read_text())
    part.unlink()
  write_json(path / MANIFEST, facts | {'files': files})


def read(path: pathlib.Path) -> dict[str, Any]:
  """Returns the manifest of a folder. Raises OSError or ValueError if it cannot be read."""
  return dict(json.loads((path / MANIFEST).read_text()))


def damage(path: pathlib.Path, share: tuple[int, int] = (0, 1)) -> list[str]:
  """Returns a line for each file that is missing or differs from the file that was written.

  Args:
    path: the folder.
    share: (i, n) verifies every n-th file from the i-th on.
  """
  try:
    files = dict(read(path)['files'])
  except (ValueError, KeyError, TypeError, OSError) as error:
    return [f'{MANIFEST} cannot be read: {error}']
  first, stride = share
  bad = []
  for name, digest in sorted(files.items())[first::stride]:
    if not (path / name).is_file():
      bad.append(f'{name} is missing')
    elif sha256(path / name) != digest:
      bad.append(f'{name} is damaged: its SHA-256 differs from the one that was written')
  return bad


def sha256(path: pathlib.Path) -> str:
  """Returns the SHA-256 of a file, in hexadecimal digits."""
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
