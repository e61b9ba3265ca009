"""The privacy that a run has spent: ε of its steps at a δ, and the noise that an ε needs."""

import dataclasses
import functools
import math

import numpy as np

from bmx.core.errors import InputError
from bmx.privacy.pld import MOST_POINTS, Losses, subsampled_gaussian
from bmx.privacy.sampling import overflow

TAIL = 1e-6  # of δ: mass of compositions that is counted as lost
LEAST_NOISE, MOST_NOISE = 0.3, 1e4
DIGITS = 4  # of a calibrated noise multiplier, rounded up


@dataclasses.dataclass(frozen=True)
class Accountant:
  """ε of training steps that each release a noised sum of a Poisson sample.

  Data sets are neighbours if one has an example that the other lacks (add or remove).

  Attributes:
    noise: standard deviation of the noise of a step, over what an example adds at most.
    rate: probability of an example to be in a batch.
    delta: probability with which the guarantee may fail.
    overflow: probability that a draw has more examples than the rows of a batch.
  """

  noise: float
  rate: float
  delta: float
  overflow: float = 0.0

  @functools.lru_cache(maxsize=4096)  # noqa: B019 - few accountants, small values
  def epsilon(self, steps: int) -> float:
    """Returns ε after `steps` steps; infinity if no ε holds at this δ."""
    if not steps:
      return 0.0
    return max(self._epsilon(steps, removed) for removed in (True, False))

  def _epsilon(self, steps: int, removed: bool) -> float:
    losses = self._composed(steps, removed)
    lost = steps * self.overflow
    grid = losses.values[losses.values >= 0]
    grid = np.concatenate([[0.0], grid])
    with np.errstate(over='ignore'):
      spent = losses.delta(grid) + lost * (1 + np.exp(grid))
    holds = np.flatnonzero(spent <= self.delta)
    if not len(holds):
      return math.inf
    at = int(holds[0])
    if not at:
      return 0.0
    # Within one interval both are linear in exp(ε).
    a, b = spent[at - 1], spent[at]
    part = (a - self.delta) / (a - b)
    low, high = math.exp(grid[at - 1] - grid[at]), 1.0
    return float(grid[at] + math.log(low + part * (high - low)))

  def _composed(self, steps: int, removed: bool) -> Losses:
    """Composes on the finest grid that has at most `MOST_POINTS` losses."""
    coarser, tail = 0, TAIL * self.delta
    while True:
      one = subsampled_gaussian(self.noise, self.rate, removed, coarser)
      first, last = one.span(steps, tail)
      if last - first < MOST_POINTS:
        return one.composed(steps, tail, (first, last))
      coarser += 1

  def steps(self, epsilon: float, most: int) -> int:
    """Returns the largest number of steps, up to `most`, whose ε is at most `epsilon`."""
    if self.epsilon(most) <= epsilon:
      return most
    low, high = 0, most - 1
    while low < high:
      middle = (low + high + 1) // 2
      low, high = (middle, high) if self.epsilon(middle) <= epsilon else (low, middle - 1)
    return low


@functools.lru_cache(maxsize=32)
def calibrated(
  epsilon: float, delta: float, expected: float, size: int, steps: int, rows: int
) -> float:
  """Returns the least noise multiplier, to `DIGITS` digits, that spends at most `epsilon`.

  It is `LEAST_NOISE` at least: less of it promises nothing.

  Args:
    epsilon: budget of all steps.
    delta: see `Accountant`.
    expected: examples of a batch, on average.
    size: examples of the training data.
    steps: of the run.
    rows: of a padded batch.

  Raises:
    InputError: no noise is enough.
  """
  lost = overflow(rows, expected, size)

  def spent(noise: float) -> float:
    return Accountant(noise, expected / size, delta, lost).epsilon(steps)

  if spent(MOST_NOISE) > epsilon:
    raise InputError(
      f'privacy.epsilon={epsilon:g}: expected at least {spent(MOST_NOISE):.2g} at delta={delta:g} '
      f'with {steps:,} steps of {expected:g} of {size:,} examples, however much noise is added'
    )
  if spent(LEAST_NOISE) <= epsilon:
    return LEAST_NOISE
  low, high = LEAST_NOISE, 2 * LEAST_NOISE
  while spent(high) > epsilon:
    low, high = high, high * 2
  while high / low > 1 + 0.1 ** (DIGITS + 1):
    middle = math.sqrt(low * high)
    low, high = (middle, high) if spent(middle) > epsilon else (low, middle)
  return _rounded_up(high)


def _rounded_up(value: float) -> float:
  """Rounds up to `DIGITS` digits, so that machines that differ in the last bits agree."""
  unit = 10.0 ** (math.floor(math.log10(value)) + 1 - DIGITS)
  return round(math.ceil(value / unit) * unit, 12)
