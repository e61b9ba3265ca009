"""Exact and near duplicates of documents."""

import collections
import dataclasses
import functools
import hashlib
import math

import numpy as np

from bmx.data.text.steps import check_between

BLOCK = 4096  # n-grams that are hashed at once: 2 MB with 64 hashes, so that they stay in cache


@dataclasses.dataclass(frozen=True)
class Deduplicate:
  """Keeps the first of documents that are alike but for case and whitespace.

  With `near` also the first of those whose sets of word n-grams have a Jaccard similarity of at
  least `near`, as MinHash estimates it (Broder 1997): the share of hashes that agree, with a
  standard error of sqrt(near (1 - near) / hashes). A document is compared with kept documents only,
  so of a chain of small differences more than its first link may stay. The hashes are fixed: the
  result depends on the documents and their order alone.

  Attributes:
    near: 0 is exact duplicates only. Below 0.5 it is slow if many documents share passages.
    ngram: words. A document that is shorter is one n-gram.
    hashes: per document.

  Raises:
    InputError: near is outside 0..1; ngram or hashes is below 1.
  """

  near: float = 0.0
  ngram: int = 5
  hashes: int = 64

  def __post_init__(self):
    check_between(self, 0, 1, 'near')
    check_between(self, 1, math.inf, 'ngram', 'hashes')

  def __call__(self, documents: list[str]) -> list[str]:
    first = {}
    for document in documents:
      first.setdefault(_digest(' '.join(_words(document)), 16), document)
    kept = list(first.values())
    if not (self.near and kept):
      return kept
    signatures = [_signature(_words(d), self.ngram, self.hashes) for d in kept]
    apart = _apart(np.stack(signatures), self.near)
    return [d for d, keep in zip(kept, apart, strict=True) if keep]


def _words(document: str) -> list[str]:
  return document.casefold().split()


def _apart(signatures: np.ndarray, near: float) -> np.ndarray:
  """Returns the rows that agree with no earlier such row in a share `near`: bool [N].

  Two rows that agree in all but `misses` hashes agree in at least one of `misses + 1` bands: so
  many bands find every pair; fewer would find it with some probability.

  Args:
    signatures: uint32 [N, hashes].
    near: share of equal hashes.
  """
  hashes = signatures.shape[1]
  least = max(1, math.ceil(near * hashes - 1e-9))  # 0.07 * 100 is a little more than 7
  keys = _bands(signatures, hashes - least + 1)
  _, place, count = np.unique(keys, return_inverse=True, return_counts=True)
  shared = count[place].reshape(keys.shape) > 1  # few are: the rows without any are apart
  apart, buckets = np.ones(len(signatures), bool), collections.defaultdict(list)
  for row in np.flatnonzero(shared.any(1)).tolist():
    mine = keys[row, shared[row]].tolist()
    others = list({other for key in mine for other in buckets[key]})
    agree = (signatures[others] == signatures[row]).sum(1)
    apart[row] = not (agree >= least).any()
    if apart[row]:
      for key in mine:
        buckets[key].append(row)
  return apart


def _bands(signatures: np.ndarray, bands: int) -> np.ndarray:
  """Hashes each band of each row: uint32 [N, hashes] -> uint64 [N, bands]."""
  rows = signatures.shape[1] // bands
  parts = signatures[:, : bands * rows].reshape(-1, bands, rows).astype(np.uint64)
  keys = np.broadcast_to(np.arange(bands, dtype=np.uint64), parts.shape[:2])
  for i in range(rows):
    keys = _mix(keys + parts[:, :, i])
  return keys


def _signature(words: list[str], ngram: int, hashes: int) -> np.ndarray:
  """Returns the MinHash of the n-grams, the least of each of many hashes: uint32 [hashes]."""
  ids = np.array([_word(w) for w in words], np.uint64)
  n = min(ngram, len(ids))
  grams = np.zeros(len(ids) - n + 1, np.uint64)
  for i in range(n):
    grams = _mix(grams + ids[i : i + len(grams)])
  seeds = _mix(np.arange(1, hashes + 1, dtype=np.uint64))
  least = np.full(hashes, np.iinfo(np.uint64).max)
  for start in range(0, len(grams), BLOCK):
    block = grams[start : start + BLOCK, None]
    least = np.minimum(least, _mix(block ^ seeds).min(0))
  return (least >> np.uint64(32)).astype(np.uint32)


def _mix(x: np.ndarray) -> np.ndarray:
  """Applies the output function of SplitMix64 (Steele et al. 2014), a bijection of uint64."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


@functools.lru_cache(maxsize=1 << 18)
def _word(word: str) -> int:
  return int.from_bytes(_digest(word, 8), 'little')


def _digest(text: str, size: int) -> bytes:
  """Hashes a text; unlike Python's `hash`, equal in all processes."""
  return hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=size).digest()
