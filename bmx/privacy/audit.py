"""An empirical lower bound of ε, from an attack that guesses which runs had an example."""

import math
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv


class Audit(NamedTuple):
  """Result of an attack.

  Attributes:
    epsilon: lower bound of ε that holds with the given confidence; 0 if the attack found nothing.
    hits: share of the runs with the example that the attack recognized.
    alarms: share of the runs without it that the attack took for one with it.
  """

  epsilon: float
  hits: float
  alarms: float


def audit(
  inside: np.ndarray, outside: np.ndarray, delta: float = 0.0, confidence: float = 0.95
) -> Audit:
  """Returns the lower bound of ε that scores of runs with and without an example give.

  A mechanism that is (ε, δ)-private has hits <= exp(ε) · alarms + δ for every attack. The attack
  says "inside" above a threshold, or below one. Half of the runs choose direction and threshold,
  the other half count hits and alarms, whose bounds are those of Clopper & Pearson 1934.

  Source: Jagielski et al. 2020; Nasr et al. 2021.

  Args:
    inside: scores of runs with the example, float [n].
    outside: scores of runs without it, float [m].
    delta: of the claim.
    confidence: probability that the bound holds.
  """
  halves = [(inside[i::2], outside[i::2]) for i in (0, 1)]
  tails = (1 - confidence) / 2  # one for each of the two bounds

  def found(scores: tuple[np.ndarray, np.ndarray], sign: int, threshold: float) -> Audit:
    hits, alarms = (sign * s > threshold for s in scores)
    low = lower(int(hits.sum()), len(hits), tails)
    high = 1 - lower(int((~alarms).sum()), len(alarms), tails)
    ratio = (low - delta) / high
    return Audit(math.log(ratio) if ratio > 1 else 0.0, float(hits.mean()), float(alarms.mean()))

  chosen, best = (1, math.inf), -1.0
  for sign in (1, -1):
    for threshold in np.unique(np.concatenate([sign * s for s in halves[0]])):
      bound = found(halves[0], sign, threshold).epsilon
      if bound > best:
        chosen, best = (sign, float(threshold)), bound
  return found(halves[1], *chosen)


def lower(count: int, trials: int, tail: float) -> float:
  """Returns the lower Clopper-Pearson bound of a probability.

  Args:
    count: successes.
    trials: number of trials.
    tail: probability that the bound does not hold.

  >>> round(lower(8, 10, 0.025), 4)
  0.4439
  """
  return float(betaincinv(count, trials - count + 1, tail)) if count else 0.0
