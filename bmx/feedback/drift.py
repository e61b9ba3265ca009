"""Drift: whether a window of examples and a reference come from one distribution, by column."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from scipy import stats

from bmx.core import streams
from bmx.core.errors import InputError

Kind = Literal['number', 'category', 'vector']
MIN_ROWS = 20  # of either side: below it no test finds anything
MIN_EXPECTED = 5.0  # counts of a category in the smaller side; rarer categories are pooled
MAX_VECTORS = 500  # of each side that MMD compares: its cost is their square
PERMUTATIONS = 999  # of MMD: the least p-value is 1 / 1000
OTHER = '(rare categories)'


@dataclasses.dataclass(frozen=True)
class Column:
  """One column of a sample.

  Attributes:
    name: of the column.
    kind: of its values.
    values: float [N] (NaN: missing), texts [N], or float [N, D].
  """

  name: str
  kind: Kind
  values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Finding:
  """The comparison of one column.

  Attributes:
    name: of the column.
    test: name of the test.
    effect: its distance in [0, 1]: of distribution functions (Kolmogorov-Smirnov), total variation
      (chi-square), or MMD.
    p: p-value of the column alone.
    adjusted: p-value after the correction for the number of columns.
    drifted: whether `adjusted` is at most the level.
  """

  name: str
  test: str
  effect: float
  p: float
  adjusted: float
  drifted: bool


def compare(
  reference: Sequence[Column], window: Sequence[Column], level: float, seed: int = 0
) -> list[Finding]:
  """Compares two samples column by column, with Holm's correction for the number of columns.

  If both samples come from one distribution, the probability that any column is reported is at
  most `level`.

  Args:
    reference: columns of the one sample.
    window: the same columns of the other.
    level: probability of a false alarm, of all columns together.
    seed: of permutations.

  Returns:
    A finding for each column, in order.

  Raises:
    InputError: other columns; a sample of fewer than `MIN_ROWS` rows.
  """
  names, given = [c.name for c in reference], [c.name for c in window]
  if names != given or not names:
    raise InputError(f'drift: expected the columns {names} in both samples, found {given}')
  for word, sample in (('reference', reference), ('window', window)):
    rows = len(sample[0].values)
    if rows < MIN_ROWS:
      raise InputError(f'drift: the {word} has {rows} rows: expected at least {MIN_ROWS}')
  found = [_test(a, b, seed) for a, b in zip(reference, window, strict=True)]
  adjusted = holm([p for _, _, p in found])
  return [
    Finding(name, test, effect, p, q, q <= level)
    for name, (test, effect, p), q in zip(names, found, adjusted, strict=True)
  ]


def _test(a: Column, b: Column, seed: int) -> tuple[str, float, float]:
  if a.kind == 'number':
    return 'Kolmogorov-Smirnov', *kolmogorov_smirnov(a.values, b.values)
  if a.kind == 'category':
    return 'chi-square', *chi_square(a.values, b.values)
  return 'MMD', *mmd(a.values, b.values, seed)


def holm(p: Sequence[float]) -> list[float]:
  """Returns adjusted p-values: those at most α are rejected with family-wise error rate α.

  Source: Holm 1979.

  >>> holm([0.01, 0.04, 0.03])
  [0.03, 0.06, 0.06]
  """
  adjusted, largest = [0.0] * len(p), 0.0
  for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
    largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
    adjusted[i] = largest
  return adjusted


def kolmogorov_smirnov(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
  """Returns (largest distance of the distribution functions, p-value) of two samples of numbers.

  A missing value (NaN) counts as a number below all others, so that more of them are found too.
  Ties make the p-value too large, never too small.

  Args:
    a: float [N].
    b: float [M].
  """
  a, b = (np.where(np.isnan(x), -np.inf, x) for x in (a, b))
  found: Any = stats.ks_2samp(a, b, method='asymp')
  return float(found.statistic), float(found.pvalue)


def chi_square(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
  """Returns (total variation distance, p-value) of two samples of categories.

  Categories of which the smaller sample is expected to hold fewer than `MIN_EXPECTED` are pooled.

  Args:
    a: texts [N].
    b: texts [M].
  """
  table = pooled(*counts(a, b)[1:])
  if table.shape[1] < 2:
    return 0.0, 1.0
  found: Any = stats.chi2_contingency(table, correction=False)
  shares = table / table.sum(1, keepdims=True)
  return float(np.abs(shares[0] - shares[1]).sum() / 2), float(found.pvalue)


def counts(a: np.ndarray, b: np.ndarray) -> tuple[list[str], np.ndarray, np.ndarray]:
  """Returns the categories of two samples, sorted, and how often each has them, int [K]."""
  names, index = np.unique(np.concatenate([a, b]).astype(str), return_inverse=True)
  of = lambda part: np.bincount(part, minlength=len(names))
  return names.tolist(), of(index[: len(a)]), of(index[len(a) :])


def pooled(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns the counts int [2, K'] of categories, the rarest of which are pooled into one.

  Args:
    a: int [K].
    b: int [K].
  """
  order = np.argsort(-(a + b), kind='stable')
  a, b = a[order], b[order]
  share = min(a.sum(), b.sum()) / (a.sum() + b.sum())
  kept = int((share * (a + b) >= MIN_EXPECTED).sum())
  while kept and kept < len(a) and share * (a[kept:].sum() + b[kept:].sum()) < MIN_EXPECTED:
    kept -= 1
  rest = [[x[kept:].sum()] if kept < len(a) else [] for x in (a, b)]
  return np.array([[*x[:kept], *r] for x, r in zip((a, b), rest, strict=True)])


def mmd(a: np.ndarray, b: np.ndarray, seed: int = 0) -> tuple[float, float]:
  """Returns (maximum mean discrepancy, p-value of a permutation test) of two samples of vectors.

  The kernel is Gaussian; its width is the median distance of both samples together.

  Source: Gretton et al. 2012, equation 5.

  Args:
    a: float [N, D].
    b: float [M, D].
    seed: of the choice of `MAX_VECTORS` rows, and of the permutations.
  """
  random = streams.generator(seed, streams.DRIFT)
  a, b = (_some(x, random) for x in (a, b))
  kernel = gaussian(np.concatenate([a, b]), np.concatenate([a, b]))
  signs = np.concatenate([np.full(len(a), 1 / len(a)), np.full(len(b), -1 / len(b))])
  shuffled = random.permuted(np.tile(signs, (PERMUTATIONS, 1)), axis=1)
  order = np.concatenate([signs[None], shuffled]).T
  squared = (order * (kernel @ order)).sum(0)
  p = (1 + (squared[1:] >= squared[0] * (1 - 1e-9)).sum()) / (1 + PERMUTATIONS)
  return math.sqrt(max(0.0, squared[0])), float(p)


def _some(x: np.ndarray, random: np.random.Generator) -> np.ndarray:
  chosen = random.choice(len(x), min(len(x), MAX_VECTORS), replace=False)
  return np.asarray(x, np.float64)[np.sort(chosen)]


def gaussian(a: np.ndarray, b: np.ndarray, width: float = 0.0) -> np.ndarray:
  """Returns the kernel exp(-|a - b|² / 2 width²), float [N, M].

  Args:
    a: float [N, D].
    b: float [M, D].
    width: 0 takes the median distance.
  """
  squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
  squared = np.maximum(squared, 0)
  apart = squared[squared > 1e-12]
  scale = width**2 or (float(np.median(apart)) if len(apart) else 1.0)
  return np.exp(-squared / (2 * scale))


def witness(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the function that differs most between two samples of vectors, float [N] and [M].

  It is the mean kernel to `a` less that to `b`; MMD is the difference of its means.
  """
  a, b = a[:MAX_VECTORS], b[:MAX_VECTORS]
  both = np.concatenate([a, b]).astype(np.float64)
  kernel = gaussian(both, both)
  value = kernel[:, : len(a)].mean(1) - kernel[:, len(a) :].mean(1)
  return value[: len(a)], value[len(a) :]
