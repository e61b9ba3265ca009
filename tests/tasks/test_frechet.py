"""Fréchet distance: closed forms, and scipy's root of a matrix."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from bmx.core.errors import InputError
from bmx.tasks.frechet import distance_of_moments, frechet_distance

RANDOM = np.random.default_rng(0)


def test_two_normal_distributions():
  """Of independent numbers: |m - n|² + Σ (s - t)²."""
  m, n = RANDOM.normal(size=(2, 5))
  s, t = RANDOM.uniform(0.1, 3, size=(2, 5))
  found = distance_of_moments(m, np.diag(s**2), n, np.diag(t**2))
  assert found == pytest.approx(np.square(m - n).sum() + np.square(s - t).sum(), rel=1e-12)
  # Of many draws of them, nearly so.
  a, b = (RANDOM.normal(size=(100_000, 5)) * d + c for c, d in ((m, s), (n, t)))
  assert frechet_distance(a, b) == pytest.approx(found, rel=0.02)


@pytest.mark.parametrize('rank', [6, 3])
def test_as_with_the_root_of_a_matrix(rank):
  """As published implementations compute it; also of features that depend on each other."""
  a, b = (RANDOM.normal(size=(40, rank)) @ RANDOM.normal(size=(rank, 6)) + c for c in (0.0, 0.3))
  one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
  root = sqrtm(one @ two).real
  gap = np.square(a.mean(0) - b.mean(0)).sum()
  expected = gap + np.trace(one) + np.trace(two) - 2 * np.trace(root)
  assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-4)
  assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
  turn = np.linalg.qr(RANDOM.normal(size=(6, 6)))[0]
  assert frechet_distance(a @ turn, b @ turn) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
  'a, b, message',
  [
    (np.zeros((1, 3)), np.zeros((4, 3)), r'shape \(1, 3\): expected finite numbers'),
    (np.full((4, 3), np.nan), np.zeros((4, 3)), 'expected finite numbers'),
    (np.zeros((4, 3)), np.zeros((4, 2)), 'features of 3 and 2 numbers'),
  ],
)
def test_mistakes_are_named(a, b, message):
  with pytest.raises(InputError, match=message):
    frechet_distance(a, b)
