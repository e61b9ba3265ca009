"""Every test sees 8 virtual CPU devices; the environment is set before jax is imported."""

import os
import pathlib
import subprocess
import sys
import tempfile

FLAGS = (
  '--xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=300'
)
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = FLAGS
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'
# Shared by all tests and workers; one that kills processes takes a cache of its own.
CACHE = pathlib.Path(tempfile.gettempdir()) / 'bmx-test-programs'

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope='session')
def data_dir() -> pathlib.Path:
  """The folder of real data that some tests read; they are skipped where it is not there."""
  folder = os.environ.get('BMX_TEST_DATA', '')
  if not folder or not pathlib.Path(folder).is_dir():
    pytest.skip('BMX_TEST_DATA names no folder')
  return pathlib.Path(folder)


@pytest.fixture
def bmx():
  """Runs `python -m bmx.main` -> CompletedProcess, on one device unless told otherwise."""

  def run(*arguments, devices=1, env=None, cwd=ROOT, timeout=300):
    flags = FLAGS.replace('count=8', f'count={devices}')
    full = {**os.environ, 'XLA_FLAGS': flags, **(env or {})}
    full.setdefault('XDG_CACHE_HOME', str(CACHE))
    return subprocess.run(
      [sys.executable, '-m', 'bmx.main', *map(str, arguments)],
      cwd=cwd, env=full, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip

  return run
