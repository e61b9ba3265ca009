"""Strangers at the port of the preflight: never counted, and they hold up nobody."""

import contextlib
import json
import os
import socket
import threading
import time

import pytest

from bmx.runtime import nonces, preflight
from bmx.runtime.preflight import ProcessMissing
from bmx.runtime.wire import connect
from tests.runtime.together import close, follow, lead, outcomes, report


def raw(content, wait=0.0):
  def act(port, path):
    with contextlib.suppress(OSError), socket.create_connection(('localhost', port), 2) as s:
      s.sendall(content)
      time.sleep(wait)

  return act


def drip(port, path):
  with contextlib.suppress(OSError), socket.create_connection(('localhost', port), 2) as s:
    for _ in range(12):
      s.sendall(b'{')
      time.sleep(0.05)


def answer(**words):
  """A stranger that speaks the protocol, without the nonce."""

  def act(port, path):
    link = connect(('localhost', port), 2)
    with contextlib.suppress(OSError):
      link.receive(2)
      link.send(**words)
      link.receive(2)
    link.close()

  return act


def replay(port, path):
  """The proof of another challenge."""
  text = path.read_text()
  answer(process=1, challenge='c', proof=nonces.proof(text, 'process 1', 'old'))(port, path)


def another_number(port, path):
  """A proof of process 2 does not make a process 1."""
  link = connect(('localhost', port), 2)
  challenge = link.receive(2)['challenge']
  with contextlib.suppress(OSError):
    mine = nonces.proof(path.read_text(), 'process 2', challenge)
    link.send(process=1, challenge='c', proof=mine)
    link.receive(2)
  link.close()


STRANGERS = {
  'scan': raw(b''),
  'silence': raw(b'', 0.6),
  'web browser': raw(b'GET / HTTP/1.1\r\nHost: here\r\n\r\n'),
  'TLS': raw(bytes.fromhex('16030100c8010000c40303') + os.urandom(190)),
  'noise': raw(os.urandom(300) + b'\n'),
  'no end of line': raw(b'x' * 100_000),
  'drip': drip,
  'old protocol': raw(b'1\n', 0.2),
  'nested': raw(b'[' * 4000 + b'\n', 0.2),
  'list': raw(b'[1, 2]\n', 0.2),
  'no proof': answer(process=1, challenge='c'),
  'wrong proof': answer(process=1, challenge='c', proof='0' * 64),
  'proof of a wrong type': answer(process=1, challenge='c', proof=['é']),
  'number of a wrong type': answer(process='1', challenge='c', proof='é'),
  'replay': replay,
  'proof of another number': another_number,
}


@pytest.mark.parametrize('stranger', STRANGERS.values(), ids=STRANGERS)
def test_a_stranger_is_not_counted_and_holds_up_nobody(place, stranger):
  acted = threading.Event()

  def strange():
    wait_for(place)
    threading.Timer(0.05, acted.set).start()
    stranger(place[0] + 1, place[1])

  def real():
    acted.wait(5)
    return follow(place, report(1))

  began = time.monotonic()
  links, link, _ = outcomes(lambda: lead(place), real, strange)
  assert sorted(links) == [1]
  assert time.monotonic() - began < 10
  close(link, *links.values())


def wait_for(place):
  """Until process 0 listens."""
  while not place[1].exists():
    time.sleep(0.01)


def test_many_strangers_at_once(place):
  def crowd():
    wait_for(place)
    acts = [lambda s=s: s(place[0] + 1, place[1]) for s in STRANGERS.values()]
    outcomes(*acts)

  def real():
    wait_for(place)
    time.sleep(0.3)
    return follow(place, report(1))

  links, link, _ = outcomes(lambda: lead(place), real, crowd)
  assert sorted(links) == [1]
  close(link, *links.values())


def test_strangers_alone_are_named_and_end_nothing(place):
  def crowd():
    wait_for(place)
    outcomes(*(lambda s=STRANGERS[k]: s(place[0] + 1, place[1]) for k in ('noise', 'wrong proof')))

  error, _ = outcomes(lambda: lead(place, timeout=0.5), crowd)
  assert type(error) is ProcessMissing
  assert 'process 1 did not connect in 0.5 s' in str(error)
  assert 'not counted: 127.0.0.1:' in str(error) and 'does not know the nonce' in str(error)


SERVERS = {
  'silence': (b'', 'sent nothing for'),
  'web server': (b'HTTP/1.1 400 Bad Request\r\n\r\n', 'HTTP/1.1 400'),
  'other JSON': (b'{"version": 3}\n', 'not process 0 of a run of this version'),
}


@pytest.mark.parametrize(('content', 'message'), SERVERS.values(), ids=SERVERS)
def test_a_server_that_is_not_process_0(place, content, message):
  with socket.create_server(('localhost', place[0] + 1)) as server:

    def serve():
      server.settimeout(0.3)
      with contextlib.suppress(OSError):
        while True:
          connection, _ = server.accept()
          with connection:
            connection.sendall(content)
            connection.settimeout(0.6)
            connection.recv(1)

    error, _ = outcomes(lambda: follow(place, report(1), 0.4), serve)
  assert type(error) is ProcessMissing and message in str(error)


def test_a_false_process_0_without_the_nonce(place):
  """It knows the nonce's public name, not the nonce."""
  place[1].parent.mkdir()
  with (
    nonces.written(place[1]) as text,
    socket.create_server(('localhost', place[0] + 1)) as server,
  ):

    def serve():
      connection, _ = server.accept()
      with connection:
        greeting = {'bmx': preflight.VERSION, 'nonce': nonces.name_of(text), 'challenge': 'c'}
        connection.sendall(json.dumps(greeting).encode() + b'\n')
        connection.recv(4096)
        connection.sendall(b'{"proof": "0"}\n{"verdict": "go"}\n')

    error, _ = outcomes(lambda: follow(place, report(1), 0.6), serve)
  assert type(error) is ProcessMissing
