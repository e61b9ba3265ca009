"""Files of a run: written whole or not at all; JSON that every parser reads.

They are on this machine or in an object store, see `runtime.storage`.

Numbers that are not finite have no form in JSON. They are written as the texts 'NaN', 'Infinity'
and '-Infinity'; `numbers` is the inverse, for values that hold no other texts of this kind.
"""

import contextlib
import json
import logging
import math
import os
import pathlib
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import IO, Any, TextIO

from etils import epath

from bmx.runtime import storage
from bmx.runtime.storage import Place

log = logging.getLogger('bmx')
NOT_FINITE = {'NaN': math.nan, 'Infinity': math.inf, '-Infinity': -math.inf}
_failing: set[Place] = set()  # files whose last write failed
PUT_SECONDS = 10.0  # between two writes of an object that grows
PUT_SHARE = 0.02  # of the time that such writes may take
MAX_PUT_SECONDS = 300.0


def write_bytes(path: Place, content: bytes) -> None:
  """Replaces a file, whole or not at all, as `replacing` does."""
  if not isinstance(path, pathlib.Path):
    storage.put(path, content)
    return
  with _replacing(path) as file:
    file.buffer.write(content)


@contextlib.contextmanager
def replacing(path: Place) -> Iterator[IO[str]]:
  """Opens a text file that replaces `path` when the context ends; it is on disk (fsync) then.

  The new content has a name of its own until then, so that several processes may write the same
  file; an exception removes it and leaves `path` as it was.
  """
  with _replacing(path) if isinstance(path, pathlib.Path) else storage.uploading(path) as file:
    yield file


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[TextIO]:
  part = path.with_name(f'{path.name}.{secrets.token_hex(4)}.part')
  try:
    with part.open('x', encoding='utf-8') as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    part.replace(path)
  except BaseException:
    with contextlib.suppress(OSError):
      part.unlink(missing_ok=True)
    raise


def write_json(path: Place, value: Any) -> None:
  """Writes a file atomically; it is on disk (fsync) when the call returns."""
  with replacing(path) as file:
    file.write(to_json(value, indent=1) + '\n')


def to_json(value: Any, indent: int | None = None) -> str:
  """Returns a value as JSON; see the module's docstring for numbers that are not finite.

  >>> to_json({'loss': float('nan'), 'best': [1.0, float('-inf')]})
  '{"loss": "NaN", "best": [1.0, "-Infinity"]}'
  """
  return json.dumps(_finite(value), indent=indent, default=str, allow_nan=False)


def _finite(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {k: _finite(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return 'NaN' if math.isnan(value) else 'Infinity' if value > 0 else '-Infinity'
  return value


def numbers(value: Any) -> Any:
  """Returns a value with the texts of `to_json` as numbers.

  >>> numbers({'loss': 'NaN', 'name': 'mlp'})
  {'loss': nan, 'name': 'mlp'}
  """
  if isinstance(value, dict):
    return {k: numbers(v) for k, v in value.items()}
  if isinstance(value, list):
    return [numbers(v) for v in value]
  return NOT_FINITE.get(value, value) if isinstance(value, str) else value


def read_json(path: Place) -> Any:
  """Returns the value in a file. Raises OSError, or ValueError if it is not JSON or too deep."""
  try:
    return json.loads(path.read_text(encoding='utf-8'))
  except RecursionError:
    raise ValueError('it is nested too deeply') from None


@contextlib.contextmanager
def tolerated(path: Place) -> Iterator[None]:
  """Logs an OSError of its body: a file that cannot be written does not end the training.

  The first failure of a file is logged, further ones are not; then the first success is.
  """
  try:
    yield
  except OSError as error:
    if path not in _failing:
      log.error('%s cannot be written, and will be tried again: %s', path, error)
    _failing.add(path)
    return
  if path in _failing:
    _failing.discard(path)
    log.info('%s is written again', path)


class Appender:
  """Appends to a file. Bytes that cannot be written are kept, and written with the next ones.

  A write that fails leaves no part of its bytes. A symbolic link is not followed.

  Args:
    path: of the file.
    sync: each write is on disk (fsync) before it returns.
    mode: permissions of a new file, without those that the process excludes (umask).
  """

  def __init__(self, path: pathlib.Path, sync: bool = False, mode: int = 0o666):
    self.path, self.sync = path, sync
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    self.file = os.open(path, flags, mode)
    self.length = os.fstat(self.file).st_size  # of the bytes that are known to be whole
    self.kept, self.torn = b'', False

  def truncate(self, length: int) -> None:
    """Cuts the file to a number of bytes."""
    os.ftruncate(self.file, length)
    self.length, self.torn = length, False

  def write(self, data: bytes) -> None:
    """Appends bytes; an OSError is logged, see `tolerated`."""
    self.kept += data
    with tolerated(self.path):
      try:
        self._write()
      except OSError:
        with contextlib.suppress(OSError):
          self.truncate(self.length)
        raise

  def _write(self) -> None:
    if self.torn:
      self.truncate(self.length)
    rest, self.torn = memoryview(self.kept), True
    while rest:
      rest = rest[os.write(self.file, rest) :]
    if self.sync:
      os.fsync(self.file)
    self.length, self.torn, self.kept = self.length + len(self.kept), False, b''

  def flush(self) -> None:
    """Tries again to write bytes that were kept."""
    if self.kept:
      self.write(b'')

  def close(self) -> None:
    """Closes the file, after another attempt at bytes that were kept."""
    self.flush()
    with tolerated(self.path):
      os.close(self.file)


class ObjectAppender:
  """Appends to an object, by writing it whole: at most every `PUT_SECONDS`, and at `flush`.

  Bytes that cannot be written are kept, and written with the next ones.

  Args:
    path: of the object.

  Attributes:
    length: bytes that were given, and those that the object held before.
  """

  def __init__(self, path: epath.Path):
    self.path = path
    self.content = bytearray(storage.read_object(path)[1])
    self.written = len(self.content)
    self.tried, self.pause = -math.inf, PUT_SECONDS

  @property
  def length(self) -> int:
    return len(self.content)

  def truncate(self, length: int) -> None:
    """Cuts the content to a number of bytes; the object is cut by the next write."""
    del self.content[length:]
    self.written = min(self.written, length)

  def write(self, data: bytes) -> None:
    """Appends bytes; an OSError is logged, see `tolerated`."""
    self.content += data
    if time.monotonic() - self.tried >= self.pause:
      self.flush()

  def flush(self) -> None:
    """Writes the object if bytes are missing there; an OSError is logged."""
    if self.written == self.length:
      return
    self.tried = time.monotonic()
    with tolerated(self.path):
      data = bytes(self.content)
      storage.put(self.path, data)
      self.written = len(data)
    seconds = time.monotonic() - self.tried
    self.pause = min(max(PUT_SECONDS, seconds / PUT_SHARE), MAX_PUT_SECONDS)

  def close(self) -> None:
    """Writes the missing bytes."""
    self.flush()


def appender(path: Place, sync: bool = False) -> Appender | ObjectAppender:
  """Returns what appends to a file or an object; `sync`: see `Appender`."""
  return Appender(path, sync) if isinstance(path, pathlib.Path) else ObjectAppender(path)
