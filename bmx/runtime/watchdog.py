"""Ends a run that does not get on, and says where it stood."""

import faulthandler
import logging
import os
import sys
import threading
import time

from bmx.core.errors import WATCHDOG

log = logging.getLogger('bmx')


class Watchdog:
  """While entered: if `seconds` pass without a `pat`, prints every thread's stack and exits with
  77.

  0 seconds is no watchdog. Compiling and evaluating count as standing still: be generous.
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
    """A step has finished."""
    self.last = time.monotonic()

  def _watch(self) -> None:
    while not self.ended.wait(min(self.seconds / 4, 5)):
      if time.monotonic() - self.last > self.seconds:
        log.error('no step has finished in %g s (watchdog.seconds); every thread stands here:',
                  self.seconds)  # fmt: skip
        logging.shutdown()
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        os._exit(WATCHDOG)
