"""Preflight: the processes of a run find, prove and compare themselves before jax starts.

Process 0 writes a nonce into the run directory and listens. Every other process proves that it can
read the nonce (HMAC over a challenge), and so does process 0: who cannot is a stranger and is not
counted. Each then reports its facts (config, versions, data). Process 0 compares them and sends one
verdict to all.
"""

import contextlib
import dataclasses
import logging
import queue
import secrets
import socket
import threading
import time
from collections.abc import Mapping

from bmx.core.errors import BAD_INPUT, PROCESS_MISSING, InputError, Stop
from bmx.runtime import nonces
from bmx.runtime.facts import differences, names
from bmx.runtime.storage import Place
from bmx.runtime.wire import Garbage, Link, connect

log = logging.getLogger('bmx')
VERSION = 1  # of the protocol
HANDSHAKE_SECONDS = 10.0  # in which a connection must prove itself
GRACE_SECONDS = 5.0  # for the others to arrive once the start has failed
SHORT = 4096  # bytes of a message before the proof
MAX_PENDING = 256  # connections that have not proved themselves
MAX_REMARKS = 5


class ProcessMissing(Stop):
  """A process of the run did not start, or is lost."""

  code = PROCESS_MISSING


@dataclasses.dataclass(frozen=True)
class Report:
  """One process, as it describes itself.

  Attributes:
    process: its number, from 0.
    facts: word -> value; equal on all processes of a run.
    failure: why it cannot start; '' if it can.
  """

  process: int
  facts: Mapping[str, str]
  failure: str = ''


class Gathering:
  """Process 0's side of the preflight.

  Args:
    processes: number of processes of the run.
    text: the nonce.
    own: report of process 0.
    where: flag that names the address, for messages.
  """

  def __init__(self, processes: int, text: str, own: Report, where: str):
    self.processes, self.text, self.where = processes, text, where
    self.reports: dict[int, Report] = {0: own}
    self.links: dict[int, Link] = {}
    self.strangers: list[str] = []
    self.ended: set[int] = set()
    self.doubles: list[tuple[int, Link]] = []
    self._admitted: queue.SimpleQueue[tuple[Report, Link] | str] = queue.SimpleQueue()
    self._over = threading.Event()
    self._pending = threading.BoundedSemaphore(MAX_PENDING)

  def gather(self, server: socket.socket, timeout: float) -> dict[int, Link]:
    """Waits for all other processes; returns their connections by number. See `release`.

    Args:
      server: a listening socket.
      timeout: seconds.

    Raises:
      InputError: a process differs, failed, or has the number of another.
      ProcessMissing: names the processes that did not connect.
    """
    deadline, failed = time.monotonic() + timeout, False
    while len(self.links) < self.processes - 1 and time.monotonic() < deadline:
      self._accept(server)
      self._take()
      if not failed and self._fault():
        failed, deadline = True, min(deadline, time.monotonic() + GRACE_SECONDS)
    self._over.set()
    self._drop()
    stop = self._verdict(timeout)
    if stop is None:
      return self.links
    for link in [*self.links.values(), *(link for _, link in self.doubles)]:
      with contextlib.suppress(OSError):
        link.send(verdict='stop', code=stop.code, text=str(stop))
      link.close()
    raise stop

  def release(self) -> None:
    """Lets all processes start."""
    for link in self.links.values():
      with contextlib.suppress(OSError):  # one that is lost now is found by the supervision
        link.send(verdict='go')

  def _accept(self, server: socket.socket) -> None:
    server.settimeout(0.05)
    try:
      connection, _ = server.accept()
    except OSError:  # nobody came
      return
    try:
      link = Link(connection)
    except OSError:  # it has ended already
      connection.close()
      return
    if self._pending.acquire(blocking=False):
      threading.Thread(target=self._admit, args=(link,), daemon=True).start()
    else:
      link.close()

  def _admit(self, link: Link) -> None:
    """Lets one connection prove itself, in a thread of its own: silence holds up nobody."""
    try:
      self._admitted.put((self._prove(link), link))
    except OSError as error:
      link.close()
      self._admitted.put(f'{link.name} {error}')
    finally:
      self._pending.release()
    if self._over.is_set():
      self._drop()

  def _drop(self) -> None:
    """Closes connections that came too late to be counted."""
    with contextlib.suppress(queue.Empty):
      while True:
        found = self._admitted.get_nowait()
        if not isinstance(found, str):
          found[1].close()

  def _prove(self, link: Link) -> Report:
    challenge = secrets.token_hex(16)
    link.send(bmx=VERSION, nonce=nonces.name_of(self.text), challenge=challenge)
    hello = link.receive(HANDSHAKE_SECONDS, SHORT)
    process, own = hello.get('process'), hello.get('challenge')
    if 'failure' in hello:
      raise Garbage(f'reports {str(hello["failure"])[:200]!r}')
    if not isinstance(process, int) or not isinstance(own, str):
      raise Garbage(f'sent {str(hello)[:40]!r}')
    if not nonces.proven(self.text, f'process {process}', challenge, hello.get('proof')):
      raise Garbage('does not know the nonce of this run')
    link.send(proof=nonces.proof(self.text, 'process 0', own))
    report = link.receive(HANDSHAKE_SECONDS)
    facts = report.get('facts')
    if not isinstance(facts, dict):
      raise Garbage('reports nothing')
    facts = {str(k): str(v) for k, v in facts.items()}
    return Report(process, facts, str(report.get('failure', '')))

  def _take(self) -> None:
    """Counts processes that have proved themselves, and discounts those that have ended."""
    while not self._admitted.empty():
      found = self._admitted.get()
      if isinstance(found, str):
        self._refuse(found)
        continue
      report, link = found
      taken = report.process == 0 or report.process in self.links
      if taken and not (report.process and self.links[report.process].closed()):
        self.doubles.append((report.process, link))
        continue
      self.reports[report.process], self.links[report.process] = report, link
    for process in [k for k, link in self.links.items() if link.closed()]:
      self.ended.add(process)
      self.links[process].close()
      del self.links[process], self.reports[process]

  def _refuse(self, stranger: str) -> None:
    if len(self.strangers) < MAX_REMARKS:
      self.strangers.append(stranger)
      log.warning('not counted as a process of the run: %s', stranger)

  def _fault(self) -> str:
    """Returns why the processes cannot start together; '' if those that are there can."""
    if self.doubles:
      process, link = self.doubles[0]
      first = self.links[process].name if process in self.links else self.where
      return (
        f'--process={process}: expected each number once; it was started twice, at {first} and '
        f'{link.name}; give every process its own number'
      )
    failures = [f'process {k}: {r.failure}' for k, r in sorted(self.reports.items()) if r.failure]
    if failures:
      return '\n'.join(failures)
    lines = differences({k: r.facts for k, r in self.reports.items()})
    if lines:
      return (
        'the processes differ: expected the same command, versions and data on all:\n  '
        + '\n  '.join(lines)
      )
    return ''

  def _verdict(self, timeout: float) -> Stop | None:
    fault = self._fault()
    if fault:
      return InputError(fault)
    missing = sorted(set(range(1, self.processes)) - set(self.links))
    if not missing:
      return None
    text = (
      f'of {self.processes} processes, {names(missing)} did not connect in {timeout:.3g} s; start '
      f'the same command there with --process and {self.where}'
    )
    if ended := sorted(self.ended & set(missing)):
      text += f'\n{names(ended)} connected and ended'
    if self.strangers:
      text += f'\nnot counted: {"; ".join(self.strangers)}'
    return ProcessMissing(text)


def join(address: tuple[str, int], path: Place, own: Report, timeout: float) -> Link:
  """Connects to process 0 and waits for its verdict; every other process calls it.

  Args:
    address: host and port of process 0.
    path: file of the nonce.
    own: report of this process.
    timeout: seconds in which all processes must connect.

  Returns:
    The connection to process 0, which has released the processes.

  Raises:
    InputError: the run directory is not that of process 0, or the processes differ.
    ProcessMissing: process 0 is missing or lost, or it misses another process.
  """
  deadline, cause = time.monotonic() + timeout, 'nothing listens there'
  while time.monotonic() < deadline:
    try:
      link = connect(address, 5)
    except OSError as error:
      cause = str(error)
      time.sleep(0.1)
      continue
    try:
      _prove_to(link, path, own, min(HANDSHAKE_SECONDS, timeout))
    except OSError as error:
      link.close()
      cause = f'{link.name} {error}'
      time.sleep(0.2)
      continue
    except InputError:
      link.close()
      raise
    return _await_verdict(link, timeout + HANDSHAKE_SECONDS)
  raise ProcessMissing(
    f'process 0 is missing: no answer of it at {address[0]}:{address[1]} in {timeout:.3g} s '
    f'({cause}); this process ({own.process}) does not start'
  )


def _prove_to(link: Link, path: Place, own: Report, seconds: float) -> None:
  greeting = link.receive(seconds, SHORT)
  if greeting.get('bmx') != VERSION:
    raise Garbage(f'is not process 0 of a run of this version: it sent {str(greeting)[:40]!r}')
  text = nonces.read(path, str(greeting.get('nonce')))
  if not text:
    fault = (
      f'--workdir={path.parent}: expected the directory that process 0 uses; process '
      f'{own.process} does not find the nonce there that process 0 wrote ({path.name}); give one '
      'directory that all processes share'
    )
    with contextlib.suppress(OSError):
      link.send(failure=fault)
    raise InputError(fault)
  challenge = secrets.token_hex(16)
  mine = nonces.proof(text, f'process {own.process}', str(greeting.get('challenge')))
  link.send(process=own.process, challenge=challenge, proof=mine)
  answer = link.receive(seconds, SHORT)
  if not nonces.proven(text, 'process 0', challenge, answer.get('proof')):
    raise Garbage('does not know the nonce of this run')
  link.send(facts=dict(own.facts), failure=own.failure)


def _await_verdict(link: Link, seconds: float) -> Link:
  try:
    verdict = link.receive(seconds)
  except OSError as error:
    link.close()
    raise ProcessMissing(f'process 0 is lost during the start: it {error}') from None
  if verdict.get('verdict') == 'go':
    return link
  link.close()
  text = str(verdict.get('text'))
  raise InputError(text) if verdict.get('code') == BAD_INPUT else ProcessMissing(text)
