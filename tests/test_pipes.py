"""Commands whose reader stops early."""

import subprocess
import sys

from tests.conftest import ROOT


def test_a_closed_pipe_is_not_an_error():
  """`bmx config | head -1`."""
  command = f'{sys.executable} -m bmx config | head -1; exit ${{PIPESTATUS[0]}}'
  done = subprocess.run(
    ['bash', '-c', command], cwd=ROOT, capture_output=True, text=True, timeout=120
  )
  assert done.stdout.startswith('adult_mlp')
  assert done.stderr == ''
  assert done.returncode in (0, 141)
