"""Writers for logs and metrics: terminal, metrics.jsonl, TensorBoard."""

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from bmx.runtime.files import appender, numbers, to_json
from bmx.runtime.storage import Place
from bmx.runtime.tensorboard import Events

log = logging.getLogger('bmx')

# Keys of metrics.jsonl that measure time, and so differ between two equal runs.
TIMES = (
  'time',
  'steps_per_second',
  'step_seconds',
  'data_wait_fraction',
  'examples_per_second',
  'tokens_per_second',
  'mfu',
  'watts',
  'joules_per_token',
  'joules_per_example',
  'kwh',
  'usd',
  'kg_co2e',
)


class Bar:
  """A progress bar with loss, rate and remaining time; without a terminal it does nothing.

  Args:
    steps: of the run.
  """

  live: Any = None

  def __init__(self, steps: int):
    self.progress = None
    if sys.stderr.isatty():
      from rich import console, progress

      self.progress = progress.Progress(
        progress.TextColumn('{task.completed}/{task.total}  {task.percentage:.0f} %'),
        progress.BarColumn(bar_width=None),
        progress.TextColumn('{task.fields[text]}'),
        console=console.Console(stderr=True),
        transient=True,
      )
      self.row = self.progress.add_task('', total=steps, text='compiling')

  def __enter__(self) -> 'Bar':
    if self.progress:
      self.progress.start()
      Bar.live = self.progress
    return self

  def __exit__(self, *_: object) -> None:
    if self.progress:
      Bar.live = None
      self.progress.stop()

  def update(self, step: int, text: str) -> None:
    if self.progress:
      self.progress.update(self.row, completed=step, text=text)


class JsonLines:
  """metrics.jsonl: one JSON object per line, on disk (fsync) before the call returns.

  In an object store, lines are there when `flush` returns, and at most some seconds later.

  A line that cannot be written is kept and written with the next one; no half line stays.

  Args:
    path: of the file.
    length: bytes that a resumed run keeps; lines written after its checkpoint are cut off.
  """

  def __init__(self, path: Place, length: int = 0):
    self.file = appender(path, sync=True)
    there = self.file.length
    if there < length:
      log.warning('%s HAS LOST LINES: %d bytes of the %d that its checkpoint records',
                  path, there, length)  # fmt: skip
    self.file.truncate(min(length, there))

  @property
  def length(self) -> int:
    """Bytes of the whole lines in the file."""
    return self.file.length

  def write(self, line: Mapping[str, Any]) -> None:
    """Writes a line; numbers that are not finite as `files.to_json` does."""
    self.file.write((to_json(line) + '\n').encode())

  def flush(self) -> None:
    """Writes lines that are kept."""
    self.file.flush()

  def close(self) -> None:
    """Closes the file."""
    self.file.close()


class Sink(Protocol):
  """A place beside metrics.jsonl that values of a run go to."""

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes numbers of a step by name."""
    ...

  def texts(self, step: int, values: Mapping[str, str]) -> None:
    """Writes texts of a step by name."""
    ...

  def close(self) -> None:
    """Ends the writing."""
    ...


class Writer:
  """Writes scalars and texts of a step to metrics.jsonl, TensorBoard, trackers, the terminal.

  Args:
    workdir: the run directory.
    step: completed steps at the start; later TensorBoard events are hidden.
    length: see `JsonLines`.
    trackers: name -> started tracker.
  """

  def __init__(
    self, workdir: Place, step: int, length: int, trackers: Mapping[str, Sink] | None = None
  ):
    self.lines = JsonLines(workdir / 'metrics.jsonl', length)
    self.events = Events(workdir / 'tensorboard', step)
    self.sinks: dict[str, Sink] = {'tensorboard': self.events, **(trackers or {})}

  @property
  def length(self) -> int:
    return self.lines.length

  def scalars(
    self, step: int, values: Mapping[str, float], position: str = '', left: str = ''
  ) -> None:
    """Writes values of a step.

    Args:
      step: completed steps.
      values: by name.
      position: beginning of the line on the terminal, see `progress.Progress`.
      left: its end.
    """
    self.lines.write({'step': step, 'time': round(time.time(), 3)} | dict(values))
    for sink in self.sinks.values():
      sink.scalars(step, values)
    log.info('%s  %s', position or f'step {step}', '  '.join(filter(None, [_line(values), left])))

  def texts(self, step: int, values: Mapping[str, str]) -> None:
    """Writes texts of a step to TensorBoard and the trackers."""
    for sink in self.sinks.values():
      sink.texts(step, values)

  def flush(self) -> None:
    """Writes the lines and events that are kept, before a checkpoint that records `length`."""
    self.lines.flush()
    self.events.flush()

  def close(self) -> None:
    self.lines.close()
    for sink in self.sinks.values():
      sink.close()


def _line(values: Mapping[str, float]) -> str:
  """Formats a log line: loss first; omits values that are usually constant."""
  usual = {'steps_per_second', 'step_seconds', 'watts', 'kwh', 'usd', 'kg_co2e'}
  usual |= {'skipped'} if not values.get('skipped') else set()
  usual |= {'data_wait_fraction'} if values.get('data_wait_fraction', 0) < 0.05 else set()
  shown = {k: v for k, v in values.items() if k not in usual}
  order = sorted(shown, key=lambda k: k != 'loss')
  return '  '.join(f'{k.replace("_per_second", "/s")} {brief(shown[k])}' for k in order)


class Silent:
  """The writer of every process but the first."""

  length = 0

  def scalars(
    self, step: int, values: Mapping[str, float], position: str = '', left: str = ''
  ) -> None:
    log.info('step %d %s', step, dict(values))

  def texts(self, step: int, values: Mapping[str, str]) -> None:
    pass

  def flush(self) -> None:
    pass

  def close(self) -> None:
    pass


def brief(value: float) -> str:
  """Formats a number for people: four digits, thousands separated.

  >>> brief(0.00012345), brief(12345.678), brief(0.98765), brief(3)
  ('0.0001234', '12,346', '0.9877', '3')
  """
  if isinstance(value, int) or (abs(value) >= 1000 and value == value):
    return f'{value:,.0f}'
  return f'{value:.4g}'


def read_metrics(path: Place) -> list[dict[str, Any]]:
  """Returns the objects of a metrics.jsonl, [] without one; damaged lines are logged and left out.

  Texts of numbers that are not finite become numbers, see `files.to_json`.
  """
  if not path.is_file():
    return []
  found = []
  for number, text in enumerate(path.read_bytes().splitlines(), 1):
    try:
      line = numbers(json.loads(text))
      if not isinstance(line, dict) or not isinstance(line['step'], int):
        raise ValueError('expected an object with a step')
      found.append(line)
    except (ValueError, KeyError, RecursionError) as error:
      log.warning('%s, line %d is damaged and left out: %s', path, number, error)
  return found


def table(rows: list[tuple[str, ...]]) -> str:
  """Formats rows as aligned columns; columns of numbers are right-aligned."""
  widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
  number = [all(r[i][:1].isdigit() or not r[i] for r in rows[1:]) for i in range(len(widths))]
  cells = lambda r: [
    c.rjust(w) if n else c.ljust(w) for c, w, n in zip(r, widths, number, strict=True)
  ]
  return '\n'.join('  '.join(cells(r)).rstrip() for r in rows)
