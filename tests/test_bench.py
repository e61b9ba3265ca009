"""The script for a GPU, at a size for any CPU: it must run when a GPU is at hand."""

import json
import os
import subprocess
import sys

from tests.conftest import ROOT


def test_gpu_script_runs():
  command = [sys.executable, 'experiments/bench/gpu.py', '--small']
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}  # one device
  said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env)
  assert not said.returncode, said.stderr
  results = json.loads(said.stdout[said.stdout.index('{') :])
  for name in ('small GPT-2', 'small Llama'):
    ours = results[name]['bmx']
    assert ours['tokens_per_second'] > 0
    assert ours['loss'] < 6  # log 256 = 5.5
    assert {'compile_seconds', 'peak_memory_bytes', 'data_wait_fraction'} <= ours.keys()
  assert results['matmul']['64'] > 0
  assert all(rate > 0 for rates in results['attention'].values() for rate in rates.values())
  # bfloat16, with 8 bits, against float32.
  assert all(0 < error < 0.02 for error in results['attention_error'].values())
