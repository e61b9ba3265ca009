"""Scores of single predictions, their intervals, and slices of rows."""

import itertools

import numpy as np

from bmx.core import streams
from bmx.core.errors import InputError
from bmx.core.types import HostBatch

DRAWS = 2000  # of a bootstrap
CHUNK = 1 << 22  # numbers of a bootstrap that are drawn at once
Z95 = 1.959963984540054  # of the normal distribution, two-sided


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
    'expected a task that predicts one class or numbers for each example, and examples with labels'
  )


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


def wilson(hits: int, count: int, z: float = Z95) -> tuple[float, float]:
  """Returns the Wilson score interval of a share, by default of confidence 95 %.

  Source: Wilson 1927.

  Args:
    hits: successes.
    count: trials, at least 1.
    z: quantile of the normal distribution.
  """
  share, wide = hits / count, z**2 / count
  middle = share + wide / 2
  half = z * np.sqrt(share * (1 - share) / count + wide / (4 * count))
  low, high = (middle - half) / (1 + wide), (middle + half) / (1 + wide)
  return max(0.0, float(low)), min(1.0, float(high))


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
