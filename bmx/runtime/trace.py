"""Traces of jax.profiler: the time of each compiled operation, read from xplane.pb."""

import collections
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from jax.profiler import ProfileData

from bmx.runtime.report.layout import grid
from bmx.runtime.report.sections import Section

TOP = 12  # operations that are listed
DEVICE = '/device:'  # begins the planes of accelerators; without one, the CPU's threads are read
OPERATIONS = 'XLA Ops'  # the line of a device that has each operation once
STREAM = 'Stream'  # begins the lines of a GPU that has no such line


class Operation(NamedTuple):
  """An operation of a compiled program.

  Attributes:
    name: as in the compiled program, such as 'fusion.3'.
    program: its module, such as 'jit_step'; '' where the trace has none.
    calls: executions in the trace.
    seconds: over all calls and threads, without operations inside it (a loop without its body).
  """

  name: str
  program: str
  calls: int
  seconds: float


def newest(folder: pathlib.Path) -> pathlib.Path | None:
  """Returns the newest trace below a folder that jax.profiler has written to; None without one."""
  found = folder.rglob('*.xplane.pb')
  return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def read(path: pathlib.Path) -> list[Operation]:
  """Returns the operations of a trace file, the longest first."""
  return operations(ProfileData.from_file(str(path)))


def operations(profile: Any) -> list[Operation]:
  """Returns the operations of a jax.profiler.ProfileData, the longest first; [] without any."""
  calls: collections.Counter[tuple[str, str]] = collections.Counter()
  seconds: dict[tuple[str, str], float] = collections.defaultdict(float)
  for line in _lines(profile):
    for key, own in _own_times(_events(line)):
      calls[key] += 1
      seconds[key] += own * 1e-9
  found = [Operation(*key, calls[key], seconds[key]) for key in seconds]
  return sorted(found, key=lambda operation: (-operation.seconds, operation.name))


def _lines(profile: Any) -> Iterator[Any]:
  planes = [(plane.name, list(plane.lines)) for plane in profile.planes]
  devices = [line for name, lines in planes if name.startswith(DEVICE) for line in _once(lines)]
  # A library may add a plane of a device that ran nothing.
  yield from devices or (line for _, lines in planes for line in lines)


def _once(lines: Sequence[Any]) -> list[Any]:
  """Returns the lines of a device that have each operation once."""
  once = [line for line in lines if line.name == OPERATIONS]
  return once or [line for line in lines if line.name.startswith(STREAM)]


def _events(line: Any) -> Iterator[tuple[float, float, tuple[str, str]]]:
  """Yields (begin, end, (name, program)) of the operations of a line, in nanoseconds."""
  for event in line.events:
    stats = dict(event.stats) if event.duration_ns else {}
    if 'hlo_op' in stats or (event.duration_ns and line.name == OPERATIONS):
      key = str(stats.get('hlo_op', event.name)), str(stats.get('hlo_module', ''))
      yield event.start_ns, event.start_ns + event.duration_ns, key


def _own_times(
  events: Iterator[tuple[float, float, tuple[str, str]]],
) -> list[tuple[tuple[str, str], float]]:
  """Returns the key of each event with its duration, less that of the events inside it."""
  own: list[tuple[tuple[str, str], float]] = []
  around: list[tuple[int, float]] = []  # (index, end) of events that have not ended
  for begin, end, key in sorted(events, key=lambda event: (event[0], -event[1])):
    while around and around[-1][1] <= begin:
      around.pop()
    if around:
      outer, until = around[-1]
      name, left = own[outer]
      own[outer] = name, left - (min(end, until) - begin)
    around.append((len(own), end))
    own.append((key, end - begin))
  return own


def rows(found: Sequence[Operation]) -> list[tuple[str, str, str, str]]:
  """Returns (share, milliseconds, calls, name) of the longest operations, then of all others."""
  total = sum(operation.seconds for operation in found) or 1.0
  top, others = found[:TOP], found[TOP:]
  named = [(f'{one.name} ({one.program})' if one.program else one.name, one) for one in top]
  if others:
    calls, seconds = sum(o.calls for o in others), sum(o.seconds for o in others)
    named.append((f'{len(others)} others', Operation('', '', calls, seconds)))
  return [
    (f'{one.seconds / total:.1%}', f'{1e3 * one.seconds:.3f}', f'{one.calls:,}', name)
    for name, one in named
  ]


def text(found: Sequence[Operation]) -> str:
  """Returns the longest operations as lines of a terminal."""
  table = [('share', 'ms', 'calls', 'operation'), *rows(found)]
  return '\n'.join(f'{s:>7}{ms:>12}{calls:>9}  {name}' for s, ms, calls, name in table)


def section(found: Sequence[Operation]) -> Section:
  """Returns the longest operations as a section of the report."""
  cells = [(name, share, ms, calls) for share, ms, calls, name in rows(found)]
  return Section(
    'Profile',
    '<p>Share of the time of all operations of the traced steps, summed over threads; a loop is '
    f'listed without its body.</p>{grid(("operation", "share", "ms", "calls"), cells)}',
  )
