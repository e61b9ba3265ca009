"""Pairs of sentences for next-sentence prediction."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from bmx.core import streams
from bmx.core.data import Examples, Spec
from bmx.core.errors import InputError
from bmx.core.types import HostBatch
from bmx.data.digests import digest_arrays
from bmx.data.shapes import shapes
from bmx.data.text.corpus import Corpus, encode
from bmx.data.text.documents import describe, documents, part_of
from bmx.data.text.special import special_facts
from bmx.data.text.template import need_prefix
from bmx.data.text.tokenizer import Subwords
from bmx.data.text.windows import along, tokenizer_state

END = re.compile(r'(?<=[.!?])\s+|\n+')  # where a sentence ends


@dataclasses.dataclass
class PairData:
  """Rows of two texts, joined as the tokenizer joins them ([CLS] A [SEP] B [SEP]).

  The arrays are `tokens`, `segment_ids`, `types`, and `next`: 0 if B follows A in its document
  (half of the rows), 1 if B is from another document (Devlin et al. 2019). In training B is drawn
  anew each time that a row is read, in evaluation it is always the same.

  Attributes:
    corpus: sentences.
    document: int [S], of each sentence, ascending.
  """

  corpus: Corpus
  document: np.ndarray
  vocab_size: int
  length: int
  seed: int = 0
  train: bool = True
  more: dict[str, Any] = dataclasses.field(default_factory=dict)
  tokenizer: Subwords | None = None

  def __post_init__(self):
    assert self.tokenizer is not None
    need_prefix(self.tokenizer.template, 'pairs of texts', pair=True)
    least = self.tokenizer.template.added + 2
    if self.length < least:
      raise InputError(f'length={self.length}: a pair of texts needs at least {least} tokens')
    if len(np.unique(self.document)) < 2:
      raise InputError('next-sentence prediction needs at least two documents')
    self.firsts = np.flatnonzero(self.document[:-1] == self.document[1:])
    if not len(self.firsts):
      raise InputError('next-sentence prediction needs documents of at least two sentences')
    self.size = len(self.firsts)
    self.metadata = {'vocab_size': self.vocab_size, 'length': self.length} | self.more
    self.spec = pair_spec(self.length)

  def state(self) -> dict[str, Any]:
    """The tokenizer."""
    return tokenizer_state(self.tokenizer)

  def digest(self) -> str:
    """SHA-256 of the tokens."""
    return digest_arrays({'tokens': self.corpus.tokens, 'ends': self.corpus.ends})

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    varies = positions if self.train else indices
    draws = streams.draws(self.seed, streams.PAIRS, np.asarray(varies, np.int64))
    first = self.firsts[indices]
    follows = draws[:, 0] < 0.5
    second = np.where(follows, first + 1, self._elsewhere(first, draws[:, 1]))
    shape = (len(indices), self.length)
    rows = {k: np.zeros(shape, np.int32) for k in ('tokens', 'segment_ids', 'types')}
    assert self.tokenizer is not None
    rows['tokens'][:] = self.tokenizer.special.get('pad', 0)
    for n, (a, b) in enumerate(zip(first, second, strict=True)):
      self._put(rows, n, self._sentence(a), self._sentence(b))
    rows['next'] = (~follows).astype(np.int32)  # as published weights have it
    return rows | {'weights': np.ones(len(indices), np.float32)}

  def _elsewhere(self, first: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Draws a sentence of another document, uniformly."""
    begin = np.searchsorted(self.document, self.document[first], 'left')
    end = np.searchsorted(self.document, self.document[first], 'right')
    place = (draw * (len(self.document) - (end - begin))).astype(np.int64)
    return np.where(place < begin, place, place + (end - begin))

  def _sentence(self, number: int) -> np.ndarray:
    first = self.corpus.ends[number - 1] if number else 0
    return self.corpus.tokens[first : self.corpus.ends[number]]

  def _put(self, rows: HostBatch, n: int, a: np.ndarray, b: np.ndarray) -> None:
    """Writes both texts; cuts the longer one if they do not fit."""
    assert self.tokenizer is not None
    template = self.tokenizer.template
    capacity = self.length - template.added
    a = a[: max(capacity - len(b), capacity // 2)]
    b = b[: capacity - len(a)]
    joined = template.join(a.tolist(), b.tolist())
    size = len(joined.ids)
    rows['tokens'][n, :size] = joined.ids
    rows['segment_ids'][n, :size] = 1
    rows['types'][n, :size] = joined.types


def pair_spec(length: int) -> dict[str, Spec]:
  """Returns the specs of one row."""
  rows = {k: along(length) for k in ('tokens', 'segment_ids', 'types')}
  return rows | {'next': Spec((), np.dtype(np.int32)), 'weights': Spec((), np.dtype(np.float32))}


def pairs(
  length: int,
  tokenizer: Subwords,
  paths: Sequence[str] = (),
  split: str = 'train',
  field: str = 'text',
  unit: str = 'paragraph',
  data_dir: str = '',
  read: bool = True,
  seed: int = 0,
  train: bool = True,
) -> Examples:
  """Cuts documents into sentences, and pairs them.

  Args:
    length: tokens of a row.
    tokenizer: of the text, with [CLS] and [SEP].
    paths: files of text, see `documents.documents`; () is the standard library's source.
    split: 'train' is the first 90 % of the documents, 'valid' the rest.
    field: of the text in a record of .jsonl, .csv and TFDS.
    unit: of plain text that is one document: 'file', 'paragraph' or 'line'.
    data_dir: of TFDS.
    read: False returns shapes only.
    seed: of the order and the second sentences.
    train: training data.
  """
  if not read:
    return shapes(pair_spec(length), length=length)
  need_prefix(tokenizer.template, 'pairs of texts', pair=True)
  found = part_of(documents(paths, field, unit, data_dir), split, describe(paths))
  cut = [[s for s in END.split(text) if s.strip()] for text in found]
  corpus = encode([[(s, True)] for sentences in cut for s in sentences], tokenizer)
  document = np.repeat(np.arange(len(cut)), [len(sentences) for sentences in cut])
  more = special_facts(tokenizer.special)
  more['source'] = f'{describe(paths)}: {len(document):,} sentences of {len(found):,} documents'
  return PairData(corpus, document, tokenizer.size, length, seed, train, more, tokenizer)
