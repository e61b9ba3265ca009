"""Observers of a server: called after each whole answer, in a thread of their own."""

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

log = logging.getLogger('bmx')
# Answers that wait for the observers, and their bytes; further ones are not observed.
MAX_WAITING, MAX_BYTES = 1024, 2**26
MAX_KNOWN = 2**16  # ids of answers that are remembered, the newest


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

  An answer that finds `MAX_WAITING` others waiting, or is beyond `MAX_BYTES` with them, is counted
  in `lost` and not observed; a single one of any size is. An error of an observer is logged once.
  `answered` and `knows` are called by one thread.

  Args:
    observers: called in this order.
    on_lost: called for each answer that is not observed.
  """

  def __init__(self, observers: Sequence[Observer], on_lost: Callable[[], None] = lambda: None):
    self.observers, self.lost, self._on_lost = tuple(observers), 0, on_lost
    self._failed: set[int] = set()
    self._known: dict[str, None] = {}
    self._lock, self._waiting, self._bytes = threading.Lock(), 0, 0
    self._inbox: queue.SimpleQueue[tuple[int, tuple[Any, ...]] | None] = queue.SimpleQueue()
    self._thread = threading.Thread(target=self._run, name='observers', daemon=True)
    if self.observers:
      self._thread.start()

  def answered(
    self,
    route: str,
    request_id: str,
    asked: Mapping[str, Any],
    answer: Mapping[str, Any],
    size: int = 0,
  ) -> None:
    """Queues an answer; see `Observer.answered`. size: its bytes, and those of the request."""
    if self._put((route, request_id, asked, answer), size):
      self._known[request_id] = None
      if len(self._known) > MAX_KNOWN:
        del self._known[next(iter(self._known))]

  def corrected(
    self, route: str, request_id: str, correction: Mapping[str, Any], size: int = 0
  ) -> bool:
    """Queues a correction, as `asked` of an empty answer; returns whether it will be observed."""
    return self._put((route, request_id, correction, {}), size)

  def knows(self, request_id: str) -> bool:
    """Whether the answer of this id is one of the last `MAX_KNOWN` that were queued."""
    return request_id in self._known

  def _put(self, item: tuple[Any, ...], size: int) -> bool:
    if not self.observers:
      return False
    with self._lock:
      fits = self._waiting < MAX_WAITING and (not self._bytes or self._bytes + size <= MAX_BYTES)
      if fits:
        self._waiting, self._bytes = self._waiting + 1, self._bytes + size
        self._inbox.put((size, item))
        return True
    self.lost += 1
    self._on_lost()
    if self.lost == 1:
      log.warning('observers: %d answers of %d bytes wait; further ones are counted and not '
                  'observed', self._waiting, self._bytes)  # fmt: skip
    return False

  def close(self, timeout: float) -> bool:
    """Waits up to `timeout` seconds until all are observed; returns whether they are."""
    if not self.observers:
      return True
    self._inbox.put(None)
    self._thread.join(timeout)
    return not self._thread.is_alive()

  def _run(self) -> None:
    while (item := self._inbox.get()) is not None:
      size, given = item
      for number, observer in enumerate(self.observers):
        self._call(number, observer, given)
      with self._lock:
        self._waiting, self._bytes = self._waiting - 1, self._bytes - size

  def _call(self, number: int, observer: Observer, given: tuple[Any, ...]) -> None:
    try:
      observer.answered(*given)
    except Exception as error:
      if number not in self._failed:
        self._failed.add(number)
        log.error('observer %s failed; said once', type(observer).__name__, exc_info=error)
