"""The lock of a run directory, so that no second process trains there.

On this machine and on network file systems: flock. In an object store: a lease. The holder creates
the object, which fails where it exists, and renews it every `RENEW` seconds; each renewal demands
the generation of the one before. A lease that shows no renewal for `STALE` seconds, by the clock of
the process that waits, is taken over. The holder that finds its lease taken ends at once.
"""

import contextlib
import fcntl
import logging
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Iterator

from etils import epath

from bmx.core.errors import FAILURE, InputError
from bmx.runtime import storage
from bmx.runtime.files import tolerated
from bmx.runtime.storage import Place

log = logging.getLogger('bmx')
RENEW, STALE = 10.0, 60.0  # seconds
LONGEST = 200  # characters of a holder's name in a message


@contextlib.contextmanager
def locked(path: Place) -> Iterator[None]:
  """Holds the lock WORKDIR/lock. Raises InputError naming the holder if another process has it."""
  with _flock(path) if isinstance(path, pathlib.Path) else _lease(path):
    yield


@contextlib.contextmanager
def _flock(path: pathlib.Path) -> Iterator[None]:
  with path.open('a+') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise _taken(path, file.read(LONGEST)) from None
    except OSError as error:  # a file system without locks
      log.warning('%s cannot be locked: %s', path.parent, error)
    with tolerated(path):
      file.truncate(0)
      file.write(f'{_name()}\n')
      file.flush()
    try:
      yield
    finally:
      with tolerated(path):
        file.truncate(0)


@contextlib.contextmanager
def _lease(path: epath.Path) -> Iterator[None]:
  try:
    lease = Lease(path)
  except OSError as error:
    raise InputError(f'--workdir={path.parent} cannot be locked: {error}') from None
  thread = threading.Thread(target=lease.keep, daemon=True)
  thread.start()
  try:
    yield
  finally:
    lease.ended.set()
    thread.join()
    with tolerated(path):
      storage.remove_if(path, lease.generation)


class Lease:
  """A lease that this process holds: `keep` renews it until `ended` is set.

  Attributes:
    path: of the object.
    generation: that this process wrote last.
    ended: set when the lease is to be given back.

  Raises:
    InputError: another process holds it.
    OSError: the object store does not answer.
  """

  def __init__(self, path: epath.Path):
    self.path, self.ended = path, threading.Event()
    self.name, self.renewals = f'{_name()} {secrets.token_hex(4)}', 0
    self.generation = self._take()

  def _take(self) -> bytes:
    generation, holder = storage.read_object(self.path)
    if generation != storage.NONE:
      generation = self._await_stale(generation, holder)
    mine = self._write(generation)
    if mine is None:
      raise _taken(self.path, storage.read_object(self.path)[1].decode(errors='replace'))
    return mine

  def _await_stale(self, first: bytes, holder: bytes) -> bytes:
    """Waits until a lease is given back or stale -> its generation, `storage.NONE` if given back.

    Raises InputError if its holder renews it.
    """
    text, deadline = holder.decode(errors='replace'), time.monotonic() + STALE
    log.warning('%s is held by %s; waiting up to %.0f s for a sign of life', self.path,
                text.strip()[:LONGEST], STALE)  # fmt: skip
    while time.monotonic() < deadline:
      time.sleep(RENEW / 4)
      generation, _ = storage.read_object(self.path)
      if generation == storage.NONE:
        return generation
      if generation != first:
        raise _taken(self.path, text)
    log.warning('%s is taken over: its holder has shown no sign of life', self.path)
    return first

  def _write(self, generation: bytes) -> bytes | None:
    self.renewals += 1
    return storage.put_if(self.path, f'{self.name} {self.renewals}\n'.encode(), generation)

  def keep(self) -> None:
    """Renews the lease; ends this process if another one has taken it."""
    while not self.ended.wait(RENEW):
      with tolerated(self.path):
        generation = self._write(self.generation)
        if generation is None:
          _end(self.path)
        else:
          self.generation = generation


def _end(path: epath.Path) -> None:
  """Ends this process: another one writes to its run directory now."""
  log.error('another process has taken %s, as this one could not renew it; it ends', path)
  logging.shutdown()
  os._exit(FAILURE)


def _name() -> str:
  started = time.strftime('%Y-%m-%d %H:%M:%S')
  return f'process {os.getpid()}, started {started} on {socket.gethostname()}'


def _taken(path: Place, holder: str) -> InputError:
  holder = holder.strip()[:LONGEST] or 'it has not written its name yet'
  return InputError(
    f'--workdir={path.parent}: another process trains here ({holder}); wait for it, or name '
    'another directory'
  )
