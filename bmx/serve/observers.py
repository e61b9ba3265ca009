"""Observers of a server: called after each whole answer, in a thread of their own."""

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

log = logging.getLogger('bmx')
MAX_WAITING = 1024  # answers that wait for the observers; further ones are not observed


class Observer(Protocol):
  """Sees the answers of a server, in the order in which they ended."""

  def answered(
    self, route: str, request_id: str, asked: Mapping[str, Any], answer: Mapping[str, Any]
  ) -> None:
    """Called after a whole answer, in the thread of the observers.

    Args:
      route: path of the request, such as '/v1/completions'.
      request_id: `id` of the answer.
      asked: the JSON object of the request.
      answer: the JSON object of the answer; that of a stream has the joined texts, in the shape of
        an answer without a stream.
    """
    ...


class Observers:
  """Calls observers without delaying or failing a request.

  An answer that finds `MAX_WAITING` others waiting is not observed, and counted in `lost`. An error
  of an observer is logged once.

  Args:
    observers: called in this order.
    on_lost: called for each answer that is not observed.
  """

  def __init__(self, observers: Sequence[Observer], on_lost: Callable[[], None] = lambda: None):
    self.observers, self.lost, self._on_lost = tuple(observers), 0, on_lost
    self._failed: set[int] = set()
    self._inbox: queue.Queue[tuple[Any, ...] | None] = queue.Queue(MAX_WAITING)
    self._thread = threading.Thread(target=self._run, name='observers', daemon=True)
    if self.observers:
      self._thread.start()

  def answered(
    self, route: str, request_id: str, asked: Mapping[str, Any], answer: Mapping[str, Any]
  ) -> None:
    """Queues an answer; see `Observer.answered`."""
    if not self.observers:
      return
    try:
      self._inbox.put_nowait((route, request_id, asked, answer))
    except queue.Full:
      self.lost += 1
      self._on_lost()
      if self.lost == 1:
        log.warning('observers: %d answers wait; further ones are not observed', MAX_WAITING)

  def close(self, timeout: float) -> bool:
    """Waits up to `timeout` seconds until all are observed; returns whether they are."""
    if not self.observers:
      return True
    try:
      self._inbox.put(None, timeout=timeout)
    except queue.Full:
      return False
    self._thread.join(timeout)
    return not self._thread.is_alive()

  def _run(self) -> None:
    while (item := self._inbox.get()) is not None:
      for number, observer in enumerate(self.observers):
        self._call(number, observer, item)

  def _call(self, number: int, observer: Observer, item: tuple[Any, ...]) -> None:
    try:
      observer.answered(*item)
    except Exception as error:
      if number not in self._failed:
        self._failed.add(number)
        log.error('observer %s failed; said once', type(observer).__name__, exc_info=error)
