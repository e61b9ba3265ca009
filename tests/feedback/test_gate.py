"""The gate: intervals, margins, slices."""

import numpy as np
import pytest
from scipy import stats

from bmx.core.errors import InputError
from bmx.feedback import gate
from bmx.feedback.gate import Rules, Scored, accepted, judge
from bmx.tasks import scores


def pair(random, rows, champion, challenger, agree=0.9):
  """Scores 0 or 1 of two models of given accuracies, equal on `agree` of the rows."""
  a = random.random(rows) < champion
  b = np.where(random.random(rows) < agree, a, random.random(rows) < champion)
  flip = np.flatnonzero(b == (challenger < champion))
  b[random.choice(flip, round(rows * abs(challenger - champion)), replace=False)] ^= True
  return a.astype(float), b.astype(float)


def test_interval_is_that_of_scipy():
  random = np.random.default_rng(0)
  for values in (random.normal(size=150), random.integers(-1, 2, 400).astype(float)):
    low, high = scores.interval(values, 0.05)
    expected = stats.bootstrap((values,), np.mean, method='percentile', n_resamples=4000,
                               rng=1).confidence_interval  # fmt: skip
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.1 * values.std() / 10)


def test_intervals_cover_the_truth():
  random = np.random.default_rng(1)
  inside = 0
  for seed in range(300):
    low, high = scores.interval(random.exponential(size=120) - 1, 0.05, seed)
    inside += low <= 0 <= high
  assert stats.binom.ppf(0.001, 300, 0.93) <= inside <= 299


def test_a_better_challenger_is_accepted_and_a_worse_one_refused():
  random = np.random.default_rng(2)
  old = Scored(*pair(random, 4000, 0.85, 0.848))
  assert accepted(judge(Scored(*pair(random, 2000, 0.75, 0.80)), old, Rules()))
  same = judge(Scored(*pair(random, 2000, 0.75, 0.75)), old, Rules())
  assert [c.name for c in same if c.result == gate.REFUSED] == ['new']
  worse_on_old = Scored(*pair(random, 4000, 0.85, 0.82))
  lost = judge(Scored(*pair(random, 2000, 0.75, 0.80)), worse_on_old, Rules())
  assert [c.name for c in lost if c.result == gate.REFUSED] == ['old']


def test_a_slice_that_becomes_worse_refuses_and_a_small_one_does_not():
  random = np.random.default_rng(3)
  new = Scored(*pair(random, 2000, 0.75, 0.80))
  champion, challenger = pair(random, 4000, 0.85, 0.85)
  names = np.repeat(['many', 'large', 'tiny'], [3600, 350, 50])
  challenger[names == 'large'] = np.where(random.random(350) < 0.2, 0, champion[names == 'large'])
  challenger[names == 'tiny'] = 0
  checks = judge(new, Scored(champion, challenger, {'kind': names}), Rules(margin=0.05))
  result = {c.name: c.result for c in checks}
  assert result['kind=many (old)'] == gate.ACCEPTED
  assert result['kind=large (old)'] == gate.REFUSED
  assert result['kind=tiny (old)'] == gate.SMALL
  assert not accepted(checks)


def test_wrong_acceptance_is_rare():
  """A challenger that is not better on new data is accepted in at most half the level."""
  random = np.random.default_rng(4)
  old = Scored(np.ones(200), np.ones(200))
  wrong = sum(
    accepted(judge(Scored(*(random.random((2, 300)) < 0.8).astype(float)), old, Rules(), seed))
    for seed in range(400)
  )
  assert wrong <= stats.binom.ppf(0.999, 400, 0.03)


def test_scores():
  rows = {'prediction': np.array([1, 0, 1]), 'label': np.array([1, 1, 1])}
  assert scores.scores(rows).tolist() == [1, 0, 1]
  numbers = {'prediction': np.array([[1.0], [4.0]]), 'y': np.array([[3.0], [3.0]])}
  assert scores.scores(numbers, scale=2.0).tolist() == [-1, -0.5]
  with pytest.raises(InputError, match='one class or numbers for each example'):
    scores.scores({'prediction': np.zeros((3, 5), int), 'label': np.zeros((3, 5), int)})


def test_slices_of_numbers_are_quarters():
  old = np.arange(100.0)
  new, same = scores.slices_of(old, np.array([-5.0, 24.0, 60.0, 1e9]), old, kind='number')
  assert new.tolist() == ['<=24.75', '<=24.75', '49.5..74.25', '>74.25']
  assert np.unique(same, return_counts=True)[1].tolist() == [25, 25, 25, 25]
  assert scores.slices_of(old, np.array(['b', 'a']), kind='category')[0].tolist() == ['b', 'a']


@pytest.mark.parametrize('words, message', [
  ({'margin': -0.1}, 'feedback.margin=-0.1'),
  ({'level': 1.0}, 'feedback.level=1.0'),
  ({'least': 1}, 'feedback.least=1'),
])  # fmt: skip
def test_rules_out_of_range_are_named(words, message):
  with pytest.raises(InputError, match=message):
    Rules(**words)


def test_few_new_rows_are_refused_by_name():
  few = Scored(np.zeros(20), np.ones(20))
  with pytest.raises(InputError, match='20 labeled examples .* at least 100'):
    judge(few, few, Rules())
