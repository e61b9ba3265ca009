"""The device thread of a server: it alone calls the engine, requests reach it through a queue."""

import itertools
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from bmx.serve.engine import Engine
from bmx.serve.rows import Output, Request

log = logging.getLogger('bmx')

Sink = Callable[[Output | Exception], None]  # called in the device thread


class Overloaded(Exception):
  """The queue is full; the request can be sent again later."""


class Unavailable(Exception):
  """The server drains, or its device thread has ended with an error."""


class Worker:
  """Runs an engine in a thread of its own.

  Args:
    engine: compiled.
    max_waiting: requests that may wait for a row; more are refused.
    on_death: called with the error that ends the thread, after all requests have failed.
  """

  def __init__(
    self,
    engine: Engine,
    max_waiting: int,
    on_death: Callable[[BaseException], None] = lambda error: None,
  ):
    self.engine, self.max_waiting, self.on_death = engine, max_waiting, on_death
    self.error: BaseException | None = None
    self._tickets, self._lock = itertools.count(), threading.Lock()
    self._inbox: queue.SimpleQueue[tuple[str, int, Any]] = queue.SimpleQueue()
    self._sinks: dict[int, Sink] = {}  # by ticket
    self._numbers: dict[int, int] = {}  # ticket -> number in the engine; of the device thread
    self._closing = False
    self._thread = threading.Thread(target=self._run, name='device', daemon=True)

  def start(self) -> None:
    """Starts the thread."""
    self._thread.start()

  @property
  def pending(self) -> int:
    """Number of requests that wait or generate."""
    return len(self._sinks)

  @property
  def accepts(self) -> bool:
    """Whether a request would be accepted now."""
    return self._refusal() is None

  def submit(self, request: Request, sink: Sink) -> int:
    """Queues a request; returns a ticket for `cancel`.

    Args:
      request: that `Engine.check` accepts.
      sink: gets every Output of the request, or the exception that ends it.

    Raises:
      Overloaded: too many requests wait.
      Unavailable: the worker drains, or has died.
    """
    with self._lock:
      refusal = self._refusal()
      if refusal is not None:
        raise refusal
      ticket = next(self._tickets)
      self._sinks[ticket] = sink
    self._inbox.put(('submit', ticket, request))
    return ticket

  def cancel(self, ticket: int) -> None:
    """Ends a request without another output; a ticket that has ended is ignored."""
    with self._lock:
      self._sinks.pop(ticket, None)
    self._inbox.put(('cancel', ticket, None))

  def drain(self) -> None:
    """Refuses new requests; the thread ends when all others have finished."""
    with self._lock:
      self._closing = True
    self._inbox.put(('wake', -1, None))

  def join(self, timeout: float | None = None) -> bool:
    """Waits for the thread; returns whether it has ended."""
    self._thread.join(timeout)
    return not self._thread.is_alive()

  def _refusal(self) -> Exception | None:
    if self.error is not None:
      return Unavailable(f'the device thread has ended: {self.error}')
    if self._closing:
      return Unavailable('the server is shutting down')
    if len(self._sinks) >= len(self.engine.rows) + self.max_waiting:
      return Overloaded(f'{len(self._sinks)} requests are waiting or running')
    return None

  def _run(self) -> None:
    try:
      while not (self._closing and self.engine.idle and self._inbox.empty()):
        self._read_inbox(wait=self.engine.idle)
        for output in self.engine.step():
          self._deliver(output)
    except BaseException as error:
      self._die(error)

  def _read_inbox(self, wait: bool) -> None:
    while wait or not self._inbox.empty():
      kind, ticket, request = self._inbox.get()
      wait = False
      if kind == 'submit' and ticket in self._sinks:
        self._numbers[ticket] = self.engine.submit(request)
      if kind == 'cancel' and ticket in self._numbers:
        self.engine.cancel(self._numbers.pop(ticket))

  def _deliver(self, output: Output) -> None:
    ticket = next((t for t, n in self._numbers.items() if n == output.request), None)
    if ticket is None:
      return
    with self._lock:
      sink = self._sinks.pop(ticket, None) if output.finish else self._sinks.get(ticket)
    if output.finish:
      self._numbers.pop(ticket)
    if sink is not None:
      sink(output)

  def _die(self, error: BaseException) -> None:
    """Fails all requests at once: none waits for its time-out."""
    with self._lock:
      self.error = error
      sinks, self._sinks = list(self._sinks.values()), {}
    log.critical('the device thread has ended: %s: %s', type(error).__name__, error)
    for sink in sinks:
      sink(Unavailable(f'the device thread has ended: {type(error).__name__}'))
    self.on_death(error)
