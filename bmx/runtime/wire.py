"""Messages between the processes of a run: one JSON object a line, over TCP, with deadlines."""

import errno
import json
import socket
import time
from typing import Any

from bmx.core.errors import InputError

SILENCE = 30  # seconds after which a machine that does not answer counts as lost
SEND_SECONDS = 10
LONGEST = 1 << 22  # bytes of a line


class Garbage(ConnectionError):
  """The other end does not send messages of this protocol."""


class Link:
  """One connection. Failures of it are OSErrors: TimeoutError, ConnectionError, `Garbage`.

  Args:
    connection: a connected socket.
  """

  def __init__(self, connection: socket.socket):
    self._socket, self._rest = connection, b''
    host, port = connection.getpeername()[:2]
    self.name = f'{host.removeprefix("::ffff:")}:{port}'

  def send(self, **message: Any) -> None:
    """Sends a message."""
    self._socket.sendall(json.dumps(message).encode() + b'\n')

  def receive(self, seconds: float, longest: int = LONGEST) -> dict[str, Any]:
    """Returns the next message.

    Args:
      seconds: until the whole message must be there.
      longest: bytes that it may have.

    Raises:
      TimeoutError: it is not.
      ConnectionError: the other end closed the connection.
      Garbage: the line is too long, or holds something else.
    """
    deadline = time.monotonic() + seconds
    try:
      while b'\n' not in self._rest:
        if len(self._rest) > longest:
          raise Garbage(f'sent more than {longest} bytes without a line end')
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
        self._rest += self._some(seconds)
    finally:
      self._socket.settimeout(SEND_SECONDS)
    return self._next()

  def wait(self) -> dict[str, Any]:
    """Returns the next message, however long it takes; raises as `receive` does."""
    self._socket.settimeout(None)
    while b'\n' not in self._rest:
      self._rest += self._some(0)
    return self._next()

  def closed(self) -> bool:
    """Whether the other end has closed the connection."""
    self._socket.setblocking(False)
    try:
      return self._socket.recv(1, socket.MSG_PEEK) == b''
    except BlockingIOError:
      return False
    except OSError:
      return True
    finally:
      self._socket.settimeout(SEND_SECONDS)

  def keep_alive(self) -> None:
    """Lets the kernel find a lost machine in `SILENCE` seconds."""
    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, 'TCP_KEEPIDLE'):
      self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE // 3)
      self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENCE // 6)
      self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)

  def close(self) -> None:
    """Closes the connection."""
    self._socket.close()

  def _some(self, seconds: float) -> bytes:
    try:
      data = self._socket.recv(1 << 16)
    except TimeoutError:
      some = 'nothing' if not self._rest else 'no whole message'
      raise TimeoutError(f'sent {some} for {seconds:.3g} s') from None
    if not data:
      raise ConnectionError('closed the connection')
    return data

  def _next(self) -> dict[str, Any]:
    line, _, self._rest = self._rest.partition(b'\n')
    try:
      message = json.loads(line)
    except (ValueError, RecursionError):
      message = None
    if not isinstance(message, dict):
      raise Garbage(f'sent {line[:40]!r}')
    return message


def connect(address: tuple[str, int], seconds: float) -> Link:
  """Connects to HOST, PORT. Raises OSError if nobody listens there."""
  connection = socket.create_connection(address, timeout=seconds)
  if connection.getsockname() == connection.getpeername():  # a port of the ephemeral range
    connection.close()
    raise ConnectionRefusedError('nothing listens there')
  return Link(connection)


def listen(port: int, word: str) -> socket.socket:
  """Returns a socket that listens at a port of every interface.

  Args:
    port: its number.
    word: flag that chose it, for the message.

  Raises InputError if the port is taken or cannot be used.
  """
  try:
    if socket.has_dualstack_ipv6():
      try:
        return socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
      except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # IPv6 is switched off
          raise
    return socket.create_server(('', port))
  except OSError as error:
    raise InputError(
      f'{word}: expected two free ports, PORT and PORT + 1; {port} cannot be used '
      f'({error.strerror or error}): another program, or another process 0, may listen there; '
      'choose another port for all processes'
    ) from None
