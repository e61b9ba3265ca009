"""The terminal of a command: its own lines reach it directly, lines of libraries through a sieve.

C++ libraries (XLA, libtpu, CUDA, Gloo) write to the file descriptors 1 and 2, past Python and
without a switch for each message. `start` puts pipes there, which `sieve` reads in a process of its
own. `sys.stdout`, `sys.stderr` and `faulthandler` get the terminal itself: tracebacks, and the
stacks of a fatal signal, wait for nothing.
"""

import atexit
import contextlib
import dataclasses
import faulthandler
import os
import pathlib
import subprocess
import sys
from typing import Any

from bmx.runtime import sieve

WAIT = 5.0  # seconds for the sieve to empty the pipes


@dataclasses.dataclass
class _Console:
  """The installed sieve.

  Attributes:
    process: it.
    control: file descriptor of its orders.
    terminal: what the descriptors 1 and 2 were.
  """

  process: Any
  control: int
  terminal: tuple[int, int]


_installed: list[_Console] = []  # at most one


def start() -> None:
  """Installs the sieve for this process. Without one more process to have, it does nothing."""
  if _installed:
    return
  sys.stdout.flush()
  sys.stderr.flush()
  try:
    terminal = os.dup(1), os.dup(2)
  except OSError:  # a process without stdout or stderr
    return
  pipes = [os.pipe() for _ in range(3)]
  readers, writers = zip(*pipes, strict=True)
  passed = (*readers, *terminal)
  command = [sys.executable, '-I', '-S', sieve.__file__, *map(str, passed)]
  try:
    process = subprocess.Popen(command, pass_fds=passed, stdin=subprocess.DEVNULL)
  except OSError:
    for number in (*readers, *writers, *terminal):
      os.close(number)
    return
  for number in readers:
    os.close(number)
  for number, writer in zip((1, 2), writers, strict=False):
    os.dup2(writer, number)
    os.close(writer)
  _installed.append(_Console(process, writers[2], terminal))
  sys.stdout = _text(terminal[0], sys.stdout)
  sys.stderr = _text(terminal[1], sys.stderr)
  faulthandler.enable(sys.stderr)
  atexit.register(finish, done=False)


def _text(number: int, like: Any) -> Any:
  """A text file on a descriptor, buffered by lines on a terminal and for stderr."""
  lines = os.isatty(number) or like is sys.stderr
  return open(
    number, 'w', 1 if lines else -1, encoding=like.encoding, errors=like.errors, closefd=False
  )


def keep(folder: str | os.PathLike[str], process: int = 0) -> None:
  """Names the folder in which the sieve keeps what it does not show.

  Args:
    folder: WORKDIR/logs; made when there is something to keep. An object store keeps nothing.
    process: of a run of several; libraries.log is that of process 0.
  """
  name = f'libraries.{process}.log' if process else 'libraries.log'
  if not os.fspath(folder).startswith('gs://'):
    _order(f'file {pathlib.Path(folder).absolute() / name}')


def _order(line: str) -> None:
  for console in _installed:
    with contextlib.suppress(OSError):
      os.write(console.control, os.fsencode(line) + b'\n')


def finish(done: bool) -> None:
  """Gives the descriptors back and waits until the sieve has passed everything on.

  Args:
    done: the command ended as it should; otherwise noise that no file keeps is shown.
  """
  if done:
    _order('end')
  while _installed:
    console = _installed.pop()
    sys.stdout.flush()
    sys.stderr.flush()
    for number, terminal in zip((1, 2), console.terminal, strict=True):
      os.dup2(terminal, number)
    os.close(console.control)
    with contextlib.suppress(subprocess.TimeoutExpired):
      console.process.wait(WAIT)
