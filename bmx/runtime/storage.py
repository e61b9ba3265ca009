"""Where a run's files are: on this machine, or in an object store (gs://BUCKET/NAME).

An object store has no rename, no append, no flock and no folders. Writing an object replaces it
whole or not at all, and a write can demand a generation: the one that was read, or none. Reads and
listings show every write that has returned.

Objects are read by etils.epath with gcsfs, as Orbax does; TensorStore writes, lists, removes them.
Both find credentials by Google's rules.
"""

import contextlib
import functools
import importlib.util
import io
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

from etils import epath

from bmx.core import paths
from bmx.core.errors import InputError

Place = pathlib.Path | epath.Path  # of this machine, or of an object store
ADDRESS = re.compile(r'gs://[a-z0-9][a-z0-9._-]+(/[^/]+)+/?')
NONE = b'\x02'  # TensorStore's generation of an object that does not exist
PUT_BYTES = 64 << 20  # an object of more is written in parts
RETRIES = {'max_retries': 4, 'initial_delay': '500ms', 'max_delay': '8s'}


def is_address(path: str | os.PathLike[str]) -> bool:
  """Whether a path is an address of an object store."""
  return os.fspath(path).startswith('gs://')


def place(path: str | os.PathLike[str]) -> Place:
  """Returns a path of this machine, see `paths.local`, or an address of an object store.

  Raises InputError for a malformed address, for an address of another kind of storage, without the
  extra `gcs`, and if the object store cannot be reached.
  """
  text = os.fspath(path)
  if not is_address(text):
    return paths.local(path)
  if not ADDRESS.fullmatch(text) or {'.', '..'} & set(text.split('/')) or not text.isprintable():
    raise InputError(f'{text}: expected gs://BUCKET/NAME, without empty parts, . and ..')
  _prepare(text)
  found = epath.Path(text.rstrip('/'))
  _reach(found.parts[2])
  return found


def _prepare(text: str) -> None:
  """Selects gcsfs in epath, without its cache of listings, which other writers do not update."""
  if importlib.util.find_spec('gcsfs') is None:
    raise InputError(f'{text}: expected the library gcsfs; pip install "bmx-jax[gcs]"')
  import fsspec.config

  os.environ.setdefault('EPATH_USE_TF', 'false')
  fsspec.config.conf.setdefault('gcs', {}).setdefault('use_listings_cache', False)


@functools.cache
def _reach(bucket: str) -> None:
  """Raises InputError if a bucket cannot be read. An error is found again by the next call."""
  try:
    epath.Path(f'gs://{bucket}/.bmx').exists()
  except Exception as error:  # of gcsfs, aiohttp or google.auth
    raise InputError(
      f'gs://{bucket} cannot be read: {error or type(error).__name__}; give credentials '
      '(gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS)'
    ) from None


def absolute(found: Place) -> Place:
  """Returns an absolute path; an address is one."""
  return found.absolute() if isinstance(found, pathlib.Path) else found


def is_link(found: Place) -> bool:
  """Whether a path is a symbolic link; no object is one."""
  return isinstance(found, pathlib.Path) and found.is_symlink()


def sync(found: Place) -> None:
  """Waits until a file, or the entries of a folder, are on disk; an object is when it is there."""
  if not isinstance(found, pathlib.Path):
    return
  descriptor = os.open(found, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def put(path: epath.Path, data: bytes) -> None:
  """Writes an object, whole or not at all. Raises OSError if that fails."""
  with _as_oserror(path):
    _kvstore(str(path)).write('', data).result()


@contextlib.contextmanager
def uploading(path: epath.Path) -> Iterator[IO[str]]:
  """Opens a text file of this machine that becomes an object when the context ends.

  Raises OSError if it cannot be written. An exception leaves the object as it was.
  """
  with tempfile.TemporaryFile() as file, io.TextIOWrapper(file, encoding='utf-8') as text:
    yield text
    text.flush()
    size = file.tell()
    file.seek(0)
    if size <= PUT_BYTES:
      put(path, file.read())
      return
    with _as_oserror(path), path.open('wb') as target:
      shutil.copyfileobj(file, target)


@contextlib.contextmanager
def _as_oserror(path: epath.Path) -> Iterator[None]:
  try:
    yield
  except OSError:
    raise
  except Exception as error:  # of aiohttp, google.auth or TensorStore
    raise OSError(f'{path}: {error}') from error


def read_object(path: epath.Path) -> tuple[bytes, bytes]:
  """Returns (generation, content) of an object; (NONE, b'') without one. Raises OSError."""
  with _as_oserror(path):
    found = _kvstore(str(path)).read('').result()
  return found.stamp.generation, found.value


def put_if(path: epath.Path, data: bytes, generation: bytes) -> bytes | None:
  """Writes an object that has a generation, or that does not exist (NONE).

  Args:
    path: of the object.
    data: content, which no other writer may write: it identifies this one after a lost answer.
    generation: the one that is demanded.

  Returns:
    The new generation; None if the object has another one than is demanded.

  Raises:
    OSError: the store does not answer.
  """
  with _as_oserror(path):
    stamp = _kvstore(str(path)).write('', data, if_equal=generation).result()
  if stamp.generation:
    return stamp.generation
  now, content = read_object(path)
  return now if content == data else None


def remove_if(path: epath.Path, generation: bytes) -> None:
  """Removes an object if it has a generation. Raises OSError."""
  with _as_oserror(path):
    _kvstore(str(path)).write('', None, if_equal=generation).result()


def files(folder: Place) -> list[str]:
  """Returns the names of all files below a folder, relative to it, in order."""
  if isinstance(folder, pathlib.Path):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())
  with _as_oserror(folder):
    return sorted(key.decode() for key in _kvstore(f'{folder}/').list().result())


def remove_tree(folder: Place, first: Sequence[str] = (), last: Sequence[str] = ()) -> None:
  """Removes a folder and all that it holds.

  Args:
    folder: its path.
    first: names of files of an object store that are removed before all others.
    last: those that are removed after all others.

  Raises OSError.
  """
  if isinstance(folder, pathlib.Path):
    shutil.rmtree(folder)
    return
  store, names = _kvstore(f'{folder}/'), set(files(folder))
  rest = names - {*first, *last}
  with _as_oserror(folder):
    for group in (first, rest, last):
      for deletion in [store.write(name, None) for name in group if name in names]:
        deletion.result()


def staging(folder: Place) -> pathlib.Path:
  """Returns a folder of this machine for a library that writes no objects; see `publish`."""
  return folder if isinstance(folder, pathlib.Path) else pathlib.Path(tempfile.mkdtemp())


def publish(staged: pathlib.Path, folder: Place) -> None:
  """Moves the files of `staging(folder)` to `folder`. Raises OSError."""
  if isinstance(folder, pathlib.Path):
    return
  for name in files(staged):
    put(folder / name, (staged / name).read_bytes())
  shutil.rmtree(staged)


def _kvstore(address: str) -> Any:
  """TensorStore's view of the objects whose names begin with an address."""
  import tensorstore

  bucket, _, name = address.removeprefix('gs://').partition('/')
  context = {'gcs_request_retries': RETRIES}
  spec = {'driver': 'gcs', 'bucket': bucket, 'path': name, 'context': context}
  return tensorstore.KvStore.open(spec).result()
