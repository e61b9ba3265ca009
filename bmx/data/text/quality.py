"""Rules of quality and repetition (Rae et al. 2021, appendix A)."""

import abc
import collections
import dataclasses
import itertools
import math
import string
from collections.abc import Iterator, Sequence

from bmx.data.records import LINE_END
from bmx.data.text.steps import check_between, check_range

BULLETS = ('•', '‣', '◦', '▪', '-', '*')
ELLIPSES = ('...', '…')
STOP_WORDS = ('the', 'be', 'to', 'of', 'and', 'that', 'have', 'with')


class _Rules(abc.ABC):
  """Drops documents that break a rule."""

  def __call__(self, documents: list[str]) -> list[str]:
    return [d for d in documents if not self.broken(d)]

  def broken(self, document: str) -> str:
    """Returns the name of the first rule that the document breaks, '' if it keeps all."""
    return next((name for name, kept in self._rules(document) if not kept), '')

  @abc.abstractmethod
  def _rules(self, document: str) -> Iterator[tuple[str, bool]]:
    """Yields each rule's name and whether the document keeps it."""


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
    check_range(self, 'least_words', 'most_words')
    check_range(self, 'least_mean', 'most_mean')
    check_between(self, 0, math.inf, 'symbols')
    check_between(self, 0, 1, 'bullets', 'ellipses', 'alphabetic')
    check_between(self, 0, len(set(self.stop_words)), 'stops')

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
    check_between(self, 0, 1, 'lines', 'characters', 'bigram')

  def _rules(self, document: str) -> Iterator[tuple[str, bool]]:
    lines = _lines(document)
    unique = set(lines)
    yield 'lines', (len(lines) - len(unique)) / max(1, len(lines)) <= self.lines
    total, first = sum(map(len, lines)), sum(map(len, unique))
    yield 'characters', (total - first) / max(1, total) <= self.characters
    yield 'bigram', _top_bigram(document.split()) <= self.bigram


def _top_bigram(words: list[str]) -> float:
  """Returns the share of characters in the most frequent pair of neighbors; 0 without repetition.

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
  stripped = (line.strip() for line in LINE_END.split(document))
  return [line for line in stripped if line]
