"""Metrics of a whole split: by scikit-learn and scipy, by other means, and counted by hand."""

import itertools
import re
import types
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from bmx.core.errors import InputError
from bmx.tasks.metrics import (
  answer_f1,
  entity_f1,
  exact_match,
  f1,
  macro_f1,
  matthews,
  pearson,
  spearman,
)

ZERO: Any = 0.0  # scikit-learn's own hints know only its default
NAMES = ('O', 'B-person', 'I-person', 'B-place', 'I-place', 'B-art-work', 'I-art-work')


def labelled(n, classes, seed, right=0.3):
  """Returns prediction and label: some right, the others random; few examples lack classes."""
  random = np.random.default_rng([n, seed])
  label = random.choice(classes, n)
  prediction = np.where(random.random(n) < right, label, random.choice(classes, n))
  return {'prediction': prediction.astype(np.int32), 'label': label.astype(np.int32)}


def both(prediction, label):
  return {'prediction': np.array(prediction), 'label': np.array(label)}


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('n', [1, 2, 7, 300])
def test_f1(n, seed):
  rows = labelled(n, [0, 1], seed)
  expected = sk.f1_score(rows['label'], rows['prediction'], zero_division=ZERO)
  assert f1(rows) == pytest.approx(expected, abs=1e-12)


def test_f1_by_hand():
  assert f1(both([1, 1, 1, 0, 0], [1, 0, 1, 1, 0])) == pytest.approx(4 / 6)
  assert f1(both([1, 0, 1], [1, 0, 1])) == 1
  assert f1(both([0, 0, 0], [0, 1, 1])) == 0
  assert f1(both([1, 1], [0, 0])) == 0
  assert f1(both([0, 0], [0, 0])) == 0
  assert f1(both([True, True, False], [True, False, False])) == pytest.approx(2 / 3)


@pytest.mark.parametrize('rows', [both([0, 1], [2, 1]), both([0, 2], [0, 1])])
def test_f1_of_several_classes(rows):
  with pytest.raises(InputError, match='label and prediction have 0, (1, )?2; .*macro'):
    f1(rows)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('n', [1, 2, 5, 300])
@pytest.mark.parametrize('classes', [[0, 1], [0, 3, 4, 9], list(range(20))], ids=len)
def test_several_classes(classes, n, seed):
  rows = labelled(n, classes, seed)
  sides = rows['label'], rows['prediction']
  expected = sk.f1_score(*sides, average='macro', zero_division=ZERO)
  assert macro_f1(rows) == pytest.approx(expected, abs=1e-12)
  assert matthews(rows) == pytest.approx(correlation(rows), abs=1e-12)


def correlation(rows):
  """By scikit-learn, which warns where there is one class alone."""
  if len(np.union1d(rows['label'], rows['prediction'])) == 1:
    return 0.0
  return sk.matthews_corrcoef(rows['label'], rows['prediction'])


@pytest.mark.parametrize('told', [0, 1, 2])
def test_a_constant_prediction(told):
  """Class 2 is absent from the labels."""
  rows = both(np.full(5, told), [0, 1, 1, 0, 1])
  sides = rows['label'], rows['prediction']
  expected = sk.f1_score(*sides, average='macro', zero_division=ZERO)
  assert macro_f1(rows) == pytest.approx(expected)
  assert matthews(rows) == 0


def test_classes_on_one_side_count():
  """Of classes 0, 1, 2 and 3: F1 of 1, 2/3, 0 and 0."""
  assert macro_f1(both([0, 1, 1, 3], [0, 1, 2, 1])) == pytest.approx((1 + 2 / 4) / 4)


def test_matthews_by_hand():
  """With 2 true positives, 1 true negative, 1 false positive and 1 false negative."""
  rows = both([1, 1, 0, 1, 0], [1, 1, 0, 0, 1])
  assert matthews(rows) == pytest.approx((2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5)
  label = np.array([0, 1, 1, 0, 1])
  assert matthews(both(label, label)) == 1
  assert matthews(both(1 - label, label)) == -1
  assert matthews(both(label, np.ones(5, int))) == 0
  assert matthews(both([1, 1], [1, 1])) == 0


def test_many_examples_do_not_overflow():
  label = np.arange(300_000, dtype=np.int32) % 2
  assert matthews(both(label, label)) == 1
  assert macro_f1(both(label, label)) == f1(both(label, label)) == 1


@pytest.mark.parametrize('metric', [f1, macro_f1, matthews])
def test_what_is_no_classification(metric):
  with pytest.raises(InputError, match=r"reads prediction, label, .* have \['prediction', 'y'\]"):
    metric({'prediction': np.ones(2), 'y': np.ones(2)})
  with pytest.raises(InputError, match='needs examples'):
    metric(both([], []))
  with pytest.raises(InputError, match=r'one class an example.*\(2, 3\) and \(2,\)'):
    metric(both(np.ones((2, 3), int), [0, 1]))
  with pytest.raises(InputError, match=r'one class an example.*\(2, 3\) and \(2, 3\)'):
    metric(both(np.ones((2, 3), int), np.ones((2, 3), int)))


def numbers(n, levels, seed):
  """Few levels make many ties."""
  random = np.random.default_rng([n, levels, seed])
  y = np.append([0, 1], random.integers(0, levels, n - 2)) / levels
  noise = np.append([1, 0], random.integers(0, levels, n - 2)) / levels
  return {'prediction': (y * (seed - 1) + noise * 3).astype(np.float32), 'y': y}


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('levels', [2, 5, 100_000])
@pytest.mark.parametrize('n', [3, 10, 501])
def test_correlation(n, levels, seed):
  stats = pytest.importorskip('scipy.stats')
  rows = numbers(n, levels, seed)
  sides = rows['prediction'].astype(np.float64), rows['y']
  assert pearson(rows) == pytest.approx(stats.pearsonr(*sides).statistic, abs=1e-12)
  assert spearman(rows) == pytest.approx(stats.spearmanr(*sides).statistic, abs=1e-12)


def test_correlation_by_hand():
  rows = {'prediction': np.array([1, 2, 3, 4]), 'y': np.array([1, 8, 27, 64])}
  assert spearman(rows) == 1
  assert pearson(rows) == pytest.approx(104 / (5 * 2390) ** 0.5)
  assert pearson({'prediction': np.array([1.0, 2.0]), 'y': np.array([5.0, -7.0])}) == -1
  # Ranks 1, 2.5, 2.5, 4 with 1, 2, 3, 4.
  tied = {'prediction': np.array([0, 1, 1, 2]), 'y': np.array([5, 6, 7, 8])}
  assert spearman(tied) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)


@pytest.mark.parametrize('seed', range(20))
def test_rounding_does_not_lead_above_one(seed):
  y = np.random.default_rng(seed).normal(size=50)
  value = pearson({'prediction': 0.3 * y + 0.1, 'y': y})
  assert value <= 1
  assert value == pytest.approx(1)


@pytest.mark.parametrize('metric', [pearson, spearman])
def test_columns_and_flat_arrays_mean_the_same(metric):
  rows = numbers(20, 5, 0)
  expected = metric(rows)
  for told, true in itertools.product([(20,), (20, 1)], repeat=2):
    given = {'prediction': rows['prediction'].reshape(told), 'y': rows['y'].reshape(true)}
    assert metric(given) == expected


@pytest.mark.parametrize('metric', [pearson, spearman])
def test_scale_and_offset_do_not_matter(metric):
  rows = numbers(30, 1000, 2)
  expected = metric(rows)
  for scale in (1e-200, 1e-30, 1e30, 1e200):
    scaled = rows | {'y': rows['y'] * scale}
    assert metric(scaled) == pytest.approx(expected, rel=1e-9)
  assert metric(rows | {'y': rows['y'] - 1e5}) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('metric', [pearson, spearman])
def test_correlation_that_is_undefined(metric):
  y = np.array([0.0, 1.0, 3.0])
  for rows, said in [
    ({'prediction': y, 'y': np.zeros((3, 1))}, 'undefined: y is constant, 0'),
    ({'prediction': y[:1], 'y': y[:1]}, 'undefined for fewer than 2'),
    ({'prediction': y * np.nan, 'y': y}, 'undefined: prediction has NaN'),
    ({'prediction': y, 'y': np.array([0, 1, np.inf])}, 'undefined: y has NaN or infinity'),
    ({'prediction': y[:0], 'y': y[:0]}, 'needs examples'),
    ({'prediction': y, 'label': y}, r"reads prediction, y, .* have \['label', 'prediction'\]"),
    ({'prediction': np.ones((3, 2)), 'y': np.ones((3, 2))}, r'one number .*\(3, 2\) and \(3, 2\)'),
    ({'prediction': y, 'y': y[:2]}, r'one number .*\(3,\) and \(2,\)'),
  ]:
    with pytest.raises(InputError, match=said):
      metric(rows)


class Questions:
  """Examples whose predictions are answers."""

  def __init__(self, answers):
    self.answers = answers

  def present(self, predictions):
    return [{'answer': a, 'known': known} for a, known in self.answers(predictions)]


def data_with(answers=None, **facts) -> Any:
  examples = Questions(answers) if answers else types.SimpleNamespace()
  return types.SimpleNamespace(examples=examples, **facts)


def named(names=NAMES):
  return data_with(metadata={'class_names': names, 'num_classes': len(names)})


def tagged(prediction, targets, names=NAMES):
  """Sentences of tags, apart by ' / '. -> the rows, padded with tags of weight 0."""
  told, true = ([s.split() for s in side.split(' / ')] for side in (prediction, targets))
  shape = len(told), max(map(len, told)) + 1
  rows = {k: np.full(shape, 1) for k in ('prediction', 'targets')} | {'weights': np.zeros(shape)}
  for i, (p, t) in enumerate(zip(told, true, strict=True)):
    rows['prediction'][i, : len(p)] = [names.index(tag) for tag in p]
    rows['targets'][i, : len(t)] = [names.index(tag) for tag in t]
    rows['weights'][i, : len(t)] = 1
  return rows


@pytest.mark.parametrize(('prediction', 'targets', 'expected'), [
  # All right, and a true entity missed.
  ('B-person I-person O B-place', 'B-person I-person O B-place', 1),
  ('B-person I-person O O', 'B-person I-person O B-place', 2 / 3),
  # Too short, too long, of another type: wrong, and still counted on both sides.
  ('B-person O O B-place', 'B-person I-person O B-place', 2 / 4),
  ('B-person I-person I-person B-place', 'B-person I-person O B-place', 2 / 4),
  ('B-place I-place O B-place', 'B-person I-person O B-place', 2 / 4),
  # The example of seqeval's README.
  ('O O B-place I-place I-place I-place O / B-person I-person O',
   'O O O B-place I-place I-place O / B-person I-person O', 0.5),
  # I- after O, at the start and after another type begins an entity.
  ('I-person I-person O I-place', 'B-person I-person O B-place', 1),
  ('B-person I-place I-place', 'B-person B-place I-place', 1),
  ('I-person I-place I-person', 'B-person B-place B-person', 1),
  # B- begins one too, after its own type as well.
  ('B-person B-person', 'B-person I-person', 0),
  ('B-person B-person', 'B-person B-person', 1),
  ('B-person I-person', 'B-person B-person', 0),
  # An entity ends with its sentence.
  ('O B-person / I-person O', 'O B-person / B-person O', 1),
  ('O B-person / I-person O', 'O B-person / O O', 2 / 3),
  # The same place in another sentence is not a hit.
  ('B-person O / O O', 'O O / B-person O', 0),
  # A type with a hyphen.
  ('B-art-work I-art-work', 'B-art-work I-art-work', 1),
  # Nothing to find, found or not.
  ('O O', 'O O', 0),
  ('B-person O', 'O O', 0),
  ('O O', 'B-person O', 0),
])  # fmt: skip
def test_entities_by_hand(prediction, targets, expected):
  assert entity_f1(tagged(prediction, targets), named()) == pytest.approx(expected)


def test_sub_words_are_dropped_before_entities_are_read():
  """'Ma ##ry Ann went to Pa ##ris': what stands at ##ry and ##ris is not looked at."""
  weights = np.array([[0, 1, 0, 0.5, 1, 1, 2, 0, 0]])
  targets = np.array([[-100, 1, -100, 2, 0, 0, 3, -100, -100]])
  told = np.array([[99, 1, 0, 2, 0, 0, 3, 4, 1]])
  rows = {'prediction': told, 'targets': targets, 'weights': weights}
  assert entity_f1(rows, named()) == 1
  told[0, 3] = 1
  assert entity_f1(rows, named()) == pytest.approx(2 / 5)


def by_letters(rows):
  """One letter a word, upper case for B-, and a pattern that finds entities in a sentence."""
  letters = np.array(['o', 'P', 'p', 'L', 'l', 'W', 'w'])
  found = {}
  for side in ('prediction', 'targets'):
    sentences = zip(rows[side], rows['weights'], strict=True)
    texts = [''.join(letters[ids[weights > 0]]) for ids, weights in sentences]
    found[side] = {
      (i, m.start(), m.end(), m.group()[0].lower())
      for i, text in enumerate(texts)
      for m in re.finditer('[Pp]p*|[Ll]l*|[Ww]w*', text)
    }
  told, true = found['prediction'], found['targets']
  precision, recall = len(told & true) / len(told), len(told & true) / len(true)
  return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize('seed', range(8))
def test_entities_of_random_tags(seed):
  random = np.random.default_rng(seed)
  n, t = 30, 12
  targets = random.integers(0, len(NAMES), (n, t))
  rows = {
    'prediction': np.where(random.random((n, t)) < 0.7, targets, random.integers(0, 7, (n, t))),
    'targets': targets,
    'weights': random.choice([0.0, 1.0], (n, t), p=[0.3, 0.7]),
  }
  rows['weights'][3] = 0
  expected = by_letters(rows)
  assert 0.1 < expected < 0.9
  assert entity_f1(rows, named()) == pytest.approx(expected, abs=1e-12)


def test_tags_without_a_type_and_in_any_order():
  names = ('I', 'O', 'B')
  rows = tagged('B I O B', 'B I O O', names)
  assert entity_f1(rows, named(names)) == pytest.approx(2 / 3)
  assert entity_f1(tagged('O I O', 'O B O', names), named(names)) == 1


def test_entities_that_cannot_be_read():
  rows = tagged('B-person O', 'B-person O')
  empty = {k: v[:0] for k, v in rows.items()}
  few = {k: v for k, v in rows.items() if k != 'weights'}
  for given, data, said in [
    (few, named(), r"reads prediction, targets, weights, .* \['prediction', 'targets'\]"),
    (empty, named(), 'needs examples'),
    (rows | {'weights': rows['weights'] * 0}, named(), 'weight above 0; the split has none'),
    (rows | {'prediction': rows['prediction'][:, 0]}, named(), r'one shape \[N, T\].*\(1,\)'),
    ({k: v[0] for k, v in rows.items()}, named(), r'one shape \[N, T\].*\(3,\), \(3,\)'),
    (
      rows,
      data_with(metadata={'vocab_size': 9}),
      r"metadata\['class_names'\], not only \['vocab_size'\]",
    ),
    (rows, named(('O', 'S-person', 'cat')), 'the data has S-person, cat'),
    (rows | {'prediction': rows['prediction'] + 6}, named(), 'names 7 tags, .* tag 7'),
    (rows | {'targets': rows['targets'] - 1}, named(), 'names 7 tags, .* tag -1'),
  ]:
    with pytest.raises(InputError, match=said):
      entity_f1(given, data)


def test_a_long_list_of_odd_tags_is_cut():
  names = tuple(f'S-{i}' for i in range(20))
  with pytest.raises(InputError, match=r'S-0, .*S-7, \.\.\.$'):
    entity_f1(tagged('S-0', 'S-0', names), named(names))


def answered(*pairs):
  return data_with(metadata={}, answers=lambda rows: list(pairs))


@pytest.mark.parametrize(('told', 'true', 'exact', 'overlap'), [
  ('The Panthers!', ['panthers'], 1, 1),
  ('  Carolina\n Panthers ', ['the Carolina  Panthers.'], 1, 1),
  # 2 words of 3 and of 2; 1 of 2 and of 3; none.
  ('the Carolina Panthers team', ['Carolina Panthers'], 0, 2 * 2 / 5),
  ('Denver Broncos', ['Broncos of Colorado'], 0, 2 * 1 / 5),
  ('Denver', ['Carolina'], 0, 0),
  # The best of the true answers, wherever it stands, not their union.
  ('Panthers', ['Broncos', 'Carolina Panthers', 'panthers'], 1, 1),
  ('Panthers', ['a Panthers', 'Broncos'], 1, 1),
  ('red green', ['red', 'green'], 0, 2 / 3),
  # Words count as often as they occur, whatever their order.
  ('new new york', ['new new jersey'], 0, 2 * 2 / 6),
  ('new new york', ['new york york'], 0, 2 * 2 / 6),
  ('new new', ['new'], 0, 2 * 1 / 3),
  ('york new', ['new york'], 0, 1),
  # Punctuation goes before articles, and without a space.
  ('a.m.', ['am'], 1, 1),
  ("it's well-known", ['its wellknown'], 1, 1),
  ('well known', ['well-known'], 0, 0),
  ('a_b', ['ab'], 1, 1),
  # Articles are whole words.
  ('theatre an anthem', ['theatre anthem'], 1, 1),
  ('atre', ['the atre'], 1, 1),
  ('tre', ['theatre'], 0, 0),
  # Nothing, on both sides or on one.
  ('', [''], 1, 1),
  ('The', ['...'], 1, 1),
  ('', ['x'], 0, 0),
  ('x', [''], 0, 0),
])  # fmt: skip
def test_answers_by_hand(told, true, exact, overlap):
  data = answered((told, true))
  assert exact_match({}, data) == exact
  assert answer_f1({}, data) == pytest.approx(overlap)


def test_answers_are_averaged_over_questions():
  data = answered(('a cat', ['cat']), ('two dogs', ['dogs', 'two']), ('x', ['y']), ('z', ['Z']))
  assert exact_match({}, data) == 2 / 4
  assert answer_f1({}, data) == pytest.approx((1 + 2 / 3 + 0 + 1) / 4)


@pytest.mark.parametrize('metric', [exact_match, answer_f1])
def test_answers_are_read_from_the_rows(metric):
  texts = ['cat', 'dog']
  data = data_with(answers=lambda rows: [(texts[i], ['dog']) for i in rows['start']])
  assert metric({'start': np.array([1, 1, 0, 1])}, data) == 3 / 4


@pytest.mark.parametrize('metric', [exact_match, answer_f1])
def test_answers_that_are_missing(metric):
  with pytest.raises(InputError, match='SimpleNamespace has no answers in words'):
    metric({}, named())
  with pytest.raises(InputError, match='needs examples'):
    metric({}, answered())
  with pytest.raises(InputError, match='a true answer to every question'):
    metric({}, answered(('cat', ['cat']), ('dog', [])))


def test_values_are_plain_floats():
  rows = both([0, 1, 1], [0, 1, 0]) | {'y': np.array([0.0, 1.0, 3.0])}
  data = answered(('cat', ['cat']))
  values = [metric(rows) for metric in (f1, macro_f1, matthews, pearson, spearman)]
  values += [metric({}, data) for metric in (exact_match, answer_f1)]
  values += [f1(both([0], [0])), matthews(both([0], [0]))]
  values += [entity_f1(tagged(t, t), named()) for t in ('B-person', 'O')]
  assert {type(v) for v in values} == {float}


def test_a_model_that_says_one_number_correlates_with_nothing():
  # The mean of these, computed, is another number.
  rows = {'prediction': np.full(3, 0.1), 'y': np.arange(3.0)}
  assert pearson(rows) == spearman(rows) == 0
