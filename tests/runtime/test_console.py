"""The terminal of a command: nothing of its own is lost, lines of libraries are kept in a file."""

import subprocess
import sys

import pytest

from bmx.runtime import sieve
from tests.conftest import ROOT

REMAT = 'W1127 20:30:51.056703   28853 spmd_partitioner.cc:656] [SPMD] Involuntary full remat'
GLOO = '[Gloo] Rank 0 is connected to 1 peer ranks. Expected number of connected peer ranks is : 1'
BAD = 'E1127 20:30:51.056703   28853 client.cc:656] connection lost'

PROGRAM = f"""
import ctypes, os, sys
from bmx.runtime import console
console.start()
os.write(2, {REMAT + chr(10) + BAD + chr(10)!r}.encode())
os.write(1, {GLOO + chr(10) + 'question? '!r}.encode())
print('own line', flush=True)
sys.stderr.write('own error\\n')
if 'keep' in sys.argv: console.keep(sys.argv[-1])
if 'segv' in sys.argv: ctypes.string_at(0)
if 'abort' in sys.argv:
  os.write(2, b'terminate called after throwing')
  os.abort()
if 'exit' in sys.argv: os._exit(3)
if 'raise' in sys.argv: raise ValueError('reason')
console.finish(done=True)
print('after', flush=True)
"""


def run(*arguments):
  command = [sys.executable, '-c', PROGRAM, *map(str, arguments)]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(('how', 'code', 'last'), [
  ('segv', -11, 'Fatal Python error: Segmentation fault'),
  ('abort', -6, 'terminate called after throwing'),
  ('exit', 3, 'own error'),
  ('raise', 1, 'ValueError: reason'),
])  # fmt: skip
def test_an_end_loses_nothing(how, code, last):
  """Noise that no file keeps is shown with it: it may say why."""
  done = run(how)
  assert done.returncode == code
  assert 'own line\n' in done.stdout
  assert 'question? ' in done.stdout
  for text in (last, 'own error', BAD, REMAT, GLOO):
    assert text in done.stderr


def test_a_good_end_shows_no_noise():
  done = run()
  assert done.returncode == 0
  assert sorted(done.stderr.splitlines()) == [BAD, 'own error']
  assert 'Gloo' not in done.stdout
  assert done.stdout.endswith('after\n')


def test_noise_is_kept(tmp_path):
  assert REMAT not in run('keep', 'abort', tmp_path / 'logs').stderr
  assert sorted((tmp_path / 'logs/libraries.log').read_text().splitlines()) == [REMAT, GLOO]


@pytest.mark.parametrize('line', [
  'WARNING: All log messages before absl::InitializeLog() is called are written to STDERR',
  'I0000 00:00:1795811367.729054   27514 cudart_stub.cc:31] Could not find cuda drivers',
  '2026-11-27 20:30:42.640744: I external/xla/xla/service.cc:1] XLA service',
  'E0000 00:00:1795816425.938822   17004 common_lib.cc:554] INVALID_ARGUMENT: Error: unexpected '
  "worker hostname 'WARNING: could not determine TPU worker hostnames or IP addresses'",
  '=== Source Location Trace: === ',
  'learning/45eac/tfrc/runtime/libtpu_init_utils.cc:327',
  REMAT,
  GLOO,
])  # fmt: skip
def test_noise(line):
  assert sieve.NOISE.match(line.encode())


@pytest.mark.parametrize('line', [
  BAD,
  'F0000 00:00:1795811367.729054   27514 client.h:80] Terminating process',
  'Traceback (most recent call last):',
  '  File "I0000 00:00:1795811367.729054   27514 x.cc:31] ", line 3',
  'WARNING: a word of the user',
  'step 5       loss 4.963',
  '',
])  # fmt: skip
def test_no_noise(line):
  assert not sieve.NOISE.match(line.encode())
