"""The device threads of a server: one alone uses the device, requests reach it through a queue."""

import itertools
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

import jax

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Variables
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

  def swap(self, variables: Variables) -> None:
    """Exchanges the weights without dropping a request."""
    raise NotImplementedError

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
    self._next: Variables | None = None  # weights that wait for the requests under way
    self._held: list[tuple[int, Any]] = []  # requests that wait for these weights

  def swap(self, variables: Variables) -> None:
    """Exchanges the weights between two requests; returns at once.

    Requests under way finish with the weights that they began with, so that an answer has one
    model; later ones wait for them. Nothing is compiled. May be called from any thread.

    Raises InputError if the arrays differ in name, shape or type from those of the engine.
    """
    wrong = tree.difference(tree.signature(variables), tree.signature(self.engine.variables))
    if wrong:
      raise InputError(f'weights of another model: {wrong[0]}; start a server of its own for it')
    place = lambda was, now: jax.device_put(now, was.sharding)
    placed = jax.tree.map(place, self.engine.variables, variables)
    self.inbox.put(('swap', -1, jax.block_until_ready(placed)))

  def turns(self) -> None:
    """Steps the engine until it is idle and the server drains."""
    while not (self.closing and self.engine.idle and self.inbox.empty() and not self._held):
      self._read_inbox(wait=self.engine.idle and self._next is None)
      if self._next is not None and self.engine.idle:
        self._exchange(self._next)
      for output in self.engine.step():
        self._deliver(output)

  def _read_inbox(self, wait: bool) -> None:
    while wait or not self.inbox.empty():
      kind, ticket, request = self.inbox.get()
      wait = False
      if kind == 'swap':
        self._next = request
      if kind == 'submit':
        self._held.append((ticket, request))
      if self._next is None:
        self._submit()
      if kind == 'cancel' and ticket in self._numbers:
        self.engine.cancel(self._numbers.pop(ticket))

  def _submit(self) -> None:
    """Gives requests that wait to the engine; those that were cancelled are left out."""
    for ticket, request in self._held:
      if ticket in self.sinks:
        self._numbers[ticket] = self.engine.submit(request)
    self._held = []

  def _exchange(self, variables: Variables) -> None:
    """Sets the weights of an idle engine, whose cache the old ones have made."""
    self.engine.forget()
    self.engine.variables, self._next = variables, None
    self._submit()

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
