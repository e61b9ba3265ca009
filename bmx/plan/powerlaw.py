"""Power laws of the loss, fitted to runs of several sizes, with intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bmx.core.errors import InputError

EXPONENTS = (0.01, 2.0)  # published ones lie between 0.05 and 0.5
PARAMETERS = 3


class Law(NamedTuple):
  """loss = floor + scale · (size / unit)^-exponent (Kaplan et al. 2020; Hoffmann et al. 2022).

  Attributes:
    floor: nats that no size removes; at least 0.
    scale: nats at the size `unit`.
    exponent: of the size.
    unit: the geometric mean of the fitted sizes.
  """

  floor: float
  scale: float
  exponent: float
  unit: float

  def at(self, size: float) -> float:
    """Returns the loss of a size."""
    return self.floor + self.scale * (size / self.unit) ** -self.exponent


class Prediction(NamedTuple):
  """The loss of a size that was not trained.

  Attributes:
    size: as the fitted ones.
    loss: by the fitted law.
    low: lower end of the interval.
    high: upper end of the interval.
  """

  size: float
  loss: float
  low: float
  high: float


def fit(sizes: Sequence[float], losses: Sequence[float]) -> Law:
  """Fits a law by least squares of the losses.

  Raises InputError for fewer than four sizes, or losses that do not fall with the size.
  """
  x, y = np.asarray(sizes, float), np.asarray(losses, float)
  if len(set(sizes)) <= PARAMETERS:
    raise InputError(f'{len(set(sizes))} sizes: expected at least {PARAMETERS + 1} different ones')
  if np.corrcoef(np.log(x), y)[0, 1] >= 0:
    raise InputError('the losses do not fall with the size: no power law describes them')
  unit = float(np.exp(np.log(x).mean()))
  low, high = EXPONENTS
  for _ in range(3):  # each grid between the neighbors of the best of the one before
    grid = np.geomspace(low, high, 101)
    floor, scale, error = _at_exponents(x / unit, y, grid)
    best = int(error.argmin())
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, 100)]
  return Law(float(floor[best]), float(scale[best]), float(grid[best]), unit)


def _at_exponents(
  x: np.ndarray, y: np.ndarray, grid: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns floor, scale and squared error of the best fit at each exponent, with floor >= 0."""
  powers = x[None] ** -grid[:, None]
  center = powers - powers.mean(1, keepdims=True)
  scale = (center * (y - y.mean())).sum(1) / (center**2).sum(1)
  floor = y.mean() - scale * powers.mean(1)
  alone = (powers * y).sum(1) / (powers**2).sum(1)
  scale, floor = np.where(floor < 0, alone, scale), np.maximum(floor, 0)
  fitted = floor[:, None] + scale[:, None] * powers
  return floor, scale, ((fitted - y) ** 2).sum(1)


def predict(
  sizes: Sequence[float],
  losses: Sequence[float],
  wanted: Sequence[float],
  level: float = 0.9,
  draws: int = 400,
  seed: int = 0,
) -> tuple[Law, list[Prediction]]:
  """Fits a law and predicts losses, with intervals of a bootstrap of the residuals.

  Residuals are scaled by (n / (n - 3))^½, as three numbers were fitted to n of them, and one is
  added to each prediction: the interval is of a run and not of the mean of runs.

  Args:
    sizes: parameters, tokens or FLOPs of each run.
    losses: of each run.
    wanted: sizes to predict.
    level: share of runs inside the interval.
    draws: of the bootstrap.
    seed: of the draws.
  """
  law = fit(sizes, losses)
  fitted = np.array([law.at(n) for n in sizes])
  n = len(fitted)
  residuals = (np.asarray(losses) - fitted) * (n / (n - PARAMETERS)) ** 0.5
  random = np.random.default_rng(seed)
  found = np.empty((draws, len(wanted)))
  for i in range(draws):
    drawn = (fitted + random.choice(residuals, n)).tolist()
    try:
      again = fit(sizes, drawn)
    except InputError:  # a draw that does not fall
      again = law
    found[i] = [again.at(size) for size in wanted] + random.choice(residuals, len(wanted))
  low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], axis=0)
  return law, [
    Prediction(size, law.at(size), float(a), float(b))
    for size, a, b in zip(wanted, low, high, strict=True)
  ]
