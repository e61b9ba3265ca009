"""Text as one long row of tokens, read in windows."""

import dataclasses
import functools
import hashlib
import pathlib
import sys
import sysconfig
from typing import Any

import jax
import numpy as np

from bmx.core import streams
from bmx.core.errors import InputError
from bmx.core.types import Batch, Rows
from bmx.data.loader import RESIDENT_BYTES, Shuffled
from bmx.data.records import numbered_json_lines

VALID = 0.1  # the share of a text, its end, that is 'valid'


@dataclasses.dataclass
class TokenData(Shuffled):
  """Windows of `length` tokens and the tokens that follow them.

  An example is named by the place of its first token. In training the windows of each epoch begin
  at another place; otherwise they tile the text from its start, and what the last one lacks has
  weight 0.

  Attributes:
    tokens: uint8, uint16 or int32 [N], maybe a memory map.
    vocab: token ids are below this.
  """

  tokens: np.ndarray
  vocab: int
  length: int
  batch_size: int
  seed: int = 0
  train: bool = True
  facts: dict[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if self.length < 1:
      raise InputError(f'length={self.length}: a window has at least one token')
    n = len(self.tokens) - 1
    if n < self.length:
      raise InputError(
        f'{n + 1} tokens are too few for one window of {self.length} and its targets'
      )
    self.size = n // self.length if self.train else -(-n // self.length)
    self.info = {'vocab': self.vocab, 'length': self.length, 'tokens': n + 1} | self.facts
    self.spec = token_spec(self.batch_size, self.length)

  def example(self, epochs: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    starts = numbers * self.length
    if self.train:
      starts += np.array([self._shift(int(e)) for e in epochs], np.int64)
    return starts

  @functools.cached_property
  def _shift(self):
    shift = lambda epoch: streams.generator(self.seed, streams.SHIFT, epoch).integers(self.length)
    return functools.lru_cache(maxsize=4)(shift)

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> Rows:
    return self.gather({'tokens': self.tokens}, indices)

  def resident(self) -> Rows | None:
    return {'tokens': self.tokens} if self.tokens.nbytes <= RESIDENT_BYTES else None

  def gather(self, arrays: Any, indices: Any) -> Batch:
    last = len(self.tokens) - 1
    places = indices[:, None] + np.arange(self.length + 1, dtype=np.int32)[None, :]
    window = arrays['tokens'][places.clip(0, last)].astype(np.int32)
    return {
      'tokens': window[:, :-1],
      'targets': window[:, 1:],
      'weights': (places[:, 1:] <= last).astype(np.float32),
    }


def token_spec(batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
  kinds = {'tokens': np.int32, 'targets': np.int32, 'weights': np.float32}
  return {k: jax.ShapeDtypeStruct((batch_size, length), v) for k, v in kinds.items()}


def text(
  length: int,
  batch_size: int,
  path: str = '',
  split: str = 'train',
  field: str = 'text',
  seed: int = 0,
  train: bool = True,
) -> TokenData:
  """The bytes of a text (vocabulary 256).

  Args:
    path: a plain text file, or a .jsonl of which `field` is read; '' is the text of the installed
      Python's standard library.
    split: 'train' is the first 90 %, 'valid' the rest, 'all' both.
  """
  if path:
    data, name = _read(pathlib.Path(path), field), path
  else:
    data, name = standard_library(), f'the standard library of Python {sys.version.split()[0]}'
  tokens = np.frombuffer(data, np.uint8)
  facts = {'source': name, 'sha256': hashlib.sha256(data).hexdigest()}
  return TokenData(_cut(tokens, split, name), 256, length, batch_size, seed, train, facts)


def tokens(
  path: str,
  vocab: int,
  length: int,
  batch_size: int,
  split: str = 'train',
  dtype: str = 'uint16',
  seed: int = 0,
  train: bool = True,
) -> TokenData:
  """Token ids from a file: .npy, or raw numbers of `dtype` (as nanoGPT's .bin). Memory-mapped.

  Raises:
    InputError: the file is missing, or holds an id outside the vocabulary (file and offset named).
  """
  if not pathlib.Path(path).is_file():
    raise InputError(f'no token file {path}')
  try:
    raw = not path.endswith('.npy')
    ids = np.memmap(path, np.dtype(dtype), 'r') if raw else np.load(path, mmap_mode='r')
  except (ValueError, TypeError, EOFError, OSError) as error:
    raise InputError(f'{path} holds no token ids (dtype={dtype}): {error}') from None
  if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
    raise InputError(f'{path} holds {ids.dtype} {ids.shape}; a row of integers is expected')
  step = 1 << 24
  for start in range(0, len(ids), step):
    chunk = ids[start : start + step]
    bad = np.flatnonzero((chunk >= vocab) | (chunk < 0))
    if len(bad):
      raise InputError(
        f'token id {int(chunk[bad[0]])} at offset {start + int(bad[0])} of {path} is outside the '
        f'vocabulary of {vocab} (0..{vocab - 1})'
      )
  facts = {'source': path}
  return TokenData(_cut(ids, split, path), vocab, length, batch_size, seed, train, facts)


@dataclasses.dataclass(frozen=True)
class TokenShapes:
  """What is known of tokens before there are any: enough to plan, not to train."""

  vocab: int
  length: int
  batch_size: int

  @property
  def size(self) -> int:
    return self.batch_size

  @property
  def info(self) -> dict[str, Any]:
    return {'vocab': self.vocab, 'length': self.length, 'source': 'shapes only'}

  @property
  def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    return token_spec(self.batch_size, self.length)

  def order(self, step: int) -> np.ndarray:
    raise InputError('there are shapes only, and no data')

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> Rows:
    raise InputError('there are shapes only, and no data')

  def resident(self) -> Rows | None:
    return None

  def gather(self, arrays: Any, indices: Any) -> Batch:
    raise InputError('there are shapes only, and no data')


def shapes(length: int, batch_size: int, vocab: int = 256, **_: Any) -> TokenShapes:
  """Stands for `text` and `tokens` where nothing is read."""
  return TokenShapes(vocab, length, batch_size)


def standard_library() -> bytes:
  """The top-level modules of the installed Python's standard library, in the order of their names.

  Text that every machine has. It differs between versions of Python, so its SHA-256 is recorded.
  """
  folder = pathlib.Path(sysconfig.get_paths()['stdlib'])
  return b'\n'.join(p.read_bytes() for p in sorted(folder.glob('*.py')))


def _read(path: pathlib.Path, field: str) -> bytes:
  if not path.is_file():
    raise InputError(f'no text file {path}')
  if path.suffix != '.jsonl':
    return path.read_bytes()
  documents = []
  for line, record in numbered_json_lines(path):
    if not isinstance(record.get(field), str):
      raise InputError(f'{path}, line {line}: no text under {field!r}; it has {sorted(record)}')
    documents.append(record[field])
  return '\n'.join(documents).encode()


def _cut(ids: np.ndarray, split: str, name: str) -> np.ndarray:
  if not len(ids):
    raise InputError(f'{name} is empty')
  edge = int(len(ids) * (1 - VALID))
  parts = {'train': ids[:edge], 'valid': ids[edge:], 'all': ids}
  if split not in parts:
    raise InputError(f'unknown split {split!r}; known: {", ".join(parts)}')
  return parts[split]
