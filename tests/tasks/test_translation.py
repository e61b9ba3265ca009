"""BLEU and chrF against sacrebleu, and what the metrics read."""

import types

import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.tasks.translation import (
  SIGNATURES,
  bleu,
  chrf,
  corpus_bleu,
  corpus_chrf,
  tokens_13a,
)

WORDS = [
  'the', 'a', 'dog,', 'cat;', '3.5', '1,000', '"quoted"', "it's", '(brackets)', 'well-known',
  '7-year-old', 'e.g.', '$5', '50%', '&amp;', 'ends.', 'Über', 'straße', '犬', '--', '...', '!',
  'man', 'woman', 'two', 'people', 'street', 'in', 'on', 'at',
]  # fmt: skip


def texts(seed, count=12, least=0):
  """Pairs of sentences that share many words."""
  random = np.random.default_rng(seed)
  pairs = []
  for _ in range(count):
    reference = list(random.choice(WORDS, random.integers(max(least, 1), 15)))
    changed = [w if random.random() < 0.7 else random.choice(WORDS) for w in reference]
    pairs.append((' '.join(changed[: random.integers(least, 16)]), ' '.join(reference)))
  return tuple(zip(*pairs, strict=True))


CASES = {
  'many': texts(0),
  'others': texts(1, 30),
  'one long': texts(2, 1, 8),
  'no 4-gram in common': (('a dog runs on the street',), ('one dog walks in the city',)),
  'short': (('a', 'a dog'), ('a', 'a cat')),
  'empty predictions': (('', ''), ('a dog runs here', 'two cats')),
  'nothing in common': (('xyz uvw',), ('a dog runs',)),
  'equal': (('two men, one dog & a cat.',) * 2, ('two men, one dog & a cat.',) * 2),
  'longer than the reference': (('the dog runs very fast over there',), ('the dog runs',)),
}


@pytest.mark.parametrize('case', CASES)
def test_scores_are_those_of_sacrebleu(case):
  sacrebleu = pytest.importorskip('sacrebleu')
  given, expected = CASES[case]
  want = sacrebleu.metrics.BLEU().corpus_score(list(given), [list(expected)]).score
  assert corpus_bleu(given, expected) == pytest.approx(want, abs=1e-9)
  want = sacrebleu.metrics.CHRF().corpus_score(list(given), [list(expected)]).score
  assert corpus_chrf(given, expected) == pytest.approx(want, abs=1e-9)


def test_words_are_those_of_sacrebleu():
  pytest.importorskip('sacrebleu')
  from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

  cut = Tokenizer13a()
  for text in (*sum(texts(3, 40), ()), 'a<skipped>b', 'x-\ny\nz', '1,5 .5 5. a.b 10-12 &lt;b&gt;'):
    assert tokens_13a(text) == cut(text.rstrip()).split()


def test_signatures_are_those_of_sacrebleu():
  sacrebleu = pytest.importorskip('sacrebleu')
  for name, metric in (('bleu', sacrebleu.metrics.BLEU()), ('chrf', sacrebleu.metrics.CHRF())):
    metric.corpus_score(['a'], [['a']])
    own = SIGNATURES[name].rpartition('|')[0]
    assert str(metric.get_signature()).rpartition('|')[0] == own


class Examples:
  def __init__(self, **more):
    self.more = more

  def present(self, predictions):
    return [{'prediction': str(p), **self.more} for p in predictions['prediction']]


def test_metrics_read_the_texts_of_the_data():
  data = types.SimpleNamespace(examples=Examples(target='1 2 3 4 5'))
  assert bleu({'prediction': ['1 2 3 4 5']}, data) == pytest.approx(100)
  assert chrf({'prediction': ['1 2 3 4 5']}, data) == pytest.approx(100)
  with pytest.raises(InputError, match='needs a target of every source'):
    bleu({'prediction': ['1']}, types.SimpleNamespace(examples=Examples()))
  with pytest.raises(InputError, match='int has no texts: expected bmx.data.text.parallel'):
    chrf({'prediction': ['1']}, types.SimpleNamespace(examples=3))
