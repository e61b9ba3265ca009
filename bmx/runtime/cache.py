"""The user's cache folder: compiled programs and tokenized text, kept between runs."""

import contextlib
import json
import logging
import os
import pathlib
import zlib
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from bmx.core.paths import local

log = logging.getLogger('bmx')
CHECKED = 'checked.json'  # name -> size of the entries that have been verified


def place(kind: str) -> pathlib.Path:
  """Returns the folder of one kind of entry: $XDG_CACHE_HOME/bmx/KIND."""
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(f'{home}/bmx/{kind}').expanduser()


def enable(folder: str) -> None:
  """Keeps compiled programs in `folder`; '' is the user's cache folder, 'off' disables the cache.

  jax writes an entry in place, warns at every start about one that a killed process left
  incomplete, and never replaces it: such entries are deleted here. Each entry is verified once.
  """
  if folder == 'off':
    return
  path = local(folder) if folder else place('programs')
  if jax.process_index() == 0:
    sweep(path)
  jax.config.update('jax_compilation_cache_dir', str(path))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


@contextlib.contextmanager
def nothing_kept() -> Iterator[None]:
  """Neither writes a program to the cache nor reads one inside the context.

  A program for an absent device cannot be loaded: an entry with its key, of a machine that has the
  device or of another version of bmx, is a warning of jax. jax reads the switch of the cache once,
  hence the resets.
  """
  word = 'jax_enable_compilation_cache'
  before = getattr(jax.config, word)
  jax.config.update(word, False)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    jax.config.update(word, before)
    compilation_cache.reset_cache()


def sweep(folder: pathlib.Path) -> list[str]:
  """Deletes the entries that do not decompress and returns their names."""
  try:
    checked = json.loads((folder / CHECKED).read_text())
  except (OSError, ValueError):
    checked = {}
  sizes = {p.name: p.stat().st_size for p in folder.glob('*-cache')}
  torn = [n for n, size in sizes.items() if checked.get(n) != size and not _whole(folder / n)]
  for name in torn:
    log.warning('deleting an incomplete entry of the compilation cache: %s', name)
    (folder / name).unlink(missing_ok=True)
    del sizes[name]
  if sizes != checked and folder.is_dir():
    part = folder / f'{CHECKED}.{os.getpid()}'
    part.write_text(json.dumps(sizes))
    part.replace(folder / CHECKED)
  return torn


def _whole(path: pathlib.Path) -> bool:
  """Whether an entry decompresses; entries that zlib did not write are left to jax."""
  data = path.read_bytes()
  if data[:1] != b'\x78':  # the first byte of a zlib stream, not of a zstandard stream
    return bool(data)
  try:
    zlib.decompress(data)
    return True
  except zlib.error:
    return False
