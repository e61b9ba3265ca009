"""Processes of one preflight, as threads."""

import concurrent.futures
import contextlib
import socket

from bmx.runtime import facts, peers
from bmx.runtime.preflight import Report, join

CONFIG = {'seed': 0, 'batch_size': 64, 'steps': 100, 'schedule.peak': 3e-4, 'task.model.depth': 6}
FLAGS = {'mode': 'train', 'step': 'latest'}


def two_ports():
  """A free port, with the next one free too."""
  while True:
    with socket.socket() as a, socket.socket() as b:
      a.bind(('localhost', 0))
      number = a.getsockname()[1]
      with contextlib.suppress(OSError):
        b.bind(('localhost', number + 1))
        return number


def report(process, failure='', processes=2, **words):
  shared = facts.facts({**CONFIG, **words}, FLAGS)
  return Report(process, {**shared, '--processes': str(processes)}, failure)


def lead(place, own=None, processes=2, timeout=20.0):
  port, path = place
  return peers.lead('--coordinator=here:1', port, processes, path, own or report(0), timeout)


def follow(place, own, timeout=20.0, path=None):
  return join(('localhost', place[0] + 1), path or place[1], own, timeout)


def outcomes(*calls):
  """Results or errors of functions that run at one time."""
  with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
    futures = [pool.submit(call) for call in calls]
    return [f.exception(60) or f.result() for f in futures]


def close(*links):
  for link in links:
    link.close()
