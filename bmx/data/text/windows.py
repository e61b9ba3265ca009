"""Text as one long row of tokens, read in windows."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bmx.core import streams
from bmx.core.data import Examples, Spec
from bmx.core.errors import InputError
from bmx.core.types import Batch, HostBatch
from bmx.data.arrays import RESIDENT_BYTES
from bmx.data.batches import in_order
from bmx.data.digests import digest_arrays
from bmx.data.shapes import shapes
from bmx.data.text.corpus import document_frame, encode, stream
from bmx.data.text.documents import describe, documents, part_of
from bmx.data.text.special import special_facts
from bmx.data.text.tokenizer import Bytes, Tokenizer
from bmx.runtime.fetch import fetch


@dataclasses.dataclass
class TokenData:
  """Windows of `length` tokens and the tokens that follow them.

  The index of an example is the position of its first token. In training the windows of each epoch
  begin at another position; otherwise they tile the text from its start, and positions that the
  last one lacks have weight 0.

  Contiguous windows are for models that carry state from batch to batch: row r of B begins with
  window r · size // B, and reads in each step the window behind its last one, so that it passes
  through the whole text and then begins anew. They are neither shuffled nor shifted.

  Attributes:
    tokens: uint8, uint16 or int32 [N], perhaps a memory map.
    vocab_size: token ids are below this.
    length: tokens of a window.
    seed: of the order and the shifts.
    train: whether windows are shuffled and shifted.
    more: metadata besides.
    tokenizer: of the tokens.
    contiguous: whether each row of a training batch continues that of the batch before.

  Raises:
    InputError: fewer tokens than a window.
  """

  tokens: np.ndarray
  vocab_size: int
  length: int
  seed: int = 0
  train: bool = True
  more: dict[str, Any] = dataclasses.field(default_factory=dict)
  tokenizer: Tokenizer | None = None
  contiguous: bool = False

  def __post_init__(self):
    if self.length < 1:
      raise InputError(f'length={self.length}: expected at least 1 token')
    n = len(self.tokens) - 1
    if n < self.length:
      raise InputError(f'length={self.length}: expected at most {n}, the targets of {n + 1} tokens')
    self.size = n // self.length if self.train else -(-n // self.length)
    self.metadata = {
      'vocab_size': self.vocab_size, 'length': self.length, 'tokens': n + 1, **self.more,
    }  # fmt: skip
    self.spec = token_spec(self.length)

  def state(self) -> dict[str, Any]:
    """The tokenizer."""
    return tokenizer_state(self.tokenizer)

  def digest(self) -> str:
    """SHA-256 of the tokens."""
    return digest_arrays({'tokens': self.tokens})

  def indices(self, positions: np.ndarray, batch_size: int) -> tuple[np.ndarray, None]:
    """First tokens of the windows at positions."""
    if self.train and self.contiguous:
      steps, rows = np.divmod(positions, batch_size)
      return (rows * self.size // batch_size + steps) % self.size * self.length, None
    starts = in_order(positions, self.size, self.seed, self.train) * self.length
    if self.train:
      starts += np.array([self._shift(int(e)) for e in positions // self.size], np.int64)
    return starts, None

  @functools.cached_property
  def _shift(self):
    shift = lambda epoch: streams.generator(self.seed, streams.SHIFT, epoch).integers(self.length)
    return functools.lru_cache(maxsize=4)(shift)

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Windows that begin at `indices`."""
    return self.gather({'tokens': self.tokens}, indices)

  def resident(self) -> HostBatch | None:
    """Returns all tokens, if they are few."""
    return {'tokens': self.tokens} if self.tokens.nbytes <= RESIDENT_BYTES else None

  def gather(self, arrays: Any, indices: Any) -> Batch:
    """Gathers windows of tokens on the device."""
    last = len(self.tokens) - 1
    places = indices[:, None] + np.arange(self.length + 1, dtype=np.int32)[None, :]
    window = arrays['tokens'][places.clip(0, last)].astype(np.int32)
    return {
      'tokens': window[:, :-1],
      'targets': window[:, 1:],
      'weights': (places[:, 1:] <= last).astype(np.float32),
    }


def token_spec(length: int, more: Sequence[str] = ()) -> dict[str, Spec]:
  """Returns the specs of `tokens`, `targets` and `weights` of a row, and of `more` integers."""
  integers = {k: along(length) for k in ('tokens', 'targets', *more)}
  return integers | {'weights': along(length, np.float32)}


def along(length: int, dtype: Any = np.int32) -> Spec:
  """Returns the spec of one value for each token of a row."""
  return Spec((length,), np.dtype(dtype), ('length',))


def tokenizer_state(tokenizer: Tokenizer | None) -> dict[str, Any]:
  """Returns the state of tokenized data: the text of its tokenizer.json, and its named tokens.

  The text is '' of bytes; tokens are named, by role, by the files beside a tokenizer.json. A
  template of conversations is there if the tokenizer has one.

  Data without a tokenizer (ids of a file) have no such entries.
  """
  if tokenizer is None:
    return {}
  state = {'tokenizer': tokenizer.text, 'special_tokens': tokenizer.names}
  return state | ({'chat_template': t} if (t := tokenizer.chat_template) else {})


def text(
  length: int,
  path: str = '',
  split: str = 'train',
  field: str = 'text',
  tokenizer: Tokenizer | None = None,
  separator: str = '',
  data_dir: str = '',
  contiguous: bool = False,
  read: bool = True,
  seed: int = 0,
  train: bool = True,
) -> Examples:
  """Tokenizes a text: its bytes (vocabulary 256) unless a `tokenizer` is given.

  Args:
    length: tokens of a row.
    path: plain text, .jsonl or .csv of which `field` is read, or 'tfds:NAME/SPLIT'; '' is the
      source of the installed Python's standard library. See `documents.documents`. Documents
      begin and end with what the tokenizer adds to a text, and its end of text (bytes: are joined
      by a line end).
    split: 'train' is the first 90 % of the tokens, 'valid' the rest, 'all' both.
    field: of the text in a record of .jsonl, .csv and TFDS.
    tokenizer: of the text; None is bytes.
    separator: text after each document, instead of the tokenizer's end of text.
    data_dir: of TFDS.
    contiguous: each row of a training batch continues that of the batch before, see `TokenData`.
    read: False returns shapes only.
    seed: of the order.
    train: training data.

  Raises:
    InputError: several documents, and a tokenizer without a known end.
  """
  if not read:
    return shapes(token_spec(length), length=length)
  paths = (path,) if path else ()
  found, chosen = documents(paths, field, data_dir=data_dir), tokenizer or Bytes()
  name, whole = describe(paths), (separator or '\n').join(found).encode()
  more = {'sha256': hashlib.sha256(whole).hexdigest()}
  if isinstance(chosen, Bytes):
    ids = np.frombuffer(whole, np.uint8)
  else:
    around = document_frame(chosen, separator, len(found))
    ids = stream(encode([[(text, True)] for text in found], chosen), around)
  ids = part_of(ids, split, name)
  size = len(ids) if isinstance(chosen, Bytes) else len(chosen.decode(ids).encode())
  more |= {'source': name, 'bytes': size} | special_facts(chosen.special)
  return TokenData(ids, chosen.size, length, seed, train, more, chosen, contiguous)


def tokens(
  path: str,
  vocab_size: int,
  length: int,
  split: str = 'train',
  dtype: str = 'uint16',
  contiguous: bool = False,
  read: bool = True,
  seed: int = 0,
  train: bool = True,
) -> Examples:
  """Token ids from a file: .npy, or raw numbers of `dtype` (as nanoGPT's .bin). Memory-mapped.

  Args:
    path: of the file.
    vocab_size: ids are below it.
    length: tokens of a row.
    split: 'train' is the first 90 % of the tokens, 'valid' the rest, 'all' both.
    dtype: of raw numbers, such as uint16.
    contiguous: each row of a training batch continues that of the batch before, see `TokenData`.
    read: False returns shapes only.
    seed: of the order.
    train: training data.

  Raises:
    InputError: the file is missing, or holds an id outside the vocabulary (file and offset named).
  """
  if not read:
    return shapes(token_spec(length), length=length, vocab_size=vocab_size)
  file = fetch(path)
  if not file.is_file():
    raise InputError(f'no token file {path}')
  try:
    raw = not path.endswith('.npy')
    ids = np.memmap(file, np.dtype(dtype), 'r') if raw else np.load(file, mmap_mode='r')
  except (ValueError, TypeError, EOFError, OSError) as error:
    raise InputError(f'{path} holds no token ids (dtype={dtype}): {error}') from None
  if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
    raise InputError(f'{path} holds {ids.dtype} {ids.shape}; a row of integers is expected')
  step = 1 << 24
  for start in range(0, len(ids), step):
    chunk = ids[start : start + step]
    bad = np.flatnonzero((chunk >= vocab_size) | (chunk < 0))
    if len(bad):
      raise InputError(
        f'token id {int(chunk[bad[0]])} at offset {start + int(bad[0])} of {path} is outside the '
        f'vocabulary of {vocab_size} (0..{vocab_size - 1})'
      )
  more = {'source': path}
  return TokenData(
    part_of(ids, split, path), vocab_size, length, seed, train, more, contiguous=contiguous
  )
