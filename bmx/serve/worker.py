"""The device threads of a server: one alone uses the device, requests reach it through a queue."""

import itertools
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple

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


class Exchange(NamedTuple):
  """Weights that wait for the device thread.

  Attributes:
    variables: arrays of this machine.
    done: a future that ends when they are the served ones.
  """

  variables: Variables
  done: 'Future[None]'


class DeviceThread:
  """A thread that answers requests from a queue; a subclass says how, in `turns`.

  Args:
    most: requests that may wait or run; more are refused.
    on_death: called with the error that ends the thread, after all requests have failed.
    expected: names, shapes and types of the weights, see `core.tree.signature`.
  """

  def __init__(
    self,
    most: int,
    on_death: Callable[[BaseException], None] = lambda error: None,
    expected: Mapping[str, list] | None = None,
  ):
    self.most, self.on_death, self.expected = most, on_death, expected or {}
    self.error: BaseException | None = None
    self.inbox: queue.SimpleQueue[tuple[str, int, Any]] = queue.SimpleQueue()
    self.sinks: dict[int, Sink] = {}  # by ticket
    self.closing = False
    self.lock = threading.Lock()
    self._tickets = itertools.count()
    self._exchanges: list[Future[None]] = []
    self._thread = threading.Thread(target=self._run, name='device', daemon=True)

  def swap(self, variables: Variables) -> 'Future[None]':
    """Exchanges the weights without dropping a request; returns at once.

    The device thread places them between two of its calls. May be called from any thread.

    Args:
      variables: arrays of this machine (NumPy).

    Returns:
      A future that ends when the weights are exchanged. It fails with Unavailable if the thread
      ends first, and is cancelled if other weights are given meanwhile.

    Raises:
      InputError: the arrays differ in name, shape or type from those that are served.
      Unavailable: the server drains or has failed.
    """
    check_weights(variables, self.expected)
    done: Future[None] = Future()
    with self.lock:
      ended = self._ended()
      if ended is not None:
        raise ended
      self._exchanges = [*(e for e in self._exchanges if not e.done()), done]
      self.inbox.put(('swap', -1, Exchange(variables, done)))
    return done

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
      # Inside the lock: behind `drain` the thread may have ended, and nobody would read it.
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

  def _ended(self) -> Exception | None:
    if self.error is not None:
      return Unavailable(f'the device thread has ended: {self.error}')
    return Unavailable('the server is shutting down') if self.closing else None

  def _refusal(self, pending: int) -> Exception | None:
    ended = self._ended()
    if ended is not None:
      return ended
    if pending >= self.most:
      return Overloaded(f'{pending} requests are waiting or running')
    return None

  def _run(self) -> None:
    try:
      self.turns()
    except BaseException as error:
      self._die(error)
    for done in self._exchanges:
      if not done.done():
        done.set_exception(Unavailable('the device thread has ended'))

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
    expected = tree.signature(engine.variables)
    super().__init__(len(engine.rows) + max_waiting, on_death, expected)
    self.engine = engine
    self._numbers: dict[int, int] = {}  # ticket -> number in the engine
    self._next: Exchange | None = None  # weights that wait for the requests under way
    self._held: list[tuple[int, Any]] = []  # requests that wait for these weights

  def turns(self) -> None:
    """Steps the engine until it is idle and the server drains.

    Requests under way finish with the weights that they began with, so that an answer has one
    model; later ones wait for an exchange.
    """
    while not (self.closing and self.engine.idle and self.inbox.empty() and self._next is None):
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
        if self._next is not None:
          self._next.done.cancel()
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

  def _exchange(self, given: Exchange) -> None:
    """Sets the weights of an idle engine, whose cache the old ones have made."""
    self.engine.forget()
    served, self.engine.variables = Served(self.engine.variables), {}
    self.engine.variables, self._next = served.replaced(given.variables), None
    given.done.set_result(None)
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


class Served:
  """Weights on the devices that others replace, array by array.

  An array that nobody else holds is free before the next one is placed: the devices never hold two
  models. Only the device thread uses it.

  Args:
    variables: on the devices; the caller gives up its own reference.
  """

  def __init__(self, variables: Variables):
    self.arrays = tree.named(variables)

  def replaced(self, variables: Variables) -> Variables:
    """Returns arrays of this machine, placed as the old ones of their names."""
    given = tree.named(variables)
    for name in given:
      where = self.arrays.pop(name).sharding
      given[name] = jax.block_until_ready(jax.device_put(given[name], where))
    return tree.nested(given)


def check_weights(variables: Variables, expected: Mapping[str, list]) -> None:
  """Raises InputError if arrays differ in name, shape or type from the expected ones."""
  wrong = tree.difference(tree.signature(variables), expected)
  if wrong:
    raise InputError(f'weights of another model: {wrong[0]}; start a server of its own for it')
