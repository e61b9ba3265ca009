"""The gate: whether a challenger may replace a champion, by margins and paired intervals."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core import streams
from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.core.types import HostBatch

DRAWS = 2000  # of a bootstrap
CHUNK = 1 << 22  # numbers of a bootstrap that are drawn at once
NEW, OLD = 'new', 'old'
ACCEPTED, REFUSED, SMALL = 'accepted', 'refused', 'too few rows'


@dataclasses.dataclass(frozen=True)
class Rules:
  """What a challenger must show.

  Attributes:
    margin: by which it may be worse on old data.
    slice_margin: by which it may be worse in a slice.
    least: rows of a slice that is judged, and of the new data.
    level: intervals hold 1 - level of the bootstrap's draws.

  Raises:
    InputError: a number out of range.
  """

  margin: float = 0.01
  slice_margin: float = 0.05
  least: int = 100
  level: float = 0.05

  def __post_init__(self):
    check_number('feedback.margin', self.margin, at_least=0)
    check_number('feedback.slice_margin', self.slice_margin, at_least=0)
    check_number('feedback.least', self.least, at_least=2)
    check_number('feedback.level', self.level, above=0, below=1)


@dataclasses.dataclass(frozen=True)
class Scored:
  """Scores of both models on the same rows; higher is better.

  Attributes:
    champion: float [N].
    challenger: float [N].
    slices: name of a column -> the slice of each row, texts [N].
  """

  champion: np.ndarray
  challenger: np.ndarray
  slices: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Check:
  """One comparison.

  Attributes:
    name: of the data, or 'COLUMN=VALUE (DATA)' of a slice.
    rows: examples.
    champion: mean score.
    challenger: mean score.
    difference: challenger less champion.
    low: lower end of the interval of the difference.
    high: its upper end.
    bound: that `low` must exceed.
    result: ACCEPTED, REFUSED or SMALL.
  """

  name: str
  rows: int
  champion: float
  challenger: float
  difference: float
  low: float
  high: float
  bound: float
  result: str


def judge(new: Scored, old: Scored, rules: Rules, seed: int = 0) -> list[Check]:
  """Compares a challenger with a champion.

  The challenger must be better on new data (the interval of the difference lies above 0), and not
  worse than the margins on old data and in each slice of at least `rules.least` rows. Each check
  must hold, so the number of slices does not make a wrong acceptance more likely.

  Raises InputError for new data of fewer than `rules.least` rows.
  """
  if len(new.champion) < rules.least:
    raise InputError(
      f'--input: {len(new.champion)} labeled examples that the challenger has not learned from: '
      f'expected at least {rules.least}; collect more, or set --least'
    )
  checks = [_check(NEW, new, None, 0.0, rules, seed), _check(OLD, old, None, -rules.margin, rules,
                                                             seed)]  # fmt: skip
  for where, data in ((NEW, new), (OLD, old)):
    for column, values in data.slices.items():
      for value in np.unique(values):
        name = f'{column}={value} ({where})'
        checks.append(_check(name, data, values == value, -rules.slice_margin, rules, seed))
  return checks


def accepted(checks: Sequence[Check]) -> bool:
  """Whether no check is refused."""
  return all(check.result != REFUSED for check in checks)


def _check(
  name: str, data: Scored, chosen: np.ndarray | None, bound: float, rules: Rules, seed: int
) -> Check:
  a, b = data.champion, data.challenger
  if chosen is not None:
    a, b = a[chosen], b[chosen]
  difference = b - a
  low, high = interval(difference, rules.level, seed)
  small = chosen is not None and len(a) < rules.least
  result = SMALL if small else ACCEPTED if low > bound else REFUSED
  means = float(a.mean()), float(b.mean()), float(difference.mean())
  return Check(name, len(a), *means, low, high, bound, result)


def interval(values: np.ndarray, level: float, seed: int = 0) -> tuple[float, float]:
  """Returns the percentile bootstrap interval of the mean of values, of confidence 1 - level.

  Source: Efron 1979.

  Args:
    values: float [N]; of pairs, their differences.
    level: share of the draws outside, half of it on each side.
    seed: of the draws.
  """
  random, n = streams.generator(seed, streams.GATE), len(values)
  distinct, times = np.unique(values, return_counts=True)
  if len(distinct) < 64:  # counts of a few distinct values: the same distribution, drawn faster
    means = random.multinomial(n, times / n, DRAWS) @ distinct / n
  else:
    size = max(1, CHUNK // n)
    parts = [min(size, DRAWS - i) for i in range(0, DRAWS, size)]
    means = np.concatenate([values[random.integers(0, n, (k, n))].mean(1) for k in parts])
  low, high = np.quantile(means, (level / 2, 1 - level / 2))
  return float(low), float(high)


def scores(rows: HostBatch, scale: float = 1.0) -> np.ndarray:
  """Returns the score of each prediction, float64 [N]: 1 if the class is right, or -|error|.

  Args:
    rows: `prediction`, and `label` int [N] or `y` float [N, D].
    scale: unit of errors, the standard deviation of y in the training data.

  Raises:
    InputError: predictions of another kind.
  """
  prediction = rows.get('prediction')
  if (
    prediction is not None
    and 'label' in rows
    and prediction.shape == rows['label'].shape == (len(prediction),)
  ):
    return (prediction == rows['label']).astype(np.float64)
  if prediction is not None and 'y' in rows and prediction.shape == rows['y'].shape:
    return -np.abs(prediction.astype(np.float64) - rows['y']).mean(-1) / scale
  raise InputError(
    'gate: expected a task that predicts one class or numbers for each example, and examples with '
    'labels'
  )


def slices_of(old: np.ndarray, *parts: np.ndarray, kind: str) -> list[np.ndarray]:
  """Returns the slice of each row of every part, texts: categories, or quarters of numbers.

  Args:
    old: values of the column in the old data, whose quartiles divide numbers.
    parts: values to slice.
    kind: of the column, see `drift.Column`.
  """
  if kind == 'category':
    return [part.astype(str) for part in parts]
  cuts = np.unique(np.quantile(old, (0.25, 0.5, 0.75)))
  inner = (f'{a:.4g}..{b:.4g}' for a, b in itertools.pairwise(cuts))
  names = [f'<={cuts[0]:.4g}', *inner, f'>{cuts[-1]:.4g}']
  return [np.array(names)[np.searchsorted(cuts, part)] for part in parts]


def table_rows(checks: Sequence[Check]) -> list[tuple[str, ...]]:
  """Returns a head and a row of texts for each check, for people."""
  head = ('data', 'rows', 'champion', 'challenger', 'difference', 'interval', 'above', 'result')
  number = lambda x: f'{x:+.4f}'
  rows: list[tuple[str, ...]] = [
    (c.name, f'{c.rows:,}', f'{c.champion:.4f}', f'{c.challenger:.4f}', number(c.difference),
     f'[{number(c.low)}, {number(c.high)}]', number(c.bound), c.result)
    for c in checks
  ]  # fmt: skip
  return [head, *rows]


def plain(checks: Sequence[Check]) -> list[dict[str, Any]]:
  """Returns the checks as JSON holds them."""
  return [dataclasses.asdict(check) for check in checks]
