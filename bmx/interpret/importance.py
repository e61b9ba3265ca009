"""Global importance of features: how much worse predictions are with a feature permuted."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bmx.core import streams


class Importance(NamedTuple):
  """Importance of features.

  Attributes:
    mean: float64 [G], mean fall of the score.
    std: float64 [G], its deviation over repetitions.
    score: of the data as they are.
  """

  mean: np.ndarray
  std: np.ndarray
  score: float


def permutation_importance(
  score: Callable[[np.ndarray], float],
  x: np.ndarray,
  masks: np.ndarray,
  repeats: int = 5,
  seed: int = 0,
) -> Importance:
  """Permutes each feature among the examples. Source: Breiman 2001; Fisher et al. 2019.

  Args:
    score: inputs like x -> their mean score; higher is better.
    x: inputs [N, ...].
    masks: bool [G, ...], the elements of each feature; they move together.
    repeats: permutations of each feature.
    seed: of the permutations.
  """
  random = streams.generator(seed, streams.EXPLAIN, 1)
  whole = score(x)
  falls = np.array([
    [whole - score(np.where(mask, x[random.permutation(len(x))], x)) for _ in range(repeats)]
    for mask in masks
  ])  # fmt: skip
  return Importance(falls.mean(1), falls.std(1), whole)
