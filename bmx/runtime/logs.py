"""Logs of a process: the terminal of process 0, WORKDIR/logs/PROCESS.log of the others."""

import logging
import pathlib
import sys

from bmx.core.terminal import printable
from bmx.runtime.files import appender
from bmx.runtime.storage import Place
from bmx.runtime.writer import Bar

log = logging.getLogger('bmx')


def start_logging(workdir: Place, process: int = 0) -> None:
  """Logs to the terminal in process 0, to WORKDIR/logs/PROCESS.log in the others."""
  if process:
    handler = _log_file(workdir / 'logs' / f'{process}.log')
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
    text = printable(self.format(record))
    try:
      if Bar.live is not None:
        Bar.live.console.print(text, markup=False, highlight=False, soft_wrap=True)
      else:
        sys.stderr.write(text + '\n')
    except (OSError, ValueError):  # a closed pipe or file does not end the training
      return


def _log_file(path: Place) -> logging.Handler:
  if not isinstance(path, pathlib.Path):
    return _LogObject(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  return _LogFile(path)


class _LogObject(logging.Handler):
  """A log in an object store, some seconds behind; whole when the process ends."""

  def __init__(self, path: Place):
    super().__init__()
    self.file = appender(path)

  def emit(self, record: logging.LogRecord) -> None:
    self.file.write(f'{self.format(record)}\n'.encode(errors='replace'))

  def close(self) -> None:
    self.file.flush()
    super().close()


class _LogFile(logging.FileHandler):
  """A log file. A line that cannot be written is lost: there is nowhere to report it."""

  def handleError(self, record: logging.LogRecord) -> None:
    if not isinstance(sys.exc_info()[1], OSError):
      super().handleError(record)
