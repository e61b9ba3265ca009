"""Examples with the stored outputs of a teacher, by the number of the example."""

import dataclasses
import functools
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from bmx.core.data import Examples, Spec
from bmx.core.errors import InputError
from bmx.core.paths import local
from bmx.core.types import HostBatch, Metadata
from bmx.data.transforms import Around
from bmx.runtime.files import read_json

FACTS, CHECKSUMS = 'teacher.json', 'checksums.npy'
IDS, LOG_PROBS = 'teacher_ids', 'teacher_log_probs'  # of an example, [k]
TOKEN_IDS, TOKEN_LOG_PROBS = 'teacher_token_ids', 'teacher_token_log_probs'  # of tokens, [T, k]


@dataclasses.dataclass(frozen=True)
class Taught(Around):
  """Examples with the classes that a teacher finds most likely, and their log-probabilities.

  Rows must be those that the teacher has read: no shuffled windows, no augmentation.

  Attributes:
    inner: the examples.
    folder: that `bmx.compress.offline:store` has written.

  Raises:
    InputError: another folder, or another number of examples; from `rows`, another example.
  """

  inner: Examples
  folder: str

  def __post_init__(self):
    if self._facts['size'] != self.inner.size:
      raise InputError(f'{self.folder}: expected the outputs of {self.inner.size} examples, found '
                       f'those of {self._facts["size"]}')  # fmt: skip

  @functools.cached_property
  def _path(self) -> pathlib.Path:
    return local(self.folder)

  @functools.cached_property
  def _facts(self) -> dict[str, Any]:
    try:
      found = read_json(self._path / FACTS)
      return {k: found[k] for k in ('size', 'temperature', 'names')}
    except (OSError, ValueError, KeyError, TypeError) as error:
      raise InputError(f'folder={self.folder!r}: expected the stored outputs of a teacher, which '
                       f'bmx.compress.offline:store writes: {error}') from None  # fmt: skip

  @functools.cached_property
  def _arrays(self) -> Mapping[str, np.ndarray]:
    names = (*self._facts['names'], CHECKSUMS.removesuffix('.npy'))
    return {k: np.load(self._path / f'{k}.npy', mmap_mode='r') for k in names}

  @property
  def metadata(self) -> Metadata:
    """Facts of the data, and the temperature of the teacher."""
    return {**self.inner.metadata, 'teacher_temperature': self._facts['temperature']}

  @property
  def spec(self) -> dict[str, Spec]:
    """Arrays of one example, the teacher's among them."""
    new = {}
    for name in self._facts['names']:
      array = self._arrays[name]
      lead = ('length',) if array.ndim == 3 else ()
      new[name] = Spec(array.shape[1:], array.dtype, (*lead, None))
    return {**self.inner.spec, **new}

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Returns examples with the outputs of the teacher."""
    rows = self.inner.rows(indices, positions)
    same = checksums(rows) == self._arrays['checksums'][indices]
    if not same.all():
      raise InputError(
        f'example {indices[np.argmin(same)]}: expected the row that the teacher of {self.folder} '
        'has read, found another; shifted windows and augmentation change rows (data.inner.train='
        'False)'
      )
    return {**rows, **{k: np.asarray(self._arrays[k][indices]) for k in self._facts['names']}}


def checksums(rows: HostBatch) -> np.ndarray:
  """Returns the CRC-32 of each row: uint32 [n]."""
  names = sorted(rows)
  found = []
  for i in range(len(rows[names[0]])):
    crc = 0
    for name in names:
      crc = zlib.crc32(np.ascontiguousarray(rows[name][i]).tobytes(), crc)
    found.append(crc)
  return np.array(found, np.uint32)
