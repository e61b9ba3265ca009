"""BLEU and chrF of translations, as sacrebleu computes them by default."""

import collections
import math
import re
from collections.abc import Sequence

from bmx.core.data import Data, Presenting
from bmx.core.errors import InputError
from bmx.core.types import HostBatch
from bmx.tasks.transcripts import presented

ORDER = 4  # longest n-gram of words in BLEU
CHARACTERS = 6  # longest n-gram of characters in chrF
# What sacrebleu prints for the same settings; the version is that of its definitions.
SIGNATURES = {
  'bleu': 'nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0',
  'chrf': 'nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:2.6.0',
}
ESCAPES = ('&quot;', '"'), ('&amp;', '&'), ('&lt;', '<'), ('&gt;', '>')
# Punctuation that mteval-v13a cuts off: symbols; marks beside anything but digits; a hyphen behind
# a digit.
CUTS = (
  (re.compile(r'([\{-\~\[-\` -\&\(-\+\:-\@\/])'), r' \1 '),
  (re.compile(r'([^0-9])([\.,])'), r'\1 \2 '),
  (re.compile(r'([\.,])([^0-9])'), r' \1 \2'),
  (re.compile(r'([0-9])(-)'), r'\1 \2 '),
)


def bleu(rows: HostBatch, data: Data) -> float:
  """Computes BLEU of a corpus, 0 to 100, with one reference of each sentence.

  sacrebleu's signature: `SIGNATURES['bleu']`.

  Args:
    rows: predictions of a `Seq2SeqLM`.
    data: pairs of texts, `bmx.data.text.parallel:parallel`.

  Raises:
    InputError: the data has no texts or no references.

  Source: Papineni et al. 2002; Chen & Cherry 2014 for the smoothing; Post 2018 for the tokens.
  """
  return corpus_bleu(*_texts(rows, data))


def chrf(rows: HostBatch, data: Data) -> float:
  """Computes chrF2 of a corpus, 0 to 100: the F-score of n-grams of characters.

  sacrebleu's signature: `SIGNATURES['chrf']`. Args and Raises: as in `bleu`.

  Source: Popović 2015.
  """
  return corpus_chrf(*_texts(rows, data))


def corpus_bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
  """Computes `bleu` of texts."""
  hits, totals = [0] * ORDER, [0] * ORDER
  size = reference_size = 0
  for prediction, reference in zip(predictions, references, strict=True):
    words, expected = tokens_13a(prediction), tokens_13a(reference)
    size, reference_size = size + len(words), reference_size + len(expected)
    for n in range(ORDER):
      grams = _grams(words, n + 1)
      hits[n] += (grams & _grams(expected, n + 1)).total()
      totals[n] += grams.total()
  if not any(hits):
    return 0.0
  logs, smooth = [], 1.0
  for hit, total in zip(hits, totals, strict=True):
    if not total:
      return 0.0  # no text has so many words
    if not hit:
      smooth *= 2
    logs.append(math.log(hit / total if hit else 1 / (smooth * total)))
  brevity = min(0.0, 1 - reference_size / size)
  return 100 * math.exp(brevity + sum(logs) / ORDER)


def corpus_chrf(predictions: Sequence[str], references: Sequence[str], beta: float = 2.0) -> float:
  """Computes `chrf` of texts; beta: weight of recall against precision."""
  counts = [[0, 0, 0] for _ in range(CHARACTERS)]  # predicted, expected, in both
  for prediction, reference in zip(predictions, references, strict=True):
    given, expected = (''.join(text.split()) for text in (prediction, reference))
    for n, count in enumerate(counts):
      a, b = _grams(given, n + 1), _grams(expected, n + 1)
      # As sacrebleu: predicted n-grams of a text count only where the reference has one.
      for i, more in enumerate((a.total() if b else 0, b.total(), (a & b).total())):
        count[i] += more
  scores = [(both / a, both / b) for a, b, both in counts if a and b]
  if not scores:
    return 0.0
  precision, recall = (sum(side) / len(scores) for side in zip(*scores, strict=True))
  if not precision + recall:
    return 0.0
  factor = beta**2
  return 100 * (1 + factor) * precision * recall / (factor * precision + recall)


def tokens_13a(text: str) -> list[str]:
  """Cuts a text into words as mteval-v13a does.

  >>> tokens_13a('Two dogs, 3.5 m apart.')
  ['Two', 'dogs', ',', '3.5', 'm', 'apart', '.']
  """
  text = text.rstrip().replace('<skipped>', '').replace('-\n', '').replace('\n', ' ')
  for escape, letter in ESCAPES:
    text = text.replace(escape, letter)
  text = f' {text} '
  for pattern, cut in CUTS:
    text = pattern.sub(cut, text)
  return text.split()


def _grams(items: Sequence[str], n: int) -> collections.Counter[tuple[str, ...] | str]:
  """Counts the n-grams of a list of words, or of the characters of a text."""
  if isinstance(items, str):
    return collections.Counter(items[i : i + n] for i in range(len(items) - n + 1))
  return collections.Counter(tuple(items[i : i + n]) for i in range(len(items) - n + 1))


def _texts(rows: HostBatch, data: Data) -> tuple[list[str], list[str]]:
  """Returns predicted texts and their references."""
  if not isinstance(data.examples, Presenting):
    raise InputError(
      f'{type(data.examples).__name__} has no texts: expected bmx.data.text.parallel:parallel'
    )
  pairs = presented(rows, data.examples)
  return [found for _, found in pairs], [true for true, _ in pairs]
