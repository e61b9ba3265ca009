"""Digests of data: they show whether a resumed run reads the data of its start."""

import hashlib
from collections.abc import Mapping

import numpy as np

WHOLE_BYTES = 1 << 28  # arrays up to this size are hashed whole
PIECES, PIECE = 1024, 4096  # of larger ones: evenly spaced pieces, and elements of each


def digest_arrays(arrays: Mapping[str, np.ndarray]) -> str:
  """Returns the SHA-256 of names, shapes, dtypes and content; of large arrays, of even samples."""
  total = hashlib.sha256()
  for name, array in sorted(arrays.items()):
    total.update(f'{name} {array.shape} {array.dtype.name}\n'.encode())
    if array.nbytes <= WHOLE_BYTES:
      total.update(np.ascontiguousarray(array).tobytes())
      continue
    flat = array.reshape(-1)
    for start in np.linspace(0, len(flat) - PIECE, PIECES).astype(int):
      total.update(np.ascontiguousarray(flat[start : start + PIECE]).tobytes())
  return total.hexdigest()
