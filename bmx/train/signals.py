"""Signals that ask a run to stop: the first saves and stops, a second interrupt stops at once."""

import logging
import signal
import threading
from typing import Any

import jax

log = logging.getLogger('bmx')


class Signals:
  """While entered, SIGTERM and SIGINT set `asked`; a second SIGINT raises KeyboardInterrupt.

  Outside the main thread, where Python delivers no signals, it does nothing.
  """

  def __init__(self) -> None:
    self.asked = False
    self.calls = 0
    self.former: dict[int, Any] = {}

  def asked_now(self) -> bool:
    """Returns whether the run stops after this dispatch.

    Several processes agree on one dispatch through jax, which handles SIGTERM itself then.
    Collective: every process must call.
    """
    if jax.process_count() == 1:
      return self.asked
    from jax.experimental import multihost_utils

    # jax agrees on a number that every process reaches: calls are counted without gaps.
    self.calls += 1
    return multihost_utils.reached_preemption_sync_point(self.calls)

  def __enter__(self) -> 'Signals':
    if jax.process_count() > 1:
      return self
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self.former[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self.former.items():
      signal.signal(number, handler)

  def _handle(self, number: int, _: object) -> None:
    if self.asked and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.asked = True
    log.info('%s: saving after the steps in flight; interrupt again to stop at once',
             signal.Signals(number).name)  # fmt: skip
