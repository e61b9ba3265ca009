"""The device threads of a server: one alone uses the device, requests reach it through a queue."""

import itertools
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

from bmx.serve.engine import Engine
from bmx.serve.rows import Output

log = logging.getLogger('bmx')

Sink = Callable[[Any], None]  # gets outputs, or the exception that ends a request; device thread


class Overloaded(Exception):
  """The queue is full; the request can be sent again later."""


class Unavailable(Exception):
  """The server drains, or its device thread has ended with an error."""


class DeviceThread:
  """A thread that answers requests from a queue; a subclass says how, in `turns`.

  Args:
    most: requests that may wait or run; more are refused.
    on_death: called with the error that ends the thread, after all requests have failed.
  """

  def __init__(self, most: int, on_death: Callable[[BaseException], None] = lambda error: None):
    self.most, self.on_death = most, on_death
    self.error: BaseException | None = None
    self.inbox: queue.SimpleQueue[tuple[str, int, Any]] = queue.SimpleQueue()
    self.sinks: dict[int, Sink] = {}  # by ticket
    self.closing = False
    self.lock = threading.Lock()
    self._tickets = itertools.count()
    self._thread = threading.Thread(target=self._run, name='device', daemon=True)

  def turns(self) -> None:
    """Answers requests until `closing` and nothing is left."""
    raise NotImplementedError

  def start(self) -> None:
    """Starts the thread."""
    self._thread.start()

  @property
  def pending(self) -> int:
    """Number of requests that wait or run."""
    return len(self.sinks)

  @property
  def accepts(self) -> bool:
    """Whether a request would be accepted now."""
    return self._refusal(self.pending) is None

  def check(self, pending: int) -> None:
    """Raises Overloaded or Unavailable if one more than `pending` requests is not accepted."""
    refusal = self._refusal(pending)
    if refusal is not None:
      raise refusal

  def submit(self, request: Any, sink: Sink) -> int:
    """Queues a request; returns a ticket for `cancel`.

    Args:
      request: that has been checked.
      sink: gets every output of the request, or the exception that ends it.

    Raises:
      Overloaded: the queue is full.
      Unavailable: the server drains or has failed.
    """
    with self.lock:
      self.check(self.pending)
      ticket = next(self._tickets)
      self.sinks[ticket] = sink
    self.inbox.put(('submit', ticket, request))
    return ticket

  def cancel(self, ticket: int) -> None:
    """Ends a request without another output; a ticket that has ended is ignored."""
    with self.lock:
      self.sinks.pop(ticket, None)
    self.inbox.put(('cancel', ticket, None))

  def drain(self) -> None:
    """Refuses new requests; the thread ends when all others have finished."""
    with self.lock:
      self.closing = True
    self.inbox.put(('wake', -1, None))

  def join(self, timeout: float | None = None) -> bool:
    """Waits for the thread; returns whether it has ended."""
    self._thread.join(timeout)
    return not self._thread.is_alive()

  def _refusal(self, pending: int) -> Exception | None:
    if self.error is not None:
      return Unavailable(f'the device thread has ended: {self.error}')
    if self.closing:
      return Unavailable('the server is shutting down')
    if pending >= self.most:
      return Overloaded(f'{pending} requests are waiting or running')
    return None

  def _run(self) -> None:
    try:
      self.turns()
    except BaseException as error:
      self._die(error)

  def _die(self, error: BaseException) -> None:
    """Fails all requests at once: none waits for its time-out."""
    with self.lock:
      self.error = error
      sinks, self.sinks = list(self.sinks.values()), {}
    log.critical('the device thread has ended: %s: %s', type(error).__name__, error)
    for sink in sinks:
      sink(Unavailable(f'the device thread has ended: {type(error).__name__}'))
    self.on_death(error)


class Worker(DeviceThread):
  """Runs an engine; a sink gets each `Output` of its request.

  Args:
    engine: compiled.
    max_waiting: requests that may wait for a row; more are refused.
    on_death: see `DeviceThread`.
  """

  def __init__(
    self,
    engine: Engine,
    max_waiting: int,
    on_death: Callable[[BaseException], None] = lambda error: None,
  ):
    super().__init__(len(engine.rows) + max_waiting, on_death)
    self.engine = engine
    self._numbers: dict[int, int] = {}  # ticket -> number in the engine

  def turns(self) -> None:
    """Steps the engine until it is idle and the server drains."""
    while not (self.closing and self.engine.idle and self.inbox.empty()):
      self._read_inbox(wait=self.engine.idle)
      for output in self.engine.step():
        self._deliver(output)

  def _read_inbox(self, wait: bool) -> None:
    while wait or not self.inbox.empty():
      kind, ticket, request = self.inbox.get()
      wait = False
      if kind == 'submit' and ticket in self.sinks:
        self._numbers[ticket] = self.engine.submit(request)
      if kind == 'cancel' and ticket in self._numbers:
        self.engine.cancel(self._numbers.pop(ticket))

  def _deliver(self, output: Output) -> None:
    ticket = next((t for t, n in self._numbers.items() if n == output.request), None)
    if ticket is None:
      return
    with self.lock:
      sink = self.sinks.pop(ticket, None) if output.finish else self.sinks.get(ticket)
    if output.finish:
      self._numbers.pop(ticket)
    if sink is not None:
      sink(output)
