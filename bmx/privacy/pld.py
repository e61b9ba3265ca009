"""Privacy loss distributions of the Poisson-subsampled Gaussian, and their compositions.

A distribution stands on multiples of an interval. Each piece of the continuous one is split between
its two ends so that its mass keeps its probability under both neighbours, which never understates
the privacy loss ("connect the dots"); compositions are powers of a Fourier transform.

Source: Doroshenko et al. 2022, for the discretization; Koskela et al. 2020, for the composition.
"""

import dataclasses
import functools

import numpy as np
from scipy import fft
from scipy.special import ndtr

SPREAD = 9.0  # standard deviations of the noise that the grid covers; 1e-19 lies outside
FINEST, PER_DEVIATION = 1e-4, 50.0  # interval: at most that, and a part of one step's deviation
MOST_POINTS = 2**21  # of a distribution
LOWEST, HIGHEST = -8, 20  # orders of moments, as powers of 2
DROPPED = 1e-100


@dataclasses.dataclass(frozen=True)
class Losses:
  """A privacy loss distribution on a grid.

  Attributes:
    interval: between two losses.
    first: number of the first interval: losses are (first + i) · interval.
    mass: probability of each loss, float64 [n].
    infinite: probability of an infinite loss.
  """

  interval: float
  first: int
  mass: np.ndarray
  infinite: float

  @functools.cached_property
  def values(self) -> np.ndarray:
    """The losses, float64 [n]."""
    return (self.first + np.arange(len(self.mass))) * self.interval

  def tail(self, steps: int, log_mass: float, sign: int) -> float:
    """Bounds the sum of `steps` losses by its moments (Chernoff).

    Args:
      steps: number of losses.
      log_mass: logarithm of the probability outside of the bound.
      sign: 1 for an upper bound, -1 for a lower one.
    """
    orders, moments = self._moments
    return sign * float(np.min((steps * moments[sign] - log_mass) / orders))

  @functools.cached_property
  def _moments(self) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Orders, and by sign the logarithm of the mean of exp(sign · order · loss) at each."""
    orders, moments = 2.0 ** np.arange(LOWEST, HIGHEST), {}
    for sign in (1, -1):
      largest = np.max(sign * self.values)
      power, mass, found = np.exp(orders[0] * (sign * self.values - largest)), self.mass, []
      for order in orders:  # each is twice the one before
        kept = power > DROPPED  # products of smaller ones are slow, where they are not zero
        power, mass = power[kept], mass[kept]
        # A sum of products, since BLAS would start threads beside those of XLA.
        found.append(np.log(np.sum(mass * power) + DROPPED) + order * largest)
        power = power * power
      moments[sign] = np.array(found)
    return orders, moments

  def span(self, steps: int, tail: float) -> tuple[int, int]:
    """Returns first and last number of the intervals that hold the sum of `steps` losses.

    Args:
      steps: number of losses.
      tail: probability of the sums on either side of them.
    """
    low, high = (self.tail(steps, np.log(tail), sign) / self.interval for sign in (-1, 1))
    return int(np.floor(low)), int(np.ceil(high))

  def composed(self, steps: int, tail: float, span: tuple[int, int]) -> 'Losses':
    """Returns the distribution of the sum of `steps` independent losses.

    Args:
      steps: number of losses.
      tail: probability that is counted as an infinite loss, on either side.
      span: see `span`.
    """
    first, last = span
    size = int(fft.next_fast_len(max(last - first + 1, 2), real=True) or 0)
    wrapped = np.bincount((self.first + np.arange(len(self.mass))) % size, self.mass, size)
    power = np.fft.rfft(wrapped) ** steps
    mass = np.roll(np.fft.irfft(power, size), -(first % size)).clip(0)
    infinite = -np.expm1(steps * np.log1p(-self.infinite)) + 2 * tail
    return Losses(self.interval, first, mass, float(infinite))

  def delta(self, epsilon: np.ndarray) -> np.ndarray:
    """Returns δ of every ε (the hockey-stick divergence), float64 [n]."""
    first = np.searchsorted(self.values, epsilon, 'right')
    above, scaled = self._sums
    return above[first] - np.exp(epsilon) * scaled[first] + self.infinite

  @functools.cached_property
  def _sums(self) -> tuple[np.ndarray, np.ndarray]:
    """Sums from each loss up: of the mass, and of mass · exp(-loss); float64 [n + 1]."""
    scaled = self.mass * np.exp(-np.maximum(self.values, -500.0))
    total = lambda x: np.concatenate([np.cumsum(x[::-1])[::-1], [0.0]])
    return total(self.mass), total(scaled)


@functools.lru_cache(maxsize=8)
def subsampled_gaussian(noise: float, rate: float, removed: bool, coarser: int = 0) -> Losses:
  """Returns the loss distribution of one step: noised sum of a Poisson sample.

  Args:
    noise: standard deviation of the noise, over what an example adds at most.
    rate: probability of an example to be in the sample.
    removed: the neighbour lacks an example that the data have; False: it has one more.
    coarser: doublings of the interval.
  """
  top = _loss(1 + SPREAD * noise, noise, rate)
  bottom = _loss(-SPREAD * noise, noise, rate)
  deviation = rate * np.sqrt(np.expm1(min(1 / noise**2, 500.0)))  # of losses near zero
  interval = min(FINEST, deviation / PER_DEVIATION)
  while (top - bottom) / interval > MOST_POINTS:
    interval *= 2
  interval *= 2**coarser
  first, last = np.floor(bottom / interval), np.ceil(top / interval)
  edges = np.arange(first, last + 1) * interval  # of the losses of `removed`
  places = _place(edges, noise, rate)
  plain = _between(places / noise)
  shifted = (1 - rate) * plain + rate * _between((places - 1) / noise)
  if removed:
    return _split(edges, shifted, plain, int(first), interval)
  return _split(-edges[::-1], plain[::-1], shifted[::-1], -int(last), interval)


def _loss(place: float, noise: float, rate: float) -> float:
  """Logarithm of the density with the example over that without it."""
  return float(np.logaddexp(np.log1p(-rate) if rate < 1 else -np.inf,
                            np.log(rate) + (2 * place - 1) / (2 * noise**2)))  # fmt: skip


def _place(loss: np.ndarray, noise: float, rate: float) -> np.ndarray:
  """Inverse of `_loss`; -inf below its range."""
  with np.errstate(divide='ignore', invalid='ignore', over='ignore'):
    odds = np.log(np.expm1(loss) + rate) - np.log(rate)
  large = loss > 30.0  # exp(loss) exceeds all else
  odds = np.where(large, loss - np.log(rate), np.where(np.isnan(odds), -np.inf, odds))
  return 0.5 + noise**2 * odds


def _between(edges: np.ndarray) -> np.ndarray:
  """Mass of the normal distribution between neighbours, and outside: float64 [n + 1]."""
  edges = np.concatenate([[-np.inf], edges, [np.inf]])
  low, high = edges[:-1], edges[1:]
  upper = low > 0  # differences of small tails are exact there
  return np.where(upper, ndtr(-low) - ndtr(-high), ndtr(high) - ndtr(low))


def _split(
  losses: np.ndarray, own: np.ndarray, other: np.ndarray, first: int, interval: float
) -> Losses:
  """Splits the mass of each piece between the losses at its two ends.

  Args:
    losses: the grid, float64 [n].
    own: mass of the pieces below, between and above them, float64 [n + 1].
    other: their mass under the neighbour, which is about own · exp(-loss).
    first: number of the first loss.
    interval: between two losses.
  """
  # In units of the mass at the lower end, whose ratio to the neighbour's is exp(loss).
  step = np.expm1(interval)
  inner, outer = own[1:-1], other[1:-1] * np.exp(losses[:-1])
  up = ((inner - outer) * (1 + step) / step).clip(0)
  up = np.minimum(up, inner)
  mass = np.zeros(len(losses))
  mass[1:] += up
  mass[:-1] += inner - up
  mass[0] += own[0]
  kept = min(own[-1], other[-1] * np.exp(losses[-1]))
  mass[-1] += kept
  return Losses(interval, first, mass, float(own[-1] - kept))
