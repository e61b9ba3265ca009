"""Cleaning against brute force, against the binomial law of MinHash, and documents made by hand."""

import itertools
import os
import re
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmx import config as recipes
from bmx.core.errors import InputError
from bmx.data.text.clean import Count, Length, Unicode, clean, report, standard
from bmx.data.text.deduplicate import Deduplicate
from bmx.data.text.quality import Quality, Repetition
from tests.conftest import ROOT

PROSE = (
  'The river that runs past the old mill was dark, and the children who lived near it were told '
  'to stay with their parents.\nNobody knew how deep it could be, but many of them said they have '
  'seen fish as long as an arm.\nIn spring the water rose until it covered every stone of the road.'
)
SMALL = Quality(least_words=1, least_mean=0, stops=0)  # what is left for one rule to break

STEPS = {
  'unicode': Unicode(),
  'compatible': Unicode('NFKD'),
  'length': Length(3, 12),
  'exact': Deduplicate(),
  'near': Deduplicate(near=0.4, ngram=1, hashes=16),
  'very near': Deduplicate(near=0.9, ngram=2, hashes=8),
  'quality': Quality(least_words=2, least_mean=1, stops=1),
  'repetition': Repetition(),
}


def words(rng, n, size=10**6):
  return [f'w{i}' for i in rng.integers(size, size=n)]


def jaccard(a, b, ngram):
  sets = []
  for text in (a, b):
    parts = text.lower().split()
    sets.append({tuple(parts[i : i + ngram]) for i in range(len(parts) - ngram + 1)})
  return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


# Unicode


UNICODE = {
  'composed': ('cafe\u0301', 'café'),
  'line ends': ('a\r\nb\rc\nd\r\n\r\ne', 'a\nb\nc\nd\n\ne'),
  'page': ('one\ftwo\vthree\x85four', 'one two three four'),
  'controls': ('a\x00b\x1b[0m\x7f\x9f\tc', 'ab[0m\tc'),
  'surrogate': ('a\ud800b\udfffc😀', 'abc😀'),
  'composed across a control': ('e\x00\u0301', 'é'),
  'spaces and format stay': ('a\u00a0b\u200dc\u2028d', 'a\u00a0b\u200dc\u2028d'),
}


@pytest.mark.parametrize(('given', 'expected'), UNICODE.values(), ids=UNICODE)
def test_unicode(given, expected):
  assert Unicode()([given]) == [expected]


@pytest.mark.parametrize('form', ['NFC', 'NFD', 'NFKC', 'NFKD'])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(text=st.text())
def test_unicode_is_one_form_without_controls(form, text):
  (got,) = Unicode(form)([text])
  assert unicodedata.is_normalized(form, got)
  assert not [c for c in got if unicodedata.category(c) in ('Cc', 'Cs') and c not in '\n\t']
  visible = lambda s: [c for c in s if unicodedata.category(c) not in ('Cc', 'Cs')]
  spaced = re.sub('[\v\f\x85]', ' ', text)
  assert visible(got) == visible(unicodedata.normalize(form, ''.join(visible(spaced))))


def test_unicode_forms_differ():
  assert [Unicode(f)(['ﬁé']) for f in ('NFC', 'NFKC')] == [['ﬁé'], ['fié']]
  assert Unicode('NFD')(['é']) == ['e\u0301']


# Length


def test_length_keeps_both_ends():
  documents = ['', 'a', 'bb', 'ccc', 'dddd', 'éé']
  assert Length(2, 3)(documents) == ['bb', 'ccc', 'éé']
  assert Length()(documents) == documents[1:]
  assert Length(4, 4)(documents) == ['dddd']


# Deduplicate


def test_exact_duplicates():
  documents = ['A b', 'c', 'a\n B ', 'ab', 'STRASSE', 'straße', 'c', 'c.']
  assert Deduplicate()(documents) == ['A b', 'c', 'ab', 'STRASSE', 'c.']


def planted(rng, families, copies):
  """Documents of 80 words and copies with 1 or 2 words replaced, or with half of them: shuffled."""
  documents = []
  for _ in range(families):
    base = words(rng, 80)
    documents.append(base)
    for _ in range(copies):
      near = list(base)
      for place in rng.integers(80, size=rng.integers(1, 3)):
        near[place] = 'other'
      documents.append(near)
    documents.append(base[:40] + words(rng, 40))
  return [' '.join(documents[i]) for i in rng.permutation(len(documents))]


@pytest.mark.parametrize(('near', 'ngram', 'hashes'), [(0.55, 3, 128), (0.6, 2, 256), (0.6, 1, 96)])
def test_near_duplicates_are_those_of_brute_force(near, ngram, hashes):
  documents = planted(np.random.default_rng(0), families=12, copies=3)
  expected, similar = [], []
  for document in documents:
    similar += [jaccard(document, other, ngram) for other in expected]
    if all(jaccard(document, other, ngram) < near for other in expected):
      expected.append(document)
  gaps = np.abs(np.array(similar) - near)
  assert gaps.min() > 3 * np.sqrt(near * (1 - near) / hashes)  # the estimate cannot fail by chance
  assert 12 <= len(expected) < len(documents) - 12
  assert Deduplicate(near, ngram, hashes)(documents) == expected


def tail(n, least, p):
  """P(at least `least` of n) by convolution."""
  law = np.ones(1)
  for _ in range(n):
    law = np.convolve(law, [1 - p, p])
  return law[least:].sum()


@pytest.mark.parametrize(
  ('hashes', 'near', 'least', 'shared'),
  [(1, 0.5, 1, 10), (16, 0.0625, 1, 4), (4, 1.0, 4, 18), (16, 0.7, 12, 16), (25, 0.28, 7, 10)],
)
def test_pairs_fall_as_often_as_the_binomial_law_says(hashes, near, least, shared):
  """Each hash agrees with the probability of the Jaccard similarity, and independently of others.

  A band that is missed, or two hashes that are alike, would show.
  """
  rng, pairs, size = np.random.default_rng(1), 500, 20
  documents = []
  for pair in range(pairs):
    names = [f'{pair}-{i}' for i in range(2 * size - shared)]
    documents += [' '.join(rng.permutation(part)) for part in (names[:size], names[-size:])]
  left = Deduplicate(near, 1, hashes)(documents)
  p = tail(hashes, least, shared / (2 * size - shared))
  assert 0.05 < p < 0.95
  removed = len(documents) - len(left)
  assert abs(removed - pairs * p) < 3.5 * np.sqrt(pairs * p * (1 - p))
  assert set(documents[::2]) <= set(left)  # the first one stays


def test_a_chain_does_not_fall_to_its_first_link():
  links = [' '.join(f'w{i}' for i in range(start, start + 100)) for start in (0, 25, 50)]
  assert jaccard(links[0], links[1], 1) == jaccard(links[1], links[2], 1) == 75 / 125
  step = Deduplicate(near=0.48, ngram=1, hashes=256)
  assert step(links) == [links[0], links[2]]  # 50 / 150 of each other
  assert step(links[::-1]) == [links[2], links[0]]
  assert step([links[1], links[0], links[2]]) == [links[1]]


def test_word_order_counts_in_ngrams():
  documents = ['a b c d e f', 'f e d c b a']
  assert Deduplicate(near=1, ngram=1)(documents) == documents[:1]
  assert Deduplicate(near=0.1, ngram=2)(documents) == documents


def test_short_documents_are_one_ngram():
  documents = ['a b', 'a b c', '', 'b a', ' ', 'A  b']
  assert Deduplicate(near=0.1, ngram=5)(documents) == ['a b', 'a b c', '', 'b a']


def test_a_document_of_many_blocks():
  """Its hashes are the least over all of it, not over one part."""
  rng = np.random.default_rng(2)
  long = words(rng, 10_000)
  start, end = ' '.join(long[:5000]), ' '.join(long[5000:])
  step = Deduplicate(near=0.3, ngram=3, hashes=32)
  for half in (start, end):
    assert step([' '.join(long), half]) == [' '.join(long)]
  assert step([start, end]) == [start, end]


def test_another_process_keeps_the_same():
  """At a similarity where chance decides, so that other hashes would keep others."""
  program = (
    'from bmx.data.text.deduplicate import Deduplicate\n'
    "pairs = [' '.join(f'{p}-{i}' for i in range(s, s + 20)) for p in range(60) for s in (0, 7)]\n"
    'left = Deduplicate(0.5, 1, 8)(pairs)\n'
  )
  here = {}
  exec(program, here)
  assert 70 < len(here['left']) < 110
  there = subprocess.run(
    [sys.executable, '-c', program + 'print(left)'],
    env={**os.environ, 'PYTHONHASHSEED': '7'}, cwd=ROOT, capture_output=True, text=True, check=True,
  )  # fmt: skip
  assert there.stdout.strip() == str(here['left'])


# Quality: each document breaks one rule, and one that is a step nearer to the limit does not.


def repeat(one, n, other, m, by=' '):
  return by.join([one] * n + [other] * m)


RULES = {
  'too few words': ('words', Quality(least_words=4), 'the cat and', 'the cat and mouse'),
  'too many words': ('words', Quality(1, 4), 'the cat and a mouse', 'the cats and mouse'),
  'short words': ('mean word length', Quality(1), 'of the to ab', 'of the and mouse'),
  'long words': ('mean word length', Quality(1, stops=0), 'a' * 11, 'a' * 10),
  'hashes': ('hashes', SMALL, repeat('#a', 3, 'word', 17), repeat('#a', 2, 'word', 18)),
  'ellipses': ('ellipses', SMALL, repeat('a...', 2, 'b', 17), repeat('a...', 2, 'b', 18)),
  'one-character ellipses': ('ellipses', SMALL, repeat('a…', 2, 'b', 17), repeat('a…', 2, 'b', 18)),
  'bullets': ('bullet lines', SMALL, repeat('-a', 10, 'b', 1, '\n'), repeat('-a', 9, 'b', 1, '\n')),
  'indented bullets': ('bullet lines', SMALL, ' •a\n\n\t*b\n', ' •a\n\nb\n'),
  'ellipsis lines': (
    'ellipsis lines',
    Quality(least_words=1, least_mean=0, stops=0, symbols=1),
    repeat('a...', 4, 'b', 7, '\n\n'),
    repeat('a... ', 3, 'b', 7, '\n\n'),
  ),
  'numbers': ('alphabetic words', SMALL, repeat('12', 3, 'a1', 11), repeat('12', 3, 'é1', 12)),
  'stop words': ('stop words', Quality(1), 'the the house, the', 'Have house (THE) tree'),
}  # fmt: skip


@pytest.mark.parametrize(('rule', 'step', 'bad', 'good'), RULES.values(), ids=RULES)
def test_quality_rules(rule, step, bad, good):
  assert step.broken(bad) == rule
  assert step.broken(good) == ''
  assert step([good, bad, good]) == [good, good]


def test_quality_has_the_published_thresholds():
  """Rae et al. 2021, A.1.1."""
  assert len(PROSE.split()) >= 50
  assert Quality().broken(PROSE) == ''
  assert Quality().broken(' '.join(PROSE.split()[:50])) == ''
  assert Quality().broken(' '.join(PROSE.split()[:49])) == 'words'
  long = 'with that ' * 50_000
  assert Quality().broken(long) == ''
  assert Quality().broken(long + 'a') == 'words'
  for word in ('the', 'be', 'to', 'of', 'and', 'that', 'have', 'with'):
    other = 'the' if word != 'the' else 'to'
    assert Quality(1).broken(f'{word} {other} house garden') == ''
    assert Quality(1).broken(f'{word} house garden') == 'stop words'


def test_stop_words_of_another_language():
  step = Quality(1, stop_words=('Der', 'und', 'nicht'))
  assert step(['der Hund und die Katze', 'the dog and the cat']) == ['der Hund und die Katze']


def test_a_document_without_words():
  assert Quality()(['', ' \n']) == []
  assert Quality(0, least_mean=0, alphabetic=0, stops=0)(['']) == ['']
  assert Repetition()(['', ' \n']) == ['', ' \n']


# Repetition


REPETITION = {
  'lines': ('lines', repeat('a', 5, 'bcdefghijklmnopqrstuvwxyz' * 4, 1, '\n'),
            'a\na\na\na\nb\nc\nd\ne\nf\n' + 'bcdefghijklmnopqrstuvwxyz' * 4),
  'characters': ('characters', 'abcde\n' * 2 + 'f\ng\nh\n' + 'i' * 11,
                 'abcde\n' * 2 + 'f\ng\nh\n' + 'i' * 12),
  'bigram': ('bigram', 'aa bb ccccc aa bb ddddd eeeee f', 'aa bb aa ccccc bb ddddd eeeee f'),
  'overlapping bigram': ('bigram', 'ha ha ha ' + 'b' * 20, 'ha ha ha ' + 'b' * 24),
  'longest bigram': ('bigram', 'a b cc a b dddd eeee dddd eeee ' + 'f' * 40,
                     'a b cc a b dddd eeee dddd eeee ' + 'f' * 80),
}  # fmt: skip


@pytest.mark.parametrize(('rule', 'bad', 'good'), REPETITION.values(), ids=REPETITION)
def test_repetition_rules(rule, bad, good):
  assert Repetition().broken(bad) == rule
  assert Repetition().broken(good) == ''
  assert Repetition()([bad, good, bad]) == [good]


def test_repetition_ignores_blank_lines_and_indentation():
  assert Repetition()([PROSE.replace('\n', '\n\n\n\n')]) != []
  line = 'a line of some length stands here'
  assert Repetition().broken(f'{line}\n  {line}\n') == 'lines'


def test_a_pair_of_words_that_is_there_once_is_no_repetition():
  assert Repetition()(['two words', 'one']) == ['two words', 'one']
  assert Repetition(bigram=0.99).broken('two words two words') == 'bigram'


# All steps


documents = st.lists(
  st.one_of(
    st.text(alphabet='ab \n\r\u0301é#.-', max_size=20),
    st.lists(st.sampled_from(['the', 'be', 'cat', 'Cat', '12', '...', '- x']), max_size=8).map(
      ' '.join
    ),
  ),
  max_size=12,
)


@pytest.mark.parametrize('step', STEPS.values(), ids=STEPS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(given=documents)
def test_a_second_time_changes_nothing_and_order_is_kept(step, given):
  before = list(given)
  once = step(given)
  assert given == before
  assert step(once) == once
  if isinstance(step, Unicode):
    assert once == [step([d])[0] for d in given]
  else:
    rest = iter(given)
    assert all(any(d == other for other in rest) for d in once)  # a subsequence


@pytest.mark.parametrize('step', STEPS.values(), ids=STEPS)
def test_every_step_of_the_list_above_has_something_to_do(step):
  given = ['the cat be the cat be', 'The  cat be the cat be', 'cafe\u0301', 'the ﬁg', '']
  assert step(given) != given
  assert step(given)


def test_clean_counts_each_step():
  steps = [Length(2), Unicode(), Deduplicate(), Length(most=4)]
  given = ['a', 'b\r\n', 'b\n', 'cafe\u0301', 'café', 'three', 'four', 'B']
  left, counts = clean(given, steps)
  assert left == ['b\n', 'café', 'four']
  assert counts == [
    Count('Length', 2, 0, 6),
    Count('Unicode', 0, 2, 6),
    Count('Deduplicate', 2, 0, 4),
    Count('Length', 1, 0, 3),
  ]
  assert report(counts).splitlines() == [
    'Length: 2 of 8 documents removed, 0 changed',
    'Unicode: 0 of 6 documents removed, 2 changed',
    'Deduplicate: 2 of 6 documents removed, 0 changed',
    'Length: 1 of 4 documents removed, 0 changed',
  ]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(given=documents.filter(len), chosen=st.lists(st.sampled_from(sorted(STEPS)), max_size=4))
def test_counts_add_up(given, chosen):
  steps = [STEPS[name] for name in chosen]
  expected, sizes, changed = given, [len(given)], []
  for step in steps:
    fresh = step(expected)
    if isinstance(step, Unicode):
      changed.append(sum(a != b for a, b in zip(expected, fresh, strict=True)))
    else:
      changed.append(0)
    expected = fresh
    sizes.append(len(expected))
  if not all(sizes):
    with pytest.raises(InputError, match='no document is left'):
      clean(given, steps)
    return
  left, counts = clean(given, steps)
  assert left == expected
  assert [c.step for c in counts] == [type(s).__name__ for s in steps]
  assert [c.left for c in counts] == sizes[1:]
  assert [c.removed for c in counts] == [a - b for a, b in itertools.pairwise(sizes)]
  assert [c.changed for c in counts] == changed


def test_a_function_is_a_step_and_no_step_is_no_change():
  def shout(given):
    return [d.upper() for d in given]

  assert clean(('a', 'B'), [shout]) == (['A', 'B'], [Count('shout', 0, 1, 2)])
  assert clean(['a', 'a'], []) == (['a', 'a'], [])


def test_nothing_left_is_told():
  steps = [Length(2), Unicode(), Length(100)]
  message = r'no document is left after Length\(least=100, .*\), which removed 2 of 2'
  with pytest.raises(InputError, match=message):
    clean(['a', 'bb', 'cc'], steps)
  with pytest.raises(InputError, match='expected at least one document to clean'):
    clean([], steps)


def test_a_recipe_names_a_step():
  step = recipes.build({'call': 'bmx.data.text.deduplicate:Deduplicate', 'near': 0.8}, 'data.clean')
  assert step == Deduplicate(near=0.8)
  part = {'call': 'bmx.data.text.quality:Quality', 'stop_words': ('le', 'la')}
  assert recipes.build(part, 'data.clean').stop_words == ('le', 'la')
  with pytest.raises(InputError, match="no argument 'nere'; did you mean 'near'"):
    recipes.build({'call': 'bmx.data.text.deduplicate:Deduplicate', 'nere': 0.8}, 'data.clean')


NAN = float('nan')
BAD = [
  (Unicode, {'form': 'NFX'}, "Unicode: unknown form 'NFX'; did you mean 'NF"),
  (Length, {'least': -1}, 'Length: least=-1, expected at least 0'),
  (Length, {'least': 5, 'most': 4}, 'Length: least=5 is above most=4'),
  (Deduplicate, {'near': -0.1}, 'near=-0.1, expected 0 to 1'),
  (Deduplicate, {'near': 1.1}, 'near=1.1'),
  (Deduplicate, {'near': NAN}, 'near=nan'),
  (Deduplicate, {'ngram': 0}, 'ngram=0, expected at least 1'),
  (Deduplicate, {'hashes': 0}, 'hashes=0'),
  (Quality, {'least_words': 10, 'most_words': 9}, 'least_words=10 is above most_words=9'),
  (Quality, {'most_words': -1}, 'most_words=-1'),
  (Quality, {'least_mean': 11}, 'least_mean=11 is above most_mean=10'),
  (Quality, {'least_mean': -1}, 'least_mean=-1'),
  (Quality, {'symbols': -0.1}, 'symbols=-0.1, expected at least 0'),
  (Quality, {'symbols': NAN}, 'symbols=nan'),
  *((Quality, {k: v}, f'{k}={v}, expected 0 to 1')
    for k in ('bullets', 'ellipses', 'alphabetic') for v in (-0.1, 1.5)),
  (Quality, {'stops': 9}, 'stops=9, expected 0 to 8'),
  (Quality, {'stops': 1, 'stop_words': ()}, 'stops=1, expected 0 to 0'),
  *((Repetition, {k: v}, f'Repetition: {k}={v}, expected 0 to 1')
    for k in ('lines', 'characters', 'bigram') for v in (-0.1, 1.5)),
]  # fmt: skip


@pytest.mark.parametrize(('step', 'arguments', 'message'), BAD)
def test_bad_thresholds(step, arguments, message):
  with pytest.raises(InputError, match=message):
    step(**arguments)


def test_every_argument_of_the_standard_steps_counts():
  documents = ['a' * 9, 'b' * 99]
  kept, _ = clean(documents, standard(least=10))
  assert kept == ['b' * 99]
  with pytest.raises(InputError, match='near=0.8: expected duplicates=True'):
    standard(duplicates=False, near=0.8)
