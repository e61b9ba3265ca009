"""Cleaning of text documents: steps that drop or normalise them, and counts of what each did.

A step takes documents and returns those that are left, in their order. Recipes name one as
`{'call': 'bmx.data.text.clean:Length', 'least': 200}`; any function of the same form will do.
"""

import abc
import collections
import dataclasses
import functools
import hashlib
import itertools
import math
import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np

from bmx.core.errors import InputError, did_you_mean

Step = Callable[[list[str]], list[str]]
Form = Literal['NFC', 'NFD', 'NFKC', 'NFKD']

FORMS = get_args(Form)
BULLETS = ('•', '‣', '◦', '▪', '-', '*')
ELLIPSES = ('...', '…')
STOP_WORDS = ('the', 'be', 'to', 'of', 'and', 'that', 'have', 'with')

LINE_END = re.compile('\r\n|[\v\f\r\x85]')
NO_TEXT = re.compile('[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]')
BLOCK = 4096  # n-grams that are hashed at once: 2 MB with 64 hashes, so that they stay in cache


@dataclasses.dataclass(frozen=True)
class Unicode:
  """Characters in one form; removes no document.

  Every control character that ends a line (CR, CR LF, form feed, vertical tab, NEL) becomes a
  newline. The other ones but the tab are dropped, and so are halves of surrogate pairs, which JSON
  can hold and UTF-8 cannot. Raises InputError for an unknown form.
  """

  form: Form = 'NFC'

  def __post_init__(self):
    if self.form not in FORMS:
      raise InputError(f'Unicode: unknown form {self.form!r}{did_you_mean(self.form, FORMS)}')

  def __call__(self, documents: list[str]) -> list[str]:
    return [self._normalised(d) for d in documents]

  def _normalised(self, document: str) -> str:
    # Composed last: what is dropped may stand between a letter and its accent.
    return unicodedata.normalize(self.form, NO_TEXT.sub('', LINE_END.sub('\n', document)))


@dataclasses.dataclass(frozen=True)
class Length:
  """Keeps documents of `least` to `most` characters. Raises InputError for an empty range."""

  least: int = 1
  most: int = 10**9

  def __post_init__(self):
    _range(self, 'least', 'most')

  def __call__(self, documents: list[str]) -> list[str]:
    return [d for d in documents if self.least <= len(d) <= self.most]


@dataclasses.dataclass(frozen=True)
class Deduplicate:
  """Keeps the first of documents that are alike but for case and whitespace.

  With `near` also the first of those whose sets of word n-grams have a Jaccard similarity of at
  least `near`, as MinHash estimates it (Broder 1997): the share of hashes that agree, with a
  standard error of sqrt(near (1 - near) / hashes). A document falls to one that was kept only, so
  of a chain of small differences more than its first link may stay. The hashes are fixed: what is
  kept depends on the documents and their order alone.

  Attributes:
    near: 0 is exact duplicates only. Below 0.5 it is slow where many documents share passages.
    ngram: words. A document that is shorter is one n-gram.
    hashes: per document.

  Raises:
    InputError: near is outside 0..1; ngram or hashes is below 1.
  """

  near: float = 0.0
  ngram: int = 5
  hashes: int = 64

  def __post_init__(self):
    _between(self, 0, 1, 'near')
    _between(self, 1, math.inf, 'ngram', 'hashes')

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
  """Which rows agree with no earlier such row in a share `near`. [N, hashes] -> bool [N]

  Two rows that agree in all but `misses` hashes agree in at least one of `misses + 1` bands: so
  many bands find every pair, where fewer would find it with some probability.
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
  """One hash for each band of each row. uint32 [N, hashes] -> uint64 [N, bands]"""
  rows = signatures.shape[1] // bands
  parts = signatures[:, : bands * rows].reshape(-1, bands, rows).astype(np.uint64)
  keys = np.broadcast_to(np.arange(bands, dtype=np.uint64), parts.shape[:2])
  for i in range(rows):
    keys = _mix(keys + parts[:, :, i])
  return keys


def _signature(words: list[str], ngram: int, hashes: int) -> np.ndarray:
  """MinHash of the n-grams: the least of each of many hashes over them. -> uint32 [hashes]"""
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
  """The output function of SplitMix64 (Steele et al. 2014). uint64 -> uint64, one to one."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


@functools.lru_cache(maxsize=1 << 18)
def _word(word: str) -> int:
  return int.from_bytes(_digest(word, 8), 'little')


def _digest(text: str, size: int) -> bytes:
  """Not Python's `hash`, which differs between processes."""
  return hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=size).digest()


class _Rules(abc.ABC):
  """Drops the documents that break a rule."""

  def __call__(self, documents: list[str]) -> list[str]:
    return [d for d in documents if not self.broken(d)]

  def broken(self, document: str) -> str:
    """The name of the first rule that the document breaks, '' where it keeps all."""
    return next((name for name, kept in self._rules(document) if not kept), '')

  @abc.abstractmethod
  def _rules(self, document: str) -> Iterator[tuple[str, bool]]:
    """Each rule's name and whether the document keeps it."""


@dataclasses.dataclass(frozen=True)
class Quality(_Rules):
  """The quality rules of Gopher (Rae et al. 2021, appendix A.1.1), with its thresholds.

  Words are what whitespace parts, so punctuation belongs to them; lines that are blank do not
  count. The paper defines neither.

  Attributes:
    least_words, most_words: per document.
    least_mean, most_mean: characters per word.
    symbols: at most so many '#' per word, and so many ellipses.
    bullets: at most this share of lines begins with a bullet.
    ellipses: at most this share of lines ends with an ellipsis.
    alphabetic: at least this share of words has a letter.
    stops: at least so many different ones of `stop_words` occur, whatever their case and the ASCII
      punctuation around them.

  Raises:
    InputError: a threshold is negative, a share above 1, a range empty, or there are fewer stop
      words than have to occur.
  """

  least_words: int = 50
  most_words: int = 100_000
  least_mean: float = 3.0
  most_mean: float = 10.0
  symbols: float = 0.1
  bullets: float = 0.9
  ellipses: float = 0.3
  alphabetic: float = 0.8
  stops: int = 2
  stop_words: Sequence[str] = STOP_WORDS

  def __post_init__(self):
    _range(self, 'least_words', 'most_words')
    _range(self, 'least_mean', 'most_mean')
    _between(self, 0, math.inf, 'symbols')
    _between(self, 0, 1, 'bullets', 'ellipses', 'alphabetic')
    _between(self, 0, len(set(self.stop_words)), 'stops')

  def _rules(self, document: str) -> Iterator[tuple[str, bool]]:
    words, lines = document.split(), _lines(document)
    count = max(1, len(words))
    share = lambda hits: sum(hits) / max(1, len(lines))
    yield 'words', self.least_words <= len(words) <= self.most_words
    yield 'mean word length', self.least_mean <= sum(map(len, words)) / count <= self.most_mean
    yield 'hashes', document.count('#') / count <= self.symbols
    yield 'ellipses', sum(map(document.count, ELLIPSES)) / count <= self.symbols
    yield 'bullet lines', share(line.startswith(BULLETS) for line in lines) <= self.bullets
    yield 'ellipsis lines', share(line.endswith(ELLIPSES) for line in lines) <= self.ellipses
    letters = sum(any(map(str.isalpha, word)) for word in words)
    yield 'alphabetic words', letters / count >= self.alphabetic
    bare = {word.strip(string.punctuation).casefold() for word in words}
    yield 'stop words', len(bare & {w.casefold() for w in self.stop_words}) >= self.stops


@dataclasses.dataclass(frozen=True)
class Repetition(_Rules):
  """Three of Gopher's rules on repetition (Rae et al. 2021, table A1), with its thresholds.

  Lines that are blank do not count, nor does whitespace around lines and words.

  Attributes:
    lines: at most this share of lines repeats an earlier one.
    characters: at most this share of the lines' characters is in such lines.
    bigram: at most this share of the words' characters is in the most frequent pair of words, where
      one occurs twice; of pairs as frequent it is the longest.

  Raises:
    InputError: a share is outside 0..1.
  """

  lines: float = 0.3
  characters: float = 0.2
  bigram: float = 0.2

  def __post_init__(self):
    _between(self, 0, 1, 'lines', 'characters', 'bigram')

  def _rules(self, document: str) -> Iterator[tuple[str, bool]]:
    lines = _lines(document)
    unique = set(lines)
    yield 'lines', (len(lines) - len(unique)) / max(1, len(lines)) <= self.lines
    total, first = sum(map(len, lines)), sum(map(len, unique))
    yield 'characters', (total - first) / max(1, total) <= self.characters
    yield 'bigram', _top_bigram(document.split()) <= self.bigram


def _top_bigram(words: list[str]) -> float:
  """The share of characters in the most frequent pair of neighbours; 0 where none is repeated.

  A word that two occurrences share, as in 'ha ha ha', counts once.
  """
  pairs = list(itertools.pairwise(words))
  counts = collections.Counter(pairs)
  top = max(counts, key=lambda pair: (counts[pair], len(pair[0]) + len(pair[1])), default=None)
  if top is None or counts[top] == 1:
    return 0.0
  inside = {j for i, pair in enumerate(pairs) if pair == top for j in (i, i + 1)}
  return sum(len(words[j]) for j in inside) / sum(map(len, words))


def _lines(document: str) -> list[str]:
  stripped = (line.strip() for line in document.splitlines())
  return [line for line in stripped if line]


def _between(step: Any, least: float, most: float, *names: str) -> None:
  for name in names:
    value = getattr(step, name)
    if not least <= value <= most:
      expected = f'at least {least}' if most == math.inf else f'{least} to {most}'
      raise InputError(f'{type(step).__name__}: {name}={value}, expected {expected}')


def _range(step: Any, least: str, most: str) -> None:
  _between(step, 0, math.inf, least, most)
  low, high = getattr(step, least), getattr(step, most)
  if low > high:
    raise InputError(f'{type(step).__name__}: {least}={low} is above {most}={high}')


@dataclasses.dataclass(frozen=True)
class Count:
  """What one step did, in documents. `changed` ones are among those that are `left`."""

  step: str
  removed: int
  changed: int
  left: int


def clean(documents: Sequence[str], steps: Sequence[Step]) -> tuple[list[str], list[Count]]:
  """-> the documents after all steps, and one count per step, in the order of `steps`.

  Raises:
    InputError: there are no documents, or a step leaves none (the step named).
  """
  left, counts = list(documents), []
  if not left:
    raise InputError('there is no document to clean')
  for step in steps:
    given, left = left, step(left)
    removed = len(given) - len(left)
    if not left:
      raise InputError(
        f'no document is left after {step}, which removed {removed} of {len(given)}; '
        'loosen it or leave it out'
      )
    # What is left and was not given. Exact for any step that changes nothing when done twice.
    changed = (collections.Counter(left) - collections.Counter(given)).total()
    name = getattr(step, '__name__', type(step).__name__)
    counts.append(Count(name, removed, changed, len(left)))
  return left, counts


def report(counts: Sequence[Count]) -> str:
  """One line per step.

  >>> report([Count('Unicode', 0, 12, 90), Count('Length', 15, 0, 75)])
  'Unicode: 0 of 90 documents removed, 12 changed\\nLength: 15 of 90 documents removed, 0 changed'
  """
  return '\n'.join(
    f'{c.step}: {c.removed} of {c.removed + c.left} documents removed, {c.changed} changed'
    for c in counts
  )


def standard(
  form: str = 'NFC',
  least: int = 0,
  most: int = 0,
  quality: bool = False,
  repetition: bool = False,
  duplicates: bool = True,
  near: float = 0.0,
) -> tuple[Step, ...]:
  """The usual steps in their usual order, as a recipe sets them: `Unicode`, `Length` (where `most`
  is not 0), `Quality`, `Repetition`, `Deduplicate`."""
  steps: list[Step] = [Unicode(form)] if form else []  # type: ignore[arg-type]
  steps += [Length(least, most)] if most else []
  steps += [Quality()] if quality else []
  steps += [Repetition()] if repetition else []
  return tuple(steps + [Deduplicate(near)] * duplicates)
