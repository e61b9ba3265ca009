"""Ends a run that makes no progress and prints the stack of every thread."""

import faulthandler
import logging
import os
import sys
import threading
import time

from bmx.core.errors import WATCHDOG

log = logging.getLogger('bmx')


class Watchdog:
  """While entered, exits with code 77 if `seconds` pass without a `pat`.

  Prints the stack of every thread first. Compilation and one evaluation are without progress: leave
  time for them.

  Args:
    seconds: without progress; 0 disables the watchdog.
  """

  def __init__(self, seconds: float):
    self.seconds, self.last = seconds, time.monotonic()
    self.ended = threading.Event()

  def __enter__(self) -> 'Watchdog':
    self.pat()
    if self.seconds:
      threading.Thread(target=self._watch, daemon=True).start()
    return self

  def __exit__(self, *_: object) -> None:
    self.ended.set()

  def pat(self) -> None:
    """Records progress: a step, an evaluation or a compilation has finished."""
    self.last = time.monotonic()

  def _watch(self) -> None:
    while not self.ended.wait(min(self.seconds / 4, 5)):
      if time.monotonic() - self.last > self.seconds:
        log.error('no step has finished in %g s (watchdog.seconds); the stack of every thread:',
                  self.seconds)  # fmt: skip
        logging.shutdown()
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        os._exit(WATCHDOG)
