"""Programs for absent devices: neither written to the compilation cache nor read from it."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from bmx.runtime import cache

DIRECTORY, SECONDS = 'jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs'


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """An empty cache that keeps every program; the former one is there again afterwards."""
  before = {word: getattr(jax.config, word) for word in (DIRECTORY, SECONDS)}

  def use(values):
    for word, value in values.items():
      jax.config.update(word, value)
    compilation_cache.reset_cache()

  use({DIRECTORY: str(tmp_path), SECONDS: 0})
  yield tmp_path
  use(before)


def compiled():
  return jax.jit(lambda x: x * 2).lower(1.0).compile()


def test_nothing_kept_neither_writes_nor_reads(folder):
  with cache.nothing_kept():
    compiled()
  assert not list(folder.glob('*-cache'))
  compiled()
  (entry,) = folder.glob('*-cache')
  entry.write_bytes(b'for a device that is absent')
  with cache.nothing_kept():
    compiled()
  with pytest.warns(UserWarning, match='Error reading persistent compilation cache'):
    compiled()
