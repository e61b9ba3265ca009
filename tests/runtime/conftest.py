"""Fixtures of the preflight's tests: short deadlines, a place to meet."""

import pytest

from bmx.runtime import nonces, preflight
from tests.runtime.together import two_ports


@pytest.fixture
def short(monkeypatch):
  """Short deadlines."""
  monkeypatch.setattr(nonces, 'SECONDS', 0.3)
  monkeypatch.setattr(preflight, 'GRACE_SECONDS', 0.5)
  monkeypatch.setattr(preflight, 'HANDSHAKE_SECONDS', 1.0)


@pytest.fixture
def place(tmp_path, short):
  """Port and nonce file of a run."""
  return two_ports(), tmp_path / 'run/.nonce'
