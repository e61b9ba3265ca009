"""What is kept between runs in the user's cache folder: compiled programs, tokenised text."""

import contextlib
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Iterator

import jax

log = logging.getLogger('bmx')
CHECKED = 'checked.json'  # name -> size of entries that were found whole


def place(kind: str) -> pathlib.Path:
  """Where a kind of thing is kept: $XDG_CACHE_HOME/bmx/KIND."""
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(f'{home}/bmx/{kind}').expanduser()


def enable(folder: str) -> None:
  """Keeps compiled programs in `folder`; '' is the user's cache folder, 'off' keeps none.

  jax writes an entry in place, warns at every start of one that a killed process left torn, and
  never replaces it: such entries are deleted here. Each is looked at once.
  """
  if folder == 'off':
    return
  path = pathlib.Path(folder).expanduser() if folder else place('programs')
  if jax.process_index() == 0:
    sweep(path)
  jax.config.update('jax_compilation_cache_dir', str(path))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
  """Inside, no program is written to the cache: one for a device that is not here could not be
  loaded again. (Whether the cache is on at all, jax asks only once a process.)"""
  word = 'jax_persistent_cache_min_compile_time_secs'
  before = getattr(jax.config, word)
  jax.config.update(word, float('inf'))
  try:
    yield
  finally:
    jax.config.update(word, before)


def sweep(folder: pathlib.Path) -> list[str]:
  """Deletes entries that do not decompress -> their names."""
  try:
    checked = json.loads((folder / CHECKED).read_text())
  except (OSError, ValueError):
    checked = {}
  sizes = {p.name: p.stat().st_size for p in folder.glob('*-cache')}
  torn = [n for n, size in sizes.items() if checked.get(n) != size and not _whole(folder / n)]
  for name in torn:
    log.warning('deleting a torn entry of the compilation cache: %s', name)
    (folder / name).unlink(missing_ok=True)
    del sizes[name]
  if sizes != checked and folder.is_dir():
    part = folder / f'{CHECKED}.{os.getpid()}'
    part.write_text(json.dumps(sizes))
    part.replace(folder / CHECKED)
  return torn


def _whole(path: pathlib.Path) -> bool:
  """Whether an entry decompresses; one of another kind than zlib's is left to jax."""
  data = path.read_bytes()
  if data[:1] != b'\x78':  # a zlib stream begins with it; zstandard's does not
    return bool(data)
  try:
    zlib.decompress(data)
    return True
  except zlib.error:
    return False
