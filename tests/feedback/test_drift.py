"""Drift: p-values, calibration over calm windows, power against a made shift."""

import numpy as np
import pytest
from scipy import stats

from bmx.core.errors import InputError
from bmx.feedback import drift
from bmx.feedback.drift import Column, compare
from bmx.feedback.pictures import page

LEVEL, WINDOWS, ROWS = 0.05, 200, 200


def table(random: np.random.Generator, rows: int = ROWS) -> list[Column]:
  """Numbers (one mostly zero, one with gaps, one of few values), categories, a dependent pair."""
  normal = random.normal(size=rows)
  gaps = np.where(random.random(rows) < 0.2, np.nan, random.exponential(size=rows))
  zeros = np.where(random.random(rows) < 0.9, 0.0, random.normal(size=rows))
  names = np.array(['a', 'b', 'c', 'd', 'rare'])
  skewed = names[random.choice(5, rows, p=(0.6, 0.2, 0.1, 0.09, 0.01))]
  many = np.array([f'n{i}' for i in range(40)])[random.geometric(0.1, rows).clip(1, 40) - 1]
  return [
    Column('normal', 'number', normal),
    Column('twice', 'number', 2 * normal + random.normal(size=rows)),
    Column('gaps', 'number', gaps),
    Column('zeros', 'number', zeros),
    Column('whole', 'number', random.integers(0, 5, rows).astype(float)),
    Column('skewed', 'category', skewed),
    Column('many', 'category', many),
    Column('coin', 'category', np.array(['no', 'yes'])[random.integers(0, 2, rows)]),
  ]


def most(rate: float) -> int:
  """Alarms in WINDOWS that a right rate exceeds once in a thousand times."""
  return int(stats.binom.ppf(0.999, WINDOWS, rate))


def test_calm_windows_raise_few_alarms():
  """The family-wise rate of all columns together is at most the level."""
  random = np.random.default_rng(0)
  alarms = sum(
    any(f.drifted for f in compare(table(random), table(random), LEVEL)) for _ in range(WINDOWS)
  )
  assert alarms <= most(LEVEL)


def test_p_values_are_calibrated():
  """Without ties p-values are uniform: of numbers, of frequent categories, and of MMD."""
  random = np.random.default_rng(1)
  names = np.array(['a', 'b', 'c'])
  draw = lambda: names[random.choice(3, ROWS, p=(0.5, 0.3, 0.2))]
  found = {
    'ks': [drift.kolmogorov_smirnov(*random.normal(size=(2, ROWS)))[1] for _ in range(WINDOWS)],
    'chi': [drift.chi_square(draw(), draw())[1] for _ in range(WINDOWS)],
    'mmd': [drift.mmd(*random.normal(size=(2, 40, 3)), seed=i)[1] for i in range(80)],
  }
  for name, values in found.items():
    assert stats.kstest(values, 'uniform').pvalue > 0.001, name


@pytest.mark.parametrize('name', ['normal', 'gaps', 'skewed', 'coin'])
def test_a_shift_is_found_where_it_is(name):
  random = np.random.default_rng(2)
  reference, window = table(random, 1000), table(random, 1000)
  at = next(i for i, c in enumerate(window) if c.name == name)
  values = window[at].values
  shifted = {
    'normal': lambda: values + 0.35,
    'gaps': lambda: np.where(random.random(1000) < 0.15, np.nan, values),  # only more gaps
    'skewed': lambda: np.where(random.random(1000) < 0.12, 'unseen', values),
    'coin': lambda: np.where(random.random(1000) < 0.25, 'yes', values),
  }[name]()
  window[at] = Column(name, window[at].kind, shifted)
  findings = compare(reference, window, LEVEL)
  assert [f.name for f in findings if f.drifted] == [name]


def test_mmd_finds_what_no_mean_shows():
  random = np.random.default_rng(3)
  a, b = random.normal(size=(2, 400, 2))
  b[:, 1] = 0.8 * b[:, 0] + 0.6 * b[:, 1]  # each column as before, but correlated
  assert drift.mmd(a, b)[1] <= 0.01
  assert drift.mmd(a, a.copy())[1] > 0.5


def test_mmd_is_its_definition():
  random = np.random.default_rng(4)
  a, b = random.normal(size=(7, 2)), random.normal(size=(5, 2)) + 1
  both = np.concatenate([a, b])
  squared = np.array([[((x - y) ** 2).sum() for y in both] for x in both])
  kernel = np.exp(-squared / (2 * np.median(squared[squared > 1e-12])))
  expected = kernel[:7, :7].mean() + kernel[7:, 7:].mean() - 2 * kernel[:7, 7:].mean()
  assert drift.mmd(a, b)[0] ** 2 == pytest.approx(expected, rel=1e-9)


def test_holm_is_that_of_the_book():
  """Example of Holm's procedure: p .01 .04 .03 .005 at 0.05 rejects .005 and .01 alone."""
  adjusted = drift.holm([0.01, 0.04, 0.03, 0.005])
  assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])
  assert drift.holm([0.9, 0.8]) == [1.0, 1.0]


def test_rare_categories_are_pooled():
  table = drift.pooled(np.array([90, 4, 3, 2, 1]), np.array([95, 2, 1, 1, 1]))
  assert table.tolist() == [[90, 10], [95, 5]]
  assert drift.chi_square(np.array(['a'] * 30), np.array(['a'] * 30)) == (0.0, 1.0)


def test_bad_samples_are_named():
  column = Column('x', 'number', np.zeros(50))
  with pytest.raises(InputError, match='19 rows: expected at least 20'):
    compare([column], [Column('x', 'number', np.zeros(19))], LEVEL)
  with pytest.raises(InputError, match=r"columns \['x'\] in both samples, found \['y'\]"):
    compare([column], [Column('y', 'number', np.zeros(50))], LEVEL)


def test_the_page_shows_drifted_columns_and_escapes():
  random = np.random.default_rng(5)
  names = np.array(['<b>', 'plain'])
  a = [Column('calm', 'number', random.normal(size=300)),
       Column('<i>kind</i>', 'category', names[random.integers(0, 2, 300)]),
       Column('text', 'vector', random.normal(size=(300, 2)))]  # fmt: skip
  b = [Column('calm', 'number', random.normal(size=300)),
       Column('<i>kind</i>', 'category', np.repeat(names, (280, 20))),
       Column('text', 'vector', random.normal(size=(300, 2)) + 1)]  # fmt: skip
  text = page('Drift', {'level': '0.05'}, compare(a, b, LEVEL), a, b)
  assert '2 of 3 columns drifted' in text
  assert '<h2>calm' not in text and text.count('class="bars"') == 1 and 'class="pair"' in text
  assert '<i>kind' not in text and '<b>plain' not in text and '&lt;b&gt;' in text
