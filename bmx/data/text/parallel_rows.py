"""Rows of pairs of texts, one or several a row."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bmx.core.data import Spec
from bmx.core.errors import InputError
from bmx.core.types import Batch, HostBatch
from bmx.data.arrays import RESIDENT_BYTES
from bmx.data.digests import digest_arrays
from bmx.data.text.corpus import Corpus
from bmx.data.text.packing import best_fit
from bmx.data.text.tokenizer import Tokenizer
from bmx.data.text.windows import along, tokenizer_state

SOURCE = ('source', 'source_ids', 'source_positions')
TARGET = ('tokens', 'segment_ids', 'positions')


class Pair(NamedTuple):
  """Two texts, and where they stand, for messages; `target` is None where it is not known."""

  where: str
  source: str
  target: str | None


@dataclasses.dataclass
class ParallelData:
  """Rows of one pair, or of several, of which none sees another.

  `source` int32 [S] with its `source_ids` (1, 2, ... by pair, 0 for padding) and
  `source_positions`; of the target `tokens`, `segment_ids` and `positions` int32 [T], and if it is
  known `targets`, the following tokens, and `weights` float32 [T], 0 on padding. The first of
  `tokens` is `begin`, the last of `targets` an end.

  Attributes:
    sources: with the tokens that the tokenizer adds.
    targets: likewise; None if they are not known.
    texts: of each pair.
    vocab_size: token ids are below it.
    length: T, tokens of a row of targets.
    source_length: S.
    begin: id that precedes every target.
    packed: whether a row has as many pairs as fit.
    more: metadata besides.
    tokenizer: of both sides.
  """

  sources: Corpus
  targets: Corpus | None
  texts: Sequence[Pair]
  vocab_size: int
  length: int
  source_length: int
  begin: int
  packed: bool = False
  more: dict[str, Any] = dataclasses.field(default_factory=dict)
  tokenizer: Tokenizer | None = None

  def __post_init__(self):
    n = len(self.texts)
    row, self.size = self._packed() if self.packed else (np.arange(n), n)
    self.order = np.argsort(row, kind='stable')
    self.edges = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=self.size))])
    self.metadata = {
      'vocab_size': self.vocab_size, 'length': self.length, 'source_length': self.source_length,
      'begin': self.begin, **self.more,
    }  # fmt: skip
    self.spec = parallel_spec(self.length, self.source_length, self.targets is not None)

  def _packed(self) -> tuple[np.ndarray, int]:
    """Packs pairs by the side that fills more of its row -> (row of each, number of rows)."""
    whole = max(self.length, self.source_length)
    share = lambda sizes, length: -(-sizes * whole // length)
    sizes = share(sizes_of(self.sources), self.source_length)
    if self.targets is not None:
      sizes = np.maximum(sizes, share(sizes_of(self.targets), self.length))
    return best_fit(sizes, whole)

  def state(self) -> dict[str, Any]:
    """Returns the state of the tokenizer."""
    return tokenizer_state(self.tokenizer)

  def digest(self) -> str:
    """Returns the SHA-256 of the tokens of both sides, and of their packing."""
    found = {'sources': self.sources.tokens, 'source_ends': self.sources.ends}
    if self.targets is not None:
      found |= {'targets': self.targets.tokens, 'target_ends': self.targets.ends}
    sizes = np.array([self.length, self.source_length, self.begin, self.packed])
    return digest_arrays({**found, 'sizes': sizes})

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    rows = {k: np.zeros((len(indices), *s.shape), s.dtype) for k, s in self.spec.items()}
    for n, index in enumerate(indices):
      at = [0, 0]
      for segment, pair in enumerate(self.order[self.edges[index] : self.edges[index + 1]], 1):
        source = document(self.sources, pair)
        _put(rows, SOURCE, n, at[0], segment, source)
        target = None if self.targets is None else document(self.targets, pair)
        before = [] if target is None else target[:-1]
        _put(rows, TARGET, n, at[1], segment, [self.begin, *before])
        if target is not None:
          rows['targets'][n, at[1] : at[1] + len(target)] = target
          rows['weights'][n, at[1] : at[1] + len(target)] = 1
        at = [at[0] + len(source), at[1] + len(before) + 1]
    return rows

  def resident(self) -> HostBatch | None:
    per_row = 4 * (len(SOURCE) * self.source_length + (len(TARGET) + 2) * self.length)
    return self._all if self.size * per_row <= RESIDENT_BYTES else None

  @functools.cached_property
  def _all(self) -> HostBatch:
    return self.rows(np.arange(self.size), np.arange(self.size))

  def gather(self, arrays: Any, indices: Any) -> Batch:
    return {k: v[indices] for k, v in arrays.items()}

  def present(self, predictions: HostBatch) -> list[dict[str, Any]]:
    """Returns {'row', 'source', 'prediction', 'score', 'target'} of each pair, in order.

    Args:
      predictions: 'prediction' int [N, n], ids of the texts, negative behind them; 'score' float
        [N].

    Raises:
      InputError: the rows are packed.
    """
    if self.packed or self.tokenizer is None:
      raise InputError('packed=True: expected one pair a row; texts are decoded from such rows')
    found = []
    for n, (pair, ids) in enumerate(zip(self.texts, predictions['prediction'], strict=True)):
      text = self.tokenizer.decode(ids[ids >= 0]).strip()
      line: dict[str, Any] = {'row': n + 1, 'source': pair.source, 'prediction': text}
      if 'score' in predictions:
        line['score'] = float(predictions['score'][n])
      found.append(line | ({} if pair.target is None else {'target': pair.target}))
    return found


def sizes_of(corpus: Corpus) -> np.ndarray:
  """Returns the tokens of each document, int64 [D]."""
  return np.diff(corpus.ends, prepend=0)


def document(corpus: Corpus, number: int) -> np.ndarray:
  """Returns the tokens of a document."""
  return corpus.tokens[corpus.ends[number - 1] if number else 0 : corpus.ends[number]]


def _put(
  rows: HostBatch, keys: Sequence[str], n: int, at: int, segment: int, ids: Sequence[int] | Any
) -> None:
  """Writes ids, their segment and their positions into row n from `at` on."""
  for key, value in zip(keys, (ids, segment, np.arange(len(ids))), strict=True):
    rows[key][n, at : at + len(ids)] = value


def parallel_spec(length: int, source_length: int, targets: bool = True) -> dict[str, Spec]:
  """Returns the specs of one row; `targets`: whether targets are known."""
  rows = {k: along(source_length) for k in SOURCE} | {k: along(length) for k in TARGET}
  rows['weights'] = along(length, np.float32)
  return rows | ({'targets': along(length)} if targets else {})
