"""Generalized tables: k-anonymity and l-diversity beside counts of numpy."""

import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.privacy.tables import Groups, generalize, measure, suppress

ROWS = [{'age': str(a), 'zip': z, 'ill': i} for a, z, i in (
  (29, '10115', 'flu'), (22, '10117', 'cold'), (27, '10119', 'flu'),
  (43, '20095', 'cold'), (52, '20097', 'flu'), (47, '20099', 'gout'))]  # fmt: skip


def table(seed, n=200):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 4, (n, 3))


def rows_of(values):
  return [{'a': int(a), 'b': int(b), 's': int(s)} for a, b, s in values]


def oracle(values, k, l):
  """Whether each row may stay, by comparing it with every other."""
  same = (values[:, None, :2] == values[None, :, :2]).all(-1)
  diverse = np.array([len(np.unique(values[row, 2])) for row in same])
  return (same.sum(1) >= k) & (diverse >= l), same.sum(1).min(), diverse.min()


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('k, l', [(1, 0), (12, 0), (10, 4), (1, 4)])
def test_groups_beside_numpy(seed, k, l):
  values = table(seed)
  rows = rows_of(values)
  stay, smallest, diverse = oracle(values, k, l)
  found = suppress(rows, ('a', 'b'), k, ('s',), l)
  assert found == [r for r, s in zip(rows, stay, strict=True) if s]
  before = measure(rows, ('a', 'b'), ('s',))
  assert before == Groups(200, len(np.unique(values[:, :2], axis=0)), smallest, diverse)
  after = measure(found, ('a', 'b'), ('s',))
  assert after.smallest >= k and after.least_diverse >= l and after.rows == stay.sum()


def test_generalization_makes_groups():
  """The example of Sweeney's paper in small: ages in tens of twenty, three digits of the code."""
  made = generalize(ROWS, ranges={'age': 20}, prefixes={'zip': 3})
  assert made[0] == {'age': '20-39', 'zip': '101**', 'ill': 'flu'}
  assert measure(ROWS, ('age', 'zip'), ('ill',)) == Groups(6, 6, 1, 1)
  assert measure(made, ('age', 'zip'), ('ill',)) == Groups(6, 2, 3, 2)
  assert ROWS[0]['age'] == '29'  # the given rows stay


def test_values():
  row = {'n': '-5', 'f': '2.75', 'd': '1980-03-17 10:00:00', 'p': 'AB1', 'e': '', 'none': None}
  dates = {'d': 'month', 'none': 'year'}
  made = generalize([row], {'n': 10, 'f': 2.5, 'e': 10}, dates, prefixes={'p': 5})
  assert made == [{'n': '-10 to -1', 'f': '[2.5, 5)', 'd': '1980-03', 'p': 'AB1', 'e': '',
                   'none': None}]  # fmt: skip
  (year,) = generalize([row], dates={'d': 'year'}, prefixes={'p': 0})
  assert year['d'] == '1980' and year['p'] == '***'
  rng = np.random.default_rng(0)
  for value in rng.integers(0, 1000, 50):
    (found,) = generalize([{'n': int(value)}], ranges={'n': 7})
    low, high = map(int, found['n'].split('-'))
    assert low <= value <= high and high - low == 6 and low % 7 == 0


@pytest.mark.parametrize('run, message', [
  (lambda: generalize(ROWS, ranges={'zip': 0}), 'expected a width above 0'),
  (lambda: generalize(ROWS, ranges={'ill': 5}), "row 1, column 'ill': expected a number"),
  (lambda: generalize(ROWS, dates={'ill': 'year'}), 'expected a date YYYY-MM-DD'),
  (lambda: generalize(ROWS, dates={'ill': 'day'}), 'expected month or year'),
  (lambda: generalize(ROWS, prefixes={'zip': -1}), 'expected at least 0 characters'),
  (lambda: suppress(ROWS, ('age',), 0), 'expected k >= 1'),
  (lambda: suppress(ROWS, ('age',), 2, (), 2), 'expected anonymize.sensitive'),
  (lambda: suppress(ROWS, ('age',), 2), 'no row is left: every group of age is too small'),
])  # fmt: skip
def test_bad_input(run, message):
  with pytest.raises(InputError, match=message):
    run()
