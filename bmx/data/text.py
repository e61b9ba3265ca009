"""Text as one long row of tokens, read in windows."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bmx.core import streams
from bmx.core.errors import InputError
from bmx.core.types import Batch, Rows, metadata_of
from bmx.data.corpus import encode
from bmx.data.documents import describe, documents, part_of
from bmx.data.loader import RESIDENT_BYTES, Shuffled
from bmx.data.tokenizer import Bytes, Tokenizer, special_facts


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
  tokenizer: Tokenizer | None = None

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
  tokenizer: Tokenizer | None = None,
  data_dir: str = '',
  seed: int = 0,
  train: bool = True,
) -> TokenData:
  """The tokens of a text; its bytes (vocabulary 256) unless a `tokenizer` is given.

  Args:
    path: what `documents.documents` reads: plain text, .jsonl or .csv of which `field` is read,
      'tfds:NAME/SPLIT'; '' is the source of the installed Python's standard library. Documents
      stand one after another, the tokenizer's end of text between them (a line end between bytes).
    split: 'train' is the first 90 % of the tokens, 'valid' the rest, 'all' both.
  """
  paths = (path,) if path else ()
  found, coder = documents(paths, field, data_dir=data_dir), tokenizer or Bytes()
  name, whole = describe(paths), '\n'.join(found).encode()
  facts = {'sha256': hashlib.sha256(whole).hexdigest()}
  ids = np.frombuffer(whole, np.uint8) if isinstance(coder, Bytes) else _stream(found, coder)
  ids = part_of(ids, split, name)
  size = len(ids) if isinstance(coder, Bytes) else len(coder.decode(ids).encode())
  facts |= {'source': name, 'bytes': size} | special_facts(coder.special)
  return TokenData(ids, coder.size, length, batch_size, seed, train, facts, coder)


def _stream(found: Sequence[str], coder: Tokenizer) -> np.ndarray:
  corpus = encode([[(text, True)] for text in found], coder)
  if 'eos' not in coder.special:
    return corpus.tokens
  return np.insert(corpus.tokens, corpus.ends, coder.special['eos'])


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
  return TokenData(part_of(ids, split, path), vocab, length, batch_size, seed, train, facts)


@dataclasses.dataclass(frozen=True)
class TokenShapes:
  """What is known of tokens before there are any: enough to plan, not to train."""

  vocab: int
  length: int
  batch_size: int
  more: tuple[str, ...] = ()  # arrays of integers besides; 'next' has one for each row

  @property
  def size(self) -> int:
    return self.batch_size

  @property
  def info(self) -> dict[str, Any]:
    return {'vocab': self.vocab, 'length': self.length, 'source': 'shapes only'}

  @property
  def metadata(self):
    return metadata_of(self.info)

  @property
  def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    shape = lambda k: (self.batch_size, self.length)[: 1 if k == 'next' else 2]
    more = {k: jax.ShapeDtypeStruct(shape(k), np.int32) for k in self.more}
    return token_spec(self.batch_size, self.length) | more

  def order(self, step: int) -> np.ndarray:
    raise InputError('there are shapes only, and no data')

  def orders(self, step: int, n: int) -> np.ndarray:
    raise InputError('there are shapes only, and no data')

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> Rows:
    raise InputError('there are shapes only, and no data')

  def resident(self) -> Rows | None:
    return None

  def gather(self, arrays: Any, indices: Any) -> Batch:
    raise InputError('there are shapes only, and no data')


def shapes(
  length: int, batch_size: int, vocab: int = 256, more: tuple[str, ...] = (), **_: Any
) -> TokenShapes:
  """Stands for data of text where nothing is read."""
  return TokenShapes(vocab, length, batch_size, more)
