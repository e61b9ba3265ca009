"""Documents in rows of one length: packed next to each other, without attention between them."""

import bisect
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from bmx.core.data import Examples, Spec
from bmx.core.errors import InputError
from bmx.core.types import Batch, HostBatch
from bmx.data.arrays import RESIDENT_BYTES
from bmx.data.digests import digest_arrays
from bmx.data.shapes import shapes
from bmx.data.text.corpus import Corpus, Parts, bounds, document_frame, encode
from bmx.data.text.documents import describe, documents, part_of, records, said, whole
from bmx.data.text.special import special_facts
from bmx.data.text.steps import Step
from bmx.data.text.template import Frame
from bmx.data.text.tokenizer import Bytes, Tokenizer
from bmx.data.text.windows import token_spec, tokenizer_state

KEYS = ('tokens', 'segment_ids', 'positions')


def best_fit(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
  """Packs bins by best-fit-decreasing, in O(N log capacity) (Ding et al. 2024).

  Args:
    lengths: int [N], each at most `capacity`.
    capacity: capacity of a row.

  Returns:
    Row of each length, int32 [N], and the number of rows.
  """
  space: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by their free positions
  free: list[int] = []  # numbers of free positions that some row has, sorted
  row, count = np.empty(len(lengths), np.int32), 0
  order = np.argsort(-lengths, kind='stable')
  for i, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
    k = bisect.bisect_left(free, length)
    if k == len(free):
      r, left, count = count, capacity, count + 1
    else:
      left = free[k]
      r = space[left].pop()
      if not space[left]:
        free.pop(k)
    row[i] = r
    if left > length:
      if not space[left - length]:
        bisect.insort(free, left - length)
      space[left - length].append(r)
  return row, count


@dataclasses.dataclass
class PackedData:
  """Rows [T] of whole documents; documents longer than a row are cut.

  `segment_ids` are 1, 2, ... (0 is padding); `positions` count from 0 in each. `targets` are the
  following tokens; `weights` is 0 if no token of the same document follows, if the next token is
  not a target of the loss, and on padding.

  Attributes:
    corpus: the documents.
    vocab_size: token ids are below it.
    length: T.
    prefix: ids before every piece of a document ([CLS]), or (`whole` False) before its first.
    suffix: ids after every piece ([SEP]), or (`whole` False) after its last.
    whole: see `tokenizer.Frame`.
    words: also give `words`, the number of the word in the row that a token belongs to.
    more: metadata besides.
    tokenizer: of the corpus.
  """

  corpus: Corpus
  vocab_size: int
  length: int
  prefix: tuple[int, ...] = ()
  suffix: tuple[int, ...] = ()
  whole: bool = True
  words: bool = False
  more: dict[str, Any] = dataclasses.field(default_factory=dict)
  tokenizer: Tokenizer | None = None

  def __post_init__(self):
    capacity = self.length - len(self.prefix) - len(self.suffix)
    if capacity < 1:
      raise InputError(f'length={self.length}: expected more than the special tokens')
    around = Frame(self.prefix, self.suffix, self.whole)
    # [P, 4]: first, last, begins, ends a document
    self.pieces = _pieces(*bounds(self.corpus, around), capacity)
    if not len(self.pieces):
      raise InputError('the text has not one token')
    self.sizes = np.diff(self.pieces[:, :2], axis=1)[:, 0] + self._frame(self.pieces).sum(1)
    row, self.size = best_fit(self.sizes, self.length)
    order = np.argsort(row, kind='stable')
    self.pieces = self.pieces[order]
    self.edges = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=self.size))])
    self.padding = float(1 - self.sizes.sum() / (self.size * self.length))
    self.metadata = {
      'vocab_size': self.vocab_size, 'length': self.length, 'padding': self.padding, **self.more,
    }  # fmt: skip
    self.spec = packed_spec(self.length, self.words)

  def state(self) -> dict[str, Any]:
    """Returns the state of the tokenizer."""
    return tokenizer_state(self.tokenizer)

  def digest(self) -> str:
    """Returns the SHA-256 of the tokens and of what stands around them."""
    around = np.array([*self.prefix, -1, *self.suffix, -1, self.whole], np.int64)
    return digest_arrays({
      'tokens': self.corpus.tokens, 'ends': self.corpus.ends, 'around': around,
    })  # fmt: skip

  def _frame(self, pieces: np.ndarray) -> np.ndarray:
    """Counts the ids before and after each piece: int [P, 2]."""
    sides = pieces[:, 2:] if not self.whole else np.ones_like(pieces[:, 2:])
    return sides * np.array([len(self.prefix), len(self.suffix)])

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    return self.gather(self._rows(indices), np.arange(len(indices)))

  def _rows(self, indices: np.ndarray) -> HostBatch:
    """Returns the inputs of `gather`, made from the corpus."""
    keys = (*KEYS, 'loss_mask', *['word_starts'] * self.words)
    rows = {k: np.zeros((len(indices), self.length), np.int32) for k in keys}
    for n, index in enumerate(indices):
      place = 0
      for segment, piece in enumerate(self.pieces[self.edges[index] : self.edges[index + 1]], 1):
        place = self._put(rows, n, place, segment, piece)
    return rows

  def _put(self, rows: HostBatch, n: int, place: int, segment: int, piece: np.ndarray) -> int:
    """Writes a piece into row n at `place`; returns the position after it."""
    first, last = piece[:2]
    before, after = self._frame(piece[None])[0]
    ids = [*self.prefix[:before], *self.corpus.tokens[first:last], *self.suffix[:after]]
    end = place + len(ids)
    text = slice(place + before, end - after)
    rows['tokens'][n, place:end] = ids
    rows['segment_ids'][n, place:end] = segment
    rows['positions'][n, place:end] = np.arange(len(ids))
    rows['loss_mask'][n, text] = self.corpus.loss_mask[first:last]
    rows['loss_mask'][n, end - after : end] = self.corpus.loss_mask[last - 1]  # that it ends, too
    if self.words:
      rows['word_starts'][n, place:end] = 1  # each special token is a word
      rows['word_starts'][n, text] = self.corpus.word_starts[first:last]
      rows['word_starts'][n, place + before] = 1  # also where a document was cut within a word
    return end

  def resident(self) -> HostBatch | None:
    per_row = self.length * 4 * (len(KEYS) + 1 + self.words)
    return self._all if self.size * per_row <= RESIDENT_BYTES else None

  @functools.cached_property
  def _all(self) -> HostBatch:
    return self._rows(np.arange(self.size))

  def gather(self, arrays: Any, indices: Any) -> Batch:
    rows = {k: arrays[k][indices] for k in KEYS}
    tokens, segments = rows['tokens'], rows['segment_ids']
    ahead = lambda x: np.concatenate if isinstance(x, np.ndarray) else jax.numpy.concatenate
    shift = lambda x: ahead(x)([x[:, 1:], x[:, :1] * 0], axis=1)
    follows = (shift(segments) == segments) & (segments > 0)
    rows['targets'] = shift(tokens)
    rows['weights'] = (follows & (shift(arrays['loss_mask'][indices]) > 0)).astype(np.float32)
    if self.words:
      rows['words'] = arrays['word_starts'][indices].cumsum(1).astype(np.int32)
    return rows


def packed_spec(length: int, words: bool = False) -> dict[str, Spec]:
  """Returns the specs of one row."""
  return token_spec(length, ('segment_ids', 'positions', *['words'] * words))


def _pieces(firsts: np.ndarray, ends: np.ndarray, capacity: int) -> np.ndarray:
  """Cuts documents to at most `capacity` tokens -> int64 [P, 4].

  The columns: first token, the one after the last, whether a document begins, whether one ends.
  """
  counts = -(-(ends - firsts) // capacity)  # an empty document has no piece
  document = np.repeat(np.arange(len(ends)), counts)
  number = np.arange(len(document)) - np.repeat(np.cumsum(counts) - counts, counts)
  first = firsts[document] + number * capacity
  last = np.minimum(first + capacity, ends[document])
  begins, finishes = number == 0, number == counts[document] - 1
  return np.stack([first, last, begins, finishes], axis=1).astype(np.int64)


def packed(
  length: int,
  paths: Sequence[str] = (),
  split: str = 'train',
  field: str = 'text',
  prompt: str = '',
  unit: str = 'paragraph',
  tokenizer: Tokenizer | None = None,
  words: bool = False,
  separator: str = '',
  steps: Sequence[Step] = (),
  data_dir: str = '',
  read: bool = True,
) -> Examples:
  """Packs documents into rows, for masked and for causal language models.

  Args:
    length: tokens of a row.
    paths: files of text, see `documents.documents`; () is the standard library's source.
    split: 'train' is the first 90 % of the documents, 'valid' the rest, 'all' both.
    field: of the text in a record of .jsonl, .csv and TFDS.
    prompt: a second field, which precedes `field` and is not in the loss: for instructions.
    unit: of plain text that is one document: 'file', 'paragraph' or 'line'.
    tokenizer: of the text; None is bytes.
    words: gives word numbers, for masking whole words.
    separator: text after each document, instead of the end of text that the tokenizer adds or is
      known to have. Documents of bytes have neither.
    steps: functions that clean the documents, see `documents.documents`.
    data_dir: of TFDS.
    read: False returns shapes only.

  Raises:
    InputError: several documents, and a tokenizer without a known end.
  """
  if not read:
    return shapes(packed_spec(length, words), length=length)
  chosen = tokenizer or Bytes()
  if prompt and steps:
    raise InputError('steps clean plain documents; with `prompt` there are instructions')
  if prompt:
    found: Sequence[Parts] = _instructions(paths, prompt, field, data_dir)
  else:
    found = [[(text, True)] for text in documents(paths, field, unit, data_dir, steps)]
  corpus = encode(found, chosen)
  part = part_of(range(len(found)), split, describe(paths))
  corpus = corpus.part(part[0], part[-1] + 1)
  around = document_frame(chosen, separator, len(found))
  more = {'bytes': sum(len(t.encode()) for i in part for t, learn in found[i] if learn)}
  more |= special_facts(chosen.special)
  data = PackedData(
    corpus, chosen.size, length, around.prefix, around.suffix, around.whole, words, more, chosen,
  )  # fmt: skip
  data.metadata['source'] = (
    f'{describe(paths)}: {len(part):,} documents of {len(corpus.tokens):,} tokens in '
    f'{data.size:,} rows, {data.padding:.2%} padding'
  )
  return data


def _instructions(paths: Sequence[str], prompt: str, field: str, data_dir: str) -> list[Parts]:
  """Reads documents of two parts; only the second is a target of the loss."""
  result: list[Parts] = []
  for path in paths:
    for where, record in records(path, data_dir):
      parts = [whole(said(record, name, where), where) for name in (prompt, field)]
      result.append([(parts[0], False), (parts[1], True)])
  if not result:
    raise InputError('instructions need paths to read')
  return result
