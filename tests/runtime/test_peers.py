"""Supervision: how a process ends when its only peer fails, is lost, stops or says goodbye."""

import contextlib
import socket
import subprocess
import sys
import time

import pytest

from bmx.runtime.wire import Link
from tests.conftest import ROOT

# Process 0 of two; its main thread waits as a collective would.
CHILD = """
import socket, sys, time
from bmx.runtime import peers, wire
peers.STOP_WITHIN, peers.PULSE = 0.5, 0.1
with socket.create_server(('localhost', 0)) as server:
  print(server.getsockname()[1], flush=True)
  link = wire.Link(server.accept()[0])
watch = peers.Peers(0, {1: link})
watch.watch()
link.send(ready=True)
{main}
"""
WAITS = 'time.sleep(20)'
STARTS = 'with watch.starting(0.8): time.sleep(20)'
FAILS = "watch.fail('no room', 'error: no room', 2)"


@contextlib.contextmanager
def child(main):
  """A process 0 and the connection of process 1 to it."""
  code = CHILD.replace('{main}', main)
  process = subprocess.Popen(
    [sys.executable, '-c', code], cwd=ROOT, text=True, stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )  # fmt: skip
  assert process.stdout is not None
  link = Link(socket.create_connection(('localhost', int(process.stdout.readline()))))
  try:
    yield process, link
  finally:
    link.close()
    process.kill()
    process.communicate()


def fails(link):
  link.send(text='process 1 failed: no file train.csv', code=2)


def keeps_alive(link):
  for _ in range(15):
    link.send(alive=True)
    time.sleep(0.1)


ENDS = {
  'lost': (WAITS, Link.close, 78, 'process 1 is missing; this process (0) stops. Start all'),
  'failed': (WAITS, fails, 2, 'process 1 failed: no file train.csv; this process (0) stops\n'),
  'garbage': (WAITS, lambda link: link.send(code='x', text=[]), 78, 'this process (0) stops'),
  'silent start': (STARTS, lambda link: None, 78, 'in 0.8 s: no sign of life of process 1'),
  'lost at the start': (STARTS, Link.close, 78, 'process 1 is missing'),
  'slow start': (STARTS, keeps_alive, 78, 'in 0.8 s: every process is alive'),
}


@pytest.mark.parametrize(('main', 'act', 'code', 'message'), ENDS.values(), ids=ENDS)
def test_a_process_ends_with_its_peer(main, act, code, message):
  with child(main) as (process, link):
    assert link.receive(10) == {'ready': True}
    began = time.monotonic()
    with contextlib.suppress(OSError):
      act(link)
    _, text = process.communicate(timeout=10)
    assert time.monotonic() - began < 9
  assert process.returncode == code
  assert message in text and 'Traceback' not in text


def test_a_process_that_fails_tells_its_peer_why():
  with child(FAILS) as (process, link):
    assert link.receive(10) == {'ready': True}
    assert link.receive(10) == {'text': 'process 0 failed: no room', 'code': 2}
    assert process.communicate(timeout=10)[1] == 'error: no room'
  assert process.returncode == 2


def test_a_goodbye_is_no_loss():
  with child('time.sleep(0.4); watch.goodbye()') as (process, link):
    assert link.receive(10) == {'ready': True}
    link.send(bye=True)
    link.close()
    assert process.communicate(timeout=10)[1] == ''
  assert process.returncode == 0
