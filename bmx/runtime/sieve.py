"""The process that reads what libraries write to stdout and stderr, and passes on what counts.

`console.start` runs it as a script, `python sieve.py OUT ERR CONTROL TO_OUT TO_ERR` (numbers of
file descriptors), before jax is imported. It imports nothing of bmx. As a process of its own it
outlives a crash: it still reads what the pipes hold when the other process dies. Lines of NOISE go
to the file that CONTROL names, all others to the terminal, at once and in their order.

Lines on CONTROL: `file PATH` names the file of the noise; `end` says that the command has ended as
it should. If the pipes close without `end` and without a file, the noise is shown.
"""

import contextlib
import os
import re
import selectors
import signal
import sys

# Log lines of C++ libraries at the levels information and warning, and lines without a level.
NOISE = re.compile(
  rb'[IW]\d{4} \d\d:\d\d:\d+\.\d+ +\d+ \S+:\d+\] '  # absl: I0000 00:00:17958.7 28724 file.cc:31]
  rb'|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: [IW] '  # TensorFlow
  rb'|WARNING: All log messages before absl::InitializeLog'
  rb'|WARNING: Logging before InitGoogle'
  rb'|Failed to find host bounds for accelerator type'  # libtpu without a TPU, as the next three
  rb'|E\d{4} \S+ +\d+ common_lib\.cc:\d+\] INVALID_ARGUMENT: Error: unexpected worker hostname'
  rb'|=== Source Location Trace: ===|learning/\w+/tfrc/\S+:\d+$'
  rb'|E\d{4} \d\d:\d\d:\d+\.\d+ +\d+ \S+:\d+\] (Unable to register cu|cuInit: .*no CUDA-capable)'
  rb'|\[Gloo\] Rank \d+ is connected to '
)
PAUSE = 0.2  # seconds after which the beginning of a line is shown
MAX_HELD = 2**20  # bytes of noise that wait for a file


class Stream:
  """A pipe, the lines that it brings, and where they go.

  Args:
    to: file descriptor of the terminal.
    keep: takes a line of noise.
  """

  def __init__(self, to, keep):
    self.to, self.keep, self.rest = to, keep, b''

  def feed(self, data):
    """Takes bytes of the pipe."""
    *lines, self.rest = (self.rest + data).split(b'\n')
    for line in lines:
      if NOISE.match(line):
        self.keep(line + b'\n')
      else:
        write(self.to, line + b'\n')

  def flush(self):
    """Shows the beginning of a line, such as a question."""
    rest, self.rest = self.rest, b''
    write(self.to, rest)


class Noise:
  """Lines of noise: held until a file is named."""

  def __init__(self):
    self.held, self.path, self.file, self.ended = [], b'', None, False

  def keep(self, line):
    """Takes a line."""
    if sum(map(len, self.held)) < MAX_HELD:
      self.held.append(line)
    if self.path:
      self.store()

  def store(self):
    """Appends the lines to the file, which is made with the first one."""
    with contextlib.suppress(OSError):
      if self.held and self.file is None:
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        self.file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
      if self.file is not None:
        write(self.file, b''.join(self.held))
        self.held = []

  def obey(self, line):
    """Takes a line of CONTROL."""
    word, _, path = line.partition(b' ')
    self.ended = self.ended or word == b'end'
    if word == b'file':
      self.path = self.path or path
      self.store()


def write(to, data):
  """Writes all bytes; a closed terminal or a full disk takes none, and nobody waits for it."""
  with contextlib.suppress(OSError):
    while data:
      data = data[os.write(to, data) :]


def run(out, err, control, to_out, to_err):
  """Reads until both pipes are closed."""
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, signal.SIG_IGN)  # those of the terminal's group; the pipes say the end
  noise, orders = Noise(), b''
  streams = {out: Stream(to_out, noise.keep), err: Stream(to_err, noise.keep)}
  selector, still_open = selectors.DefaultSelector(), {out, err}
  for number in (out, err, control):
    selector.register(number, selectors.EVENT_READ)
  while still_open:
    ready = [key.fd for key, _ in selector.select(PAUSE)]
    for number in ready:
      data = os.read(number, 2**16)
      if not data:
        selector.unregister(number)
        still_open.discard(number)
      elif number == control:
        *lines, orders = (orders + data).split(b'\n')
        for line in lines:
          noise.obey(line)
      else:
        streams[number].feed(data)
    if not ready:
      for stream in streams.values():
        stream.flush()
  for stream in streams.values():
    stream.feed(b'')
    stream.flush()
  if noise.held and not noise.ended:
    write(to_err, b''.join(noise.held))


if __name__ == '__main__':
  run(*map(int, sys.argv[1:]))
