"""Writers for logs and metrics: terminal, metrics.jsonl, TensorBoard."""

import json
import logging
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

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
)


def start_logging(workdir: pathlib.Path, process: int = 0) -> None:
  """Logs to the terminal in process 0, to WORKDIR/logs/PROCESS.log in the others."""
  if process:
    (workdir / 'logs').mkdir(parents=True, exist_ok=True)
    handler: logging.Handler = logging.FileHandler(workdir / 'logs' / f'{process}.log')
    handler.setFormatter(logging.Formatter('%(asctime)s %(message)s'))
  else:
    handler = _Terminal()
  for old in list(log.handlers):
    log.removeHandler(old)
  log.addHandler(handler)
  log.setLevel(logging.INFO)
  log.propagate = False


class _Terminal(logging.Handler):
  """Plain lines on stderr, above the progress bar if one is live."""

  def emit(self, record: logging.LogRecord) -> None:
    text = self.format(record)
    if Bar.live is not None:
      Bar.live.console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
      sys.stderr.write(text + '\n')


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
        progress.TextColumn('{task.completed}/{task.total}'),
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

  A line that cannot be written is kept and written with the next one; no half line stays.

  Args:
    path: of the file.
    length: bytes that a resumed run keeps; lines written after its checkpoint are cut off.
  """

  def __init__(self, path: pathlib.Path, length: int = 0):
    self.path = path
    self.file = open(path, 'ab', buffering=0)  # noqa: SIM115  closed in close()
    there = path.stat().st_size
    if there < length:
      log.warning('%s HAS LOST LINES: %d bytes of the %d that its checkpoint records',
                  path, there, length)  # fmt: skip
    self.length = min(length, there)
    self.file.truncate(self.length)
    self.kept = b''

  def write(self, line: Mapping[str, Any]) -> None:
    self.kept += (json.dumps(dict(line)) + '\n').encode()
    try:
      written = self.file.write(self.kept)
      if written != len(self.kept):
        raise OSError(f'{written} of {len(self.kept)} bytes written')
      os.fsync(self.file.fileno())
    except OSError as error:
      log.error('%s cannot be written, and will be tried again: %s', self.path, error)
      self.file.truncate(self.length)
      return
    self.length += len(self.kept)
    self.kept = b''

  def close(self) -> None:
    self.file.close()


class Writer:
  """Writes scalars of a step to metrics.jsonl, TensorBoard and the terminal.

  Args:
    workdir: the run directory.
    step: completed steps at the start; later TensorBoard events are hidden.
    length: see `JsonLines`.
  """

  def __init__(self, workdir: pathlib.Path, step: int, length: int):
    self.lines = JsonLines(workdir / 'metrics.jsonl', length)
    self.events = _summary_writer()(
      str(workdir / 'tensorboard'), purge_step=step + 1 if step else None
    )

  @property
  def length(self) -> int:
    return self.lines.length

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    self.lines.write({'step': step, 'time': round(time.time(), 3)} | dict(values))
    for name, value in values.items():
      self.events.add_scalar(name, value, step)
    log.info('step %-7d %s', step, _line(values))

  def close(self) -> None:
    self.lines.close()
    self.events.close()


def _summary_writer() -> Any:
  # tensorboardX imports torch where it is installed (1.5 s, 300 MiB), which no scalar needs.
  hidden = sys.modules.get('torch', ...) is ...
  if hidden:
    sys.modules['torch'] = None  # type: ignore[assignment]
  try:
    from tensorboardX import SummaryWriter
  finally:
    if hidden:
      del sys.modules['torch']
  return SummaryWriter


def _line(values: Mapping[str, float]) -> str:
  """Formats a log line: loss first; omits values that are usually constant."""
  usual = {'steps_per_second', 'step_seconds'}
  usual |= {'skipped'} if not values.get('skipped') else set()
  usual |= {'data_wait_fraction'} if values.get('data_wait_fraction', 0) < 0.05 else set()
  shown = {k: v for k, v in values.items() if k not in usual}
  order = sorted(shown, key=lambda k: k != 'loss')
  return '  '.join(f'{k.replace("_per_second", "/s")} {brief(shown[k])}' for k in order)


class Silent:
  """The writer of every process but the first."""

  length = 0

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    log.info('step %d %s', step, dict(values))

  def close(self) -> None:
    pass


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a file atomically; it is on disk (fsync) when the call returns."""
  part = path.with_name(path.name + '.part')
  with part.open('w') as file:
    json.dump(value, file, indent=1, default=str)
    file.write('\n')
    file.flush()
    os.fsync(file.fileno())
  part.replace(path)


def brief(value: float) -> str:
  """Formats a number for people: four digits, thousands separated.

  >>> brief(0.00012345), brief(12345.678), brief(0.98765), brief(3)
  ('0.0001234', '12,346', '0.9877', '3')
  """
  if isinstance(value, int) or (abs(value) >= 1000 and value == value):
    return f'{value:,.0f}'
  return f'{value:.4g}'


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the objects of a metrics.jsonl; [] without one."""
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(rows: list[tuple[str, ...]]) -> str:
  """Formats rows as aligned columns; columns of numbers are right-aligned."""
  widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
  number = [all(r[i][:1].isdigit() or not r[i] for r in rows[1:]) for i in range(len(widths))]
  cells = lambda r: [
    c.rjust(w) if n else c.ljust(w) for c, w, n in zip(r, widths, number, strict=True)
  ]
  return '\n'.join('  '.join(cells(r)).rstrip() for r in rows)
