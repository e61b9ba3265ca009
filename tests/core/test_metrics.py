"""Sums with their counts."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.metrics import Window, add, means, weighted


def test_weighted_is_the_sum_and_the_count():
  values, weights = np.array([1.0, 2.0, 4.0]), np.array([1.0, 0.5, 2.0])
  np.testing.assert_allclose(weighted(jnp.asarray(values), jnp.asarray(weights)), [10.0, 3.5])


@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_a_weight_of_zero_hides_anything(bad):
  given = weighted(jnp.array([bad, 2.0]), jnp.array([0.0, 3.0]))
  np.testing.assert_array_equal(given, [6.0, 3.0])


def test_a_bad_value_that_counts_is_seen():
  assert np.isnan(weighted(jnp.array([np.nan, 2.0]), jnp.array([0.1, 3.0]))[0])


def test_half_precision_is_summed_in_float32():
  """bfloat16 would stop at 256."""
  ones = jnp.ones(1000, jnp.bfloat16)
  given = weighted(ones, ones)
  assert given.dtype == jnp.float32
  np.testing.assert_array_equal(given, [1000.0, 1000.0])


def test_parts_add_to_the_whole():
  random = np.random.default_rng(0)
  values, weights = random.normal(size=(2, 40)).astype(np.float32)
  weights = np.abs(weights)
  cut = lambda x: np.split(x, [3, 17])
  pairs = zip(cut(values), cut(weights), strict=True)
  parts = [{'loss': weighted(jnp.asarray(v), jnp.asarray(w))} for v, w in pairs]
  whole = add(add(*parts[:2]), parts[2])
  expected = np.average(values.astype(np.float64), weights=weights.astype(np.float64))
  assert means(whole)['loss'] == pytest.approx(expected, rel=1e-5)


def test_what_counted_nothing_is_left_out():
  assert means({'a': np.array([0.0, 0.0]), 'b': np.array([0.0, 2.0])}) == {'b': 0.0}


def test_a_window_is_exact_where_float32_is_not():
  """A float32 sum of ones stops growing at 2²⁴."""
  window = Window()
  window.add({'loss': np.array([2.0**24, 2.0**24], np.float32)})
  for _ in range(100):
    window.add({'loss': np.array([1.0, 1.0], np.float32)})
  assert window.sums['loss'].tolist() == [2**24 + 100, 2**24 + 100]


def test_a_closed_window_is_empty():
  window = Window()
  window.add({'loss': np.array([6.0, 4.0])})
  window.add({'loss': np.array([4.0, 1.0]), 'late': np.array([1.0, 2.0])})
  assert window.close() == {'loss': 2.0, 'late': 0.5}
  assert window.close() == {}


def test_a_window_survives_json():
  window = Window()
  window.add({'loss': np.array([0.1, 3.0])})
  window.add({'loss': np.array([0.2, 4.0])})
  copy = Window(json.loads(json.dumps(window.json())))
  for w in (window, copy):
    w.add({'loss': np.array([0.7, 1.0])})
  assert copy.close() == window.close() == {'loss': (0.1 + 0.2 + 0.7) / 8.0}
