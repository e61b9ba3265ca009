"""Exceptions that end a run, each with its exit code."""

import difflib
import errno
from collections.abc import Iterable

DONE, FAILURE, BAD_INPUT = 0, 1, 2
RUN_AGAIN, GUARD, WATCHDOG, PROCESS_MISSING = 75, 76, 77, 78
INTERRUPTED = 130  # as a shell says of SIGINT
# Errors of a disk, not of the program: full, over its quota, read-only, broken.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)


class Stop(Exception):
  """An end of the run that `main` reports as one message and an exit code, without a traceback."""

  code = FAILURE


class InputError(Stop, ValueError):
  """Invalid input: the message names the value, the condition and the fix."""

  code = BAD_INPUT


class Preempted(Stop):
  """The run was asked to stop, has saved, and continues when started again."""

  code = RUN_AGAIN


class GuardStop(Stop):
  """Too many non-finite steps in a row."""

  code = GUARD


def near(word: str, known: Iterable[str]) -> str:
  """Returns `; did you mean 'width'?`, or '' if no known word is similar.

  >>> near('a.cvs', ['a.csv', 'b.txt']), near('a', ['width'])
  ("; did you mean 'a.csv'?", '')
  """
  hint = did_you_mean(word, known)
  return hint if 'did you mean' in hint else ''


def did_you_mean(word: str, known: Iterable[str]) -> str:
  """Returns `; did you mean 'width'?`, or the known words if none is similar.

  A word and an underscore that several known words begin with names all of them.

  >>> did_you_mean('widht', ['depth', 'width'])
  "; did you mean 'width'?"
  >>> did_you_mean('mnist', ['mnist_cnn', 'mnist_mlp', 'moe'])
  "; did you mean 'mnist_cnn', 'mnist_mlp'?"
  """
  known = sorted(known)
  longer = [k for k in known if k.startswith(f'{word}_')]
  if len(longer) > 1:
    return f'; did you mean {", ".join(map(repr, longer))}?'
  near = [k for k in known if k.lower() == word.lower()]
  near = near or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
  if near:
    return f'; did you mean {near[0]!r}?'
  return f'; known: {", ".join(known)}' if known else ''
