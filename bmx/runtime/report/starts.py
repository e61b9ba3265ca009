"""starts.json: when a run was started, by which command, from which step, with which changes."""

import dataclasses
import pathlib
import shlex
import sys
import time
import typing
from collections.abc import Sequence
from typing import Any

from bmx.core.typed import fits
from bmx.runtime.files import numbers, read_json, tolerated, write_json
from bmx.runtime.storage import Place

NAME = 'starts.json'
LARGEST = 1e11  # of times and steps: beyond it, a calendar has no date


@dataclasses.dataclass
class Start:
  """One start of a run.

  Attributes:
    step: of the checkpoint that it continued from; 0 for a new run.
    began: seconds since 1970.
    ended: the newest time at which it was known to run, in seconds since 1970.
    reached: completed steps at `ended`.
    command: as typed, as far as it is known.
    changes: [word, before, now] of the config, as texts.
    rates: learning rate of the step before the start, before and now, where they differ.
  """

  step: int
  began: float
  ended: float
  reached: int
  command: str = ''
  changes: list[list[str]] = dataclasses.field(default_factory=list)
  rates: list[float] = dataclasses.field(default_factory=list)


HINTS = typing.get_type_hints(Start)


def begin(
  workdir: Place,
  step: int,
  began: float,
  changes: Sequence[tuple[str, Any, Any]] = (),
  rates: Sequence[float] = (),
) -> None:
  """Adds a start to the file; a failure to write is logged.

  Args:
    workdir: the run directory.
    step: see `Start`.
    began: see `Start`.
    changes: (word, before, now).
    rates: see `Start`.
  """
  texts = [[str(x) for x in change] for change in changes]
  start = Start(
    step, round(began, 3), round(time.time(), 3), step, command(sys.argv), texts, list(rates)
  )
  _write(workdir, [*read(workdir), start])


def mark(workdir: Place, step: int) -> None:
  """Records that the newest start has completed `step` steps by now."""
  starts = read(workdir)
  if starts:
    starts[-1].ended, starts[-1].reached = round(time.time(), 3), step
    _write(workdir, starts)


def read(workdir: Place) -> list[Start]:
  """Returns the starts of a run; [] without a valid file."""
  try:
    found = numbers(read_json(workdir / NAME))['starts']
    return [Start(**s) for s in found if _valid(s)]
  except (OSError, ValueError, TypeError, KeyError, RecursionError):
    return []


def _valid(start: Any) -> bool:
  if not isinstance(start, dict) or set(start) != set(HINTS):
    return False
  if not all(fits(start[k], hint) for k, hint in HINTS.items()):
    return False
  times = start['began'], start['ended'], start['step'], start['reached']
  return all(0 <= x < LARGEST for x in times) and all(abs(x) < LARGEST for x in start['rates'])


def _write(workdir: Place, starts: Sequence[Start]) -> None:
  path = workdir / NAME
  with tolerated(path):
    write_json(path, {'starts': [dataclasses.asdict(s) for s in starts]})


def command(argv: Sequence[str]) -> str:
  """Returns a command line that starts this program again.

  >>> command(['/x/bmx/main.py', '--config=gpt_char', '--config.data.path=my file'])
  "python -m bmx.main --config=gpt_char '--config.data.path=my file'"
  """
  program = pathlib.Path(argv[0] if argv else '')
  if program.parent.name == 'bmx' and program.name in ('main.py', '__main__.py'):
    name = 'python -m bmx.main' if program.name == 'main.py' else 'python -m bmx'
  else:
    name = program.name if program.name == 'bmx' else f'python {shlex.quote(str(program))}'
  return ' '.join([name, *map(shlex.quote, argv[1:])])
