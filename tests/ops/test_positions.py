"""Positions against complex numbers and against the papers' formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from bmx.ops.positions import rotary, sinusoidal


def heads(length=9, size=8, seed=0):
  return np.random.default_rng(seed).normal(size=(2, length, 3, size)).astype(np.float32)


def rows(length, start=0):
  return np.broadcast_to(np.arange(start, start + length), (2, length))


@pytest.mark.parametrize('theta', [10_000.0, 500_000.0])
def test_rotary_multiplies_complex_numbers(theta):
  """Pair (i, i + H/2) is a + ib, turned by exp(i · position · theta^(-2i/H)): Su et al. eq. 34."""
  x, positions = heads(), np.random.default_rng(1).integers(0, 1000, (2, 9))
  pairs = x[..., :4].astype(np.float64) + 1j * x[..., 4:]
  frequency = theta ** (-2 * np.arange(4) / 8)
  turned = pairs * np.exp(1j * positions[:, :, None, None] * frequency)
  expected = np.concatenate([turned.real, turned.imag], -1)
  # Angles up to 1000 have 6e-5 of float32 rounding.
  np.testing.assert_allclose(rotary(x, positions, theta), expected, atol=3e-4)


def test_rotary_at_zero_changes_nothing():
  x = heads()
  np.testing.assert_array_equal(rotary(x, np.zeros((2, 9), int)), x)


def test_rotary_keeps_norms():
  x = heads(size=64)
  given = np.linalg.norm(rotary(x, rows(9, 100)), axis=-1)
  np.testing.assert_allclose(given, np.linalg.norm(x, axis=-1), rtol=1e-5)


@pytest.mark.parametrize('shift', [1, 17, 200])
def test_rotary_scores_depend_on_the_distance(shift):
  q, k = heads(), heads(seed=1)
  score = lambda start: jnp.einsum(
    'btnh,bsnh->bnts', rotary(q, rows(9, start)), rotary(k, rows(9, start))
  )
  np.testing.assert_allclose(score(shift), score(0), atol=2e-4)
  moved = jnp.einsum('btnh,bsnh->bnts', rotary(q, rows(9, shift)), rotary(k, rows(9)))
  assert np.abs(moved - score(0)).max() > 0.1


def test_rotary_keeps_the_dtype_and_turns_in_float32():
  """Position 1001 is no bfloat16 number: angles in it would be off by radians."""
  x, positions = jnp.asarray(heads(), jnp.bfloat16), rows(9, 1001)
  given = rotary(x, positions)
  assert given.dtype == jnp.bfloat16
  exact = rotary(x.astype(jnp.float32), positions)
  np.testing.assert_allclose(given.astype(jnp.float32), exact, rtol=2**-8, atol=1e-6)


def test_sinusoidal():
  """PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) = cos(the same): section 3.5."""
  positions = np.array([[0, 1, 2, 50], [3, 7, 100, 999]])
  given = sinusoidal(positions, 6)
  assert given.shape == (2, 4, 6)
  for b, t in np.ndindex(2, 4):
    for column in range(6):
      angle = positions[b, t] / 10_000 ** (2 * (column // 2) / 6)
      expected = np.cos(angle) if column % 2 else np.sin(angle)
      assert float(given[b, t, column]) == pytest.approx(expected, abs=1e-4)


def test_sinusoidal_rows_have_one_norm():
  given = np.linalg.norm(sinusoidal(rows(50), 16), axis=-1)
  np.testing.assert_allclose(given, np.sqrt(8), rtol=1e-5)
