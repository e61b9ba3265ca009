"""Exact search against a sort of all scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.ops.search import search


@pytest.mark.parametrize('block', [1, 7, 23, 100])
def test_search_is_a_stable_sort(block):
  random = np.random.default_rng(0)
  queries = random.integers(-3, 4, (5, 3)).astype(
    np.float32
  )  # whole numbers: many ties, no rounding
  table = random.integers(-3, 4, (23, 3)).astype(np.float32)
  excluded = random.integers(-1, 30, (5, 8)).astype(
    np.int32
  )  # -1 and numbers beyond exclude nothing
  call = jax.jit(lambda q, t, e: search(q, t, e, 6, block))
  ids, scores = call(queries, jnp.asarray(table), jnp.asarray(excluded))
  for row in range(5):
    every = queries[row] @ table.T
    allowed = [i for i in np.argsort(-every, kind='stable') if i not in excluded[row]]
    np.testing.assert_array_equal(ids[row], allowed[:6])
    np.testing.assert_array_equal(scores[row], every[allowed[:6]])


def test_fewer_rows_than_asked_for():
  table, excluded = jnp.eye(3), jnp.array([[0, 1], [-1, -1]])
  ids, scores = search(jnp.ones((2, 3)), table, excluded, 4, 2)
  np.testing.assert_array_equal(ids, [[2, -1, -1, -1], [0, 1, 2, -1]])
  np.testing.assert_array_equal(np.isfinite(scores), ids >= 0)
  assert search(jnp.ones((2, 3)), table, None, 3, 2)[0].tolist() == [[0, 1, 2]] * 2
