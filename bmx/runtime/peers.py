"""Mutual supervision of the processes of one run.

Process 0 listens; every other process connects, sends its number and keeps the connection. Before
jax starts, all must be connected (the preflight). A connection that ends later without a goodbye is
a lost process: process 0 informs the others, and all stop with exit code 78 instead of waiting in a
collective for ever. The kernel closes the connection of a killed process at once; TCP keep-alive
finds a lost machine in `SILENCE` seconds.
"""

import logging
import os
import socket
import threading
import time

from bmx.core.errors import PROCESS_MISSING, InputError, Stop

log = logging.getLogger('bmx')
SILENCE = 30  # seconds after which a machine that does not answer counts as lost
STOP_WITHIN = 5  # seconds from the end of one process to the end of all
PORT_OFFSET = 1  # from the port of jax's coordinator to the port of process 0


class ProcessMissing(Stop):
  """A process of the run did not start, or is lost."""

  code = PROCESS_MISSING


class Peers:
  """Connections of one process to the others; see `start`.

  Args:
    process: number of this process, from 0.
    processes: number of processes.
  """

  def __init__(self, process: int, processes: int):
    self.process, self.processes = process, processes
    self.links: dict[int, socket.socket] = {}
    self.ended = threading.Event()

  def listen(self, address: tuple[str, int], timeout: float) -> None:
    """Waits for all other processes, then releases them; process 0 calls it.

    Args:
      address: host and port to listen at.
      timeout: seconds.

    Raises ProcessMissing naming the processes that did not connect.
    """
    deadline = time.monotonic() + timeout
    with socket.create_server(('', address[1]), reuse_port=False) as server:
      while len(self.links) < self.processes - 1:
        server.settimeout(max(deadline - time.monotonic(), 0.01))
        try:
          link, _ = server.accept()
        except TimeoutError:
          missing = sorted(set(range(1, self.processes)) - set(self.links))
          self._send(f'missing {missing[0]}')
          raise ProcessMissing(
            f'of {self.processes} processes, {_names(missing)} did not connect in {timeout:.0f} s; '
            f'start the same command there with --process and --coordinator={address[0]}:'
            f'{address[1] - PORT_OFFSET}'
          ) from None
        link.settimeout(5)
        self.links[int(_line(link) or -1)] = link
    self._send('go')

  def join(self, address: tuple[str, int], timeout: float) -> None:
    """Connects to process 0 and waits for its release; every other process calls it.

    Args:
      address: host and port of process 0.
      timeout: seconds.

    Raises ProcessMissing naming the process that did not connect.
    """
    deadline = time.monotonic() + timeout
    while True:
      try:
        link = socket.create_connection(address, timeout=5)
        break
      except OSError as error:
        if time.monotonic() > deadline:
          raise ProcessMissing(
            f'process 0 is missing: nothing listens at {address}: {error}'
          ) from None
        time.sleep(0.1)
    link.sendall(f'{self.process}\n'.encode())
    link.settimeout(timeout + 10)
    self.links[0] = link
    word = _line(link)
    if word != 'go':
      gone = word.removeprefix('missing ') or '0'
      raise ProcessMissing(
        f'process {gone} is missing; this process ({self.process}) does not start'
      )

  def watch(self) -> None:
    """Starts one thread per connection, which ends this process if the peer is lost."""
    for peer, link in self.links.items():
      link.settimeout(None)
      _keep_alive(link)
      threading.Thread(target=self._watch, args=(peer, link), daemon=True).start()

  def _watch(self, peer: int, link: socket.socket) -> None:
    try:
      word = _line(link)
    except OSError:
      word = ''
    if word == 'bye' or self.ended.is_set():
      return
    gone = int(word.removeprefix('missing ')) if word.startswith('missing ') else peer
    self.ended.set()
    if self.process == 0:
      self._send(f'missing {gone}')
    log.error(
      'process %d is missing; this process (%d) stops. Start all of them again with the same '
      'command: the run continues from its newest checkpoint',
      gone,
      self.process,
    )
    logging.shutdown()
    os._exit(PROCESS_MISSING)  # the main thread may hang in a collective

  def goodbye(self) -> None:
    """Informs the peers that this process ends as planned."""
    self.ended.set()
    self._send('bye')

  def await_verdict(self) -> None:
    """Gives the supervision time to end this process after an error that a lost peer may cause."""
    time.sleep(STOP_WITHIN / 2)

  def _send(self, word: str) -> None:
    for link in self.links.values():
      try:
        link.sendall(f'{word}\n'.encode())
      except OSError:
        log.debug('a peer has ended already')


def start(coordinator: str, processes: int, process: int, timeout: float = 60.0) -> Peers:
  """Runs the preflight, starts jax.distributed, then supervises.

  Args:
    coordinator: HOST:PORT of process 0; PORT + 1 must be free too.
    processes: number of processes.
    process: number of this process, from 0.
    timeout: seconds in which all processes must connect.

  Raises:
    InputError: invalid arguments.
    ProcessMissing: names the processes that did not connect.
  """
  host, colon, port = coordinator.rpartition(':')
  if not colon or not port.isdigit() or not 0 <= process < processes:
    raise InputError(
      f'--coordinator={coordinator} --processes={processes} --process={process}: expected '
      'HOST:PORT and 0 <= process < processes'
    )
  import jax

  peers = Peers(process, processes)
  address = (host, int(port) + PORT_OFFSET)
  if process == 0:
    peers.listen(address, timeout)
  else:
    peers.join(address, timeout)
  jax.distributed.initialize(coordinator, processes, process)
  peers.watch()
  return peers


def _names(processes: list[int]) -> str:
  return f'process{"es" if len(processes) > 1 else ""} {", ".join(map(str, processes))}'


def _line(link: socket.socket) -> str:
  """Reads one line; '' if the other end closed the connection."""
  data = b''
  while not data.endswith(b'\n'):
    part = link.recv(1)
    if not part:
      return ''
    data += part
  return data.decode().strip()


def _keep_alive(link: socket.socket) -> None:
  link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  if hasattr(socket, 'TCP_KEEPIDLE'):
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE // 3)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENCE // 6)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
