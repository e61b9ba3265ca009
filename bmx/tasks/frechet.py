"""Distance between two sets of feature vectors, as of generated and real images."""

import numpy as np

from bmx.core.errors import InputError


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
  """Returns the Fréchet distance of normal distributions with the moments of two sets.

  It is the FID of images whose features these are (Heusel et al. 2017, eq. 6; Dowson & Landau
  1982). It is biased: with fewer rows it is larger, so that only distances of equal sizes compare.

  Args:
    a: float [N, D], N above 1.
    b: float [M, D], M above 1.

  Raises:
    InputError: sets of one row, of other widths, or with numbers that are not finite.
  """
  for rows in (a, b):
    if rows.ndim != 2 or len(rows) < 2 or not np.isfinite(rows).all():
      raise InputError(f'features of shape {rows.shape}: expected finite numbers [N, D], N above 1')
  if a.shape[1] != b.shape[1]:
    raise InputError(f'features of {a.shape[1]} and {b.shape[1]} numbers: expected the same')
  (mean, covariance), (other, others) = _moments(a), _moments(b)
  return distance_of_moments(mean, covariance, other, others)


def distance_of_moments(
  mean: np.ndarray, covariance: np.ndarray, other: np.ndarray, others: np.ndarray
) -> float:
  """Returns |m - n|² + tr(C + D - 2 (C D)^½) of means m, n [D] and covariances C, D [D, D].

  (C D)^½ has the trace of (C^½ D C^½)^½, which is symmetric, so that eigenvalues give it.
  """
  values, vectors = np.linalg.eigh(covariance)
  root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
  product = np.sqrt(np.linalg.eigvalsh(root @ others @ root).clip(0)).sum()
  spread = np.trace(covariance) + np.trace(others) - 2 * product
  return float(np.square(mean - other).sum() + spread)


def _moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  rows = rows.astype(np.float64)
  return rows.mean(0), np.atleast_2d(np.cov(rows, rowvar=False))
