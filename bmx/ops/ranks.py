"""Ranks of the right candidates of queries, on the host."""

import numpy as np

BLOCK = 1024  # queries whose scores exist at once


def ranks_of(
  queries: np.ndarray, keys: np.ndarray, candidates: np.ndarray, of: np.ndarray
) -> np.ndarray:
  """Counts the wrong candidates that score at least as high as the best right one, int64 [n].

  Scores are products. Equal scores count as better: equal embeddings of everything are not a hit.

  Args:
    queries: float [n, E].
    keys: int [n].
    candidates: float [m, E].
    of: int [m]; a candidate is right for the queries with its key.
  """
  found = np.empty(len(queries), np.int64)
  for start in range(0, len(queries), BLOCK):
    part = slice(start, start + BLOCK)
    scores = queries[part] @ candidates.T
    right = keys[part, None] == of[None]
    best = np.where(right, scores, -np.inf).max(1, keepdims=True)
    found[part] = ((scores >= best) & ~right).sum(1)
  return found
