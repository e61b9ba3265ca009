"""Mutual supervision of the processes of one run.

All processes connect to process 0 before jax starts (`preflight`) and keep the connections. One
that ends without a goodbye is a lost process: process 0 informs the others, and all stop with exit
code 78 instead of waiting in a collective for ever. The kernel closes the connection of a killed
process at once; TCP keep-alive finds a lost machine in `wire.SILENCE` seconds. A process that fails
says why before it ends, and the others print its reason and end with its exit code.
"""

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import NoReturn

from bmx.core.errors import PROCESS_MISSING, InputError
from bmx.runtime import nonces
from bmx.runtime.facts import names
from bmx.runtime.preflight import Gathering, Report, join
from bmx.runtime.storage import Place
from bmx.runtime.wire import Link, listen

log = logging.getLogger('bmx')
TIMEOUT = 60.0  # seconds in which all processes connect, and again in which jax starts among them
STOP_WITHIN = 5  # seconds from the end of one process to the end of all
PORT_OFFSET = 1  # from the port of jax's coordinator to the port of process 0
PULSE = 1.0  # seconds between signs of life while jax starts
AGAIN = (
  'Start all of them again with the same command: the run continues from its newest checkpoint'
)


class Peers:
  """Connections of one process to the others; see `start`.

  Args:
    process: number of this process, from 0.
    links: process -> connection; those of process 0 to all others, of others to process 0.
  """

  def __init__(self, process: int, links: Mapping[int, Link]):
    self.process, self.links = process, links
    self.ended = threading.Event()
    self.started = threading.Event()
    self.seen = {peer: time.monotonic() for peer in links}

  def watch(self) -> None:
    """Starts one thread for each connection, which ends this process if the peer is lost."""
    for peer, link in self.links.items():
      link.keep_alive()
      threading.Thread(target=self._watch, args=(peer, link), daemon=True).start()

  def _watch(self, peer: int, link: Link) -> None:
    gone = f'process {peer} is missing'
    try:
      while 'alive' in (message := link.wait()):
        self.seen[peer] = time.monotonic()
    except OSError:
      message = {'text': gone, 'code': PROCESS_MISSING}
    if 'bye' in message or self.ended.is_set():
      return
    text, code = str(message.get('text', gone)), message.get('code')
    self._stop(text, code if isinstance(code, int) else PROCESS_MISSING)

  def _stop(self, text: str, code: int) -> None:
    """Ends this process from any thread, after the others know; the main thread may hang."""
    self.ended.set()
    if self.process == 0:
      self._send(text=text, code=code)
    if code != PROCESS_MISSING:
      time.sleep(STOP_WITHIN / 2)  # for this process to say what it finds wrong itself
    again = f'. {AGAIN}' if code == PROCESS_MISSING else ''
    log.error('%s; this process (%d) stops%s', text, self.process, again)
    logging.shutdown()
    os._exit(code)

  @contextlib.contextmanager
  def starting(self, timeout: float) -> Iterator[None]:
    """Ends this process if a `with` block, the start of jax, takes longer than `timeout` s."""
    threading.Thread(target=self._pulse, args=(timeout,), daemon=True).start()
    try:
      yield
    finally:
      self.started.set()

  def _pulse(self, timeout: float) -> None:
    deadline = time.monotonic() + timeout + (0 if self.process == 0 else STOP_WITHIN)
    while not self.started.wait(PULSE):
      now = time.monotonic()
      self._send(alive=True)
      if now > deadline and not self.ended.is_set():
        silent = sorted(k for k, seen in self.seen.items() if now - seen > STOP_WITHIN)
        who = f'no sign of life of {names(silent)}' if silent else 'every process is alive'
        text = f'jax did not start among the processes in {timeout:.3g} s: {who}'
        self._stop(text, PROCESS_MISSING)

  def fail(self, reason: str, text: str, code: int) -> NoReturn:
    """Informs the peers why this process ends, prints a text and ends it.

    jax's exit handlers do not run: they would wait for processes that end too.
    """
    self.ended.set()
    self._send(text=f'process {self.process} failed: {reason}', code=code)
    sys.stderr.write(text)
    sys.stderr.flush()
    logging.shutdown()
    os._exit(code)

  def goodbye(self) -> None:
    """Informs the peers that this process ends as planned."""
    self.ended.set()
    self._send(bye=True)

  def await_verdict(self) -> None:
    """Gives the supervision time to end this process after an error that a lost peer may cause."""
    time.sleep(STOP_WITHIN / 2)

  def _send(self, **message: str | int) -> None:
    for link in self.links.values():
      try:
        link.send(**message)
      except OSError:
        log.debug('a peer has ended already')


def start(
  coordinator: str,
  processes: int,
  process: int,
  workdir: Place,
  facts: Mapping[str, str],
  failure: str = '',
  timeout: float = TIMEOUT,
) -> Peers:
  """Runs the preflight, starts jax.distributed, then supervises.

  Args:
    coordinator: HOST:PORT of process 0; PORT + 1 must be free too.
    processes: number of processes.
    process: number of this process, from 0.
    workdir: run directory, shared by all: process 0 writes the nonce there.
    facts: what all processes must share, see `facts.facts`.
    failure: why this process cannot start: the others are informed.
    timeout: seconds in which all processes must connect, and in which jax must start.

  Raises:
    InputError: invalid arguments; a port is taken; the processes differ.
    ProcessMissing: names the processes that did not connect.
  """
  host, port = _address(coordinator, processes, process)
  report = Report(process, {**facts, '--processes': str(processes)}, failure)
  where, address = f'--coordinator={coordinator}', (host, port + PORT_OFFSET)
  path = workdir / f'.nonce-{port + PORT_OFFSET}'
  if process == 0:
    links = lead(where, port, processes, path, report, timeout)
  else:
    links = {0: join(address, path, report, timeout)}
  peers = Peers(process, links)
  peers.watch()
  _start_jax(peers, coordinator, processes, timeout)
  return peers


def _start_jax(peers: Peers, coordinator: str, processes: int, timeout: float) -> None:
  import jax

  patience = round(2 * timeout) + 60  # longer than that of `starting`, which names the processes
  try:
    with peers.starting(timeout):
      jax.distributed.initialize(
        coordinator, processes, peers.process, initialization_timeout=patience
      )
  except (RuntimeError, ValueError) as error:
    peers.await_verdict()
    text = f'jax.distributed did not start at {coordinator}: {error}'
    peers.fail(text, f'{text}\n', PROCESS_MISSING)


def lead(
  where: str, port: int, processes: int, path: Place, report: Report, timeout: float
) -> dict[int, Link]:
  """Process 0's side of the preflight; returns the connections by number.

  Holds jax's port until all are there: jax crashes if it is taken.

  Args:
    where: flag that names the address, for messages.
    port: of jax; the next one is for the processes.
    processes: number of processes.
    path: file of the nonce.
    report: of process 0.
    timeout: seconds in which all must connect.
  """
  with (
    listen(port, where),
    listen(port + PORT_OFFSET, where) as server,
    nonces.written(path) as text,
  ):
    gathering = Gathering(processes, text, report, where)
    links = gathering.gather(server, timeout)
  gathering.release()
  return links


def _address(coordinator: str, processes: int, process: int) -> tuple[str, int]:
  host, _, digits = coordinator.rpartition(':')
  port = int(digits) if digits.isascii() and digits.isdigit() else 0
  if not host or not 0 < port < 65535 or not 0 <= process < processes:
    raise InputError(
      f'--coordinator={coordinator} --processes={processes} --process={process}: expected '
      'HOST:PORT, 0 < PORT < 65535 and 0 <= process < processes'
    )
  return host.removeprefix('[').removesuffix(']'), port
