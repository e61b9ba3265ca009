"""The gate: whether a challenger may replace a champion, by margins and paired intervals."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.tasks.scores import interval

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
