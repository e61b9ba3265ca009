"""What a process asks of its machine."""

import platform
import subprocess
import sys

import pytest

LIBRARY, VERSION = platform.libc_ver()
OLD = LIBRARY != 'glibc' or tuple(map(int, VERSION.split('.'))) < (2, 36)

FAULTS = """
import resource
import jax, jax.numpy as jnp
from bmx.core.hardware import keep_freed_memory

x = jnp.ones((3072, 64))
product = jax.jit(lambda x: (jnp.tanh(x @ x.T) @ x).sum())  # twice 36 MiB of temporaries

def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(8):
    product(x).block_until_ready()
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
plain, kept = faults(), keep_freed_memory()
for _ in range(4):  # each thread that allocates has a heap of its own to fill
  faults()
print(plain, kept, faults())
"""


@pytest.mark.skipif(OLD, reason='needs glibc 2.36')
def test_freed_memory_is_kept():
  """Pages that the kernel has to give: all of every call's temporaries before, few after."""
  run = subprocess.run([sys.executable, '-c', FAULTS], capture_output=True, text=True, check=True)
  plain, kept, after = run.stdout.split()
  assert kept == 'True'
  assert int(plain) > 8 * 2304  # at most 16 KiB a page
  assert int(after) < int(plain) / 4


def test_elsewhere_nothing_is_done(monkeypatch):
  from bmx.core import hardware

  monkeypatch.setattr(sys, 'platform', 'darwin')
  assert hardware.keep_freed_memory() is False
