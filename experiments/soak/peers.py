"""Starts of two real processes with faults: each ends in time, with a message that names the fault.

    python experiments/soak/peers.py OUT.json

tests/runtime/test_preflight.py and test_strangers.py try the preflight alone, over sockets.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).parent.parent.parent
RECIPE = ['--config=configs/digits_mlp.py:tiny', '--config.every.log=0']
LONGEST = 90  # seconds: 60 to connect or to start jax, and a start of Python


class Start:
  """Two processes in a new run directory; `own` are further arguments by number."""

  def __init__(self, own=(), numbers=(0, 1), flags=None):
    self.folder = tempfile.TemporaryDirectory()
    self.workdir, self.port = pathlib.Path(self.folder.name) / 'run', free_port()
    self.own, self.numbers, self.flags = dict(own), numbers, flags or {}

  def launch(self):
    self.running = [self.process(n, k) for k, n in enumerate(self.numbers)]

  def process(self, number, place):
    command = [sys.executable, '-m', 'bmx.main', *RECIPE, f'--workdir={self.workdir}']
    command += ['--processes=2', f'--process={number}', f'--coordinator=localhost:{self.port}']
    env = os.environ | {'JAX_PLATFORMS': 'cpu'} | self.flags.get(place, {})
    return subprocess.Popen([*command, *self.own.get(place, ())], cwd=ROOT, env=env, text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip

  def released(self):
    """Waits until the preflight has ended: the nonce came and went."""
    there = lambda: bool(list(self.workdir.glob('.nonce-*[0-9]')))
    wait(lambda: there() or self.over())
    wait(lambda: not there() or self.over())

  def over(self):
    return any(p.poll() is not None for p in self.running)

  def end(self, names):
    """Returns exit codes, and the lines of bmx on stderr that hold a word of `names`."""
    codes, lines = [], []
    for process in self.running:
      try:
        _, text = process.communicate(timeout=LONGEST)
      except subprocess.TimeoutExpired:
        process.kill()
        _, text = process.communicate()
        codes.append('stands')
      else:
        codes.append(process.returncode)
      lines.append(next((x for x in text.splitlines() if any(n in x for n in names)), ''))
    self.folder.cleanup()
    return codes, lines


def free_port() -> int:
  """Returns a free port whose next one is free too."""
  while True:
    with socket.socket() as a, socket.socket() as b:
      a.bind(('localhost', 0))
      number = a.getsockname()[1]
      try:
        b.bind(('localhost', number + 1))
      except OSError:
        continue
      return number


def wait(condition, seconds=40):
  """Waits for a condition."""
  end = time.monotonic() + seconds
  while not condition() and time.monotonic() < end:
    time.sleep(0.002)


def signalled(which, number):
  """Sends a signal to one process as soon as the preflight has released it."""

  def act(start):
    start.released()
    start.running[which].send_signal(number)
    if number == signal.SIGSTOP:
      other = start.running[1 - which]
      wait(lambda: other.poll() is not None, LONGEST)
      start.running[which].kill()

  return act


def strangers(start):
  """Sends garbage and silence to both ports until the run has ended."""

  def bother():
    kept = []
    while start.running[0].poll() is None:
      for offset in (0, 1):
        try:
          s = socket.create_connection(('localhost', start.port + offset), 1)
          s.sendall(os.urandom(200) + b'\n')
          kept = [*kept[-20:], s]
        except OSError:
          pass
      time.sleep(0.05)

  thread = threading.Thread(target=bother, daemon=True)
  thread.start()
  thread.join(LONGEST)


def taken(offset):
  """Returns a function that makes a start whose port + `offset` is taken."""

  def make():
    start = Start()
    start.server = socket.create_server(('', start.port + offset))
    return start

  return make


nothing = lambda start: None
two = {0: {'XLA_FLAGS': ''}, 1: {'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}}
# name -> (start, action on it, exit codes, words of the message)
CASES = {
  'as it should be': (Start, nothing, [0, 0], ['']),
  'strangers at both ports': (Start, strangers, [0, 0], ['not counted']),
  'seed': (lambda: Start({1: ['--config.seed=7']}), nothing, [2, 2], ['config.seed: 0 on']),
  'batch size': (lambda: Start({1: ['--config.batch_size=32']}), nothing, [2, 2], ['batch_size']),
  'devices': (lambda: Start(flags=two), nothing, [2, 2], ['XLA_FLAGS']),
  'an unknown recipe': (lambda: Start({1: ['--config=nine']}), nothing, [2, 2], ['nine']),
  'no process 1': (lambda: Start(numbers=(0,)), nothing, [78], ['process 1 did not connect']),
  'no process 0': (lambda: Start(numbers=(1,)), nothing, [78], ['process 0 is missing']),
  'process 0 twice': (lambda: Start(numbers=(0, 0)), nothing, [2, 78], ['cannot be used']),
  "jax's port taken": (taken(0), nothing, [2, 78], ['cannot be used', 'process 0 is missing']),
  'our port taken': (taken(1), nothing, [2, 78], ['cannot be used', 'process 0 is missing']),
  'process 1 killed while jax starts': (
    Start, signalled(1, signal.SIGKILL), [78, -9], ['process 1 is missing']),
  'process 0 killed while jax starts': (
    Start, signalled(0, signal.SIGKILL), [-9, 78], ['process 0 is missing']),
  'process 1 stopped while jax starts': (
    Start, signalled(1, signal.SIGSTOP), [78, -9], ['no sign of life of process 1']),
  'process 0 stopped while jax starts': (
    Start, signalled(0, signal.SIGSTOP), [-9, 78], ['no sign of life of process 0']),
}  # fmt: skip


def main(out):
  """Runs all cases and writes their results."""
  results = {}
  for name, (make, act, expected, words) in CASES.items():
    start, began = make(), time.monotonic()
    start.launch()
    act(start)
    codes, lines = start.end(words)
    seconds = round(time.monotonic() - began, 1)
    right = sorted(map(str, codes)) == sorted(map(str, expected)) and any(lines + [words == ['']])
    results[name] = {'codes': codes, 'seconds': seconds, 'held': bool(right), 'message': lines}
    sys.stdout.write(f'{"held" if right else "FAILED"}  {name}: {codes} in {seconds} s\n')
    sys.stdout.flush()
  out.write_text(json.dumps(results, indent=1, ensure_ascii=False) + '\n')
  return 0 if all(r['held'] for r in results.values()) else 1


if __name__ == '__main__':
  sys.exit(main(pathlib.Path(sys.argv[1])))
