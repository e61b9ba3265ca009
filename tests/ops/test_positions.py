"""Positions against complex numbers and against the papers' formulas."""

import jax.numpy as jnp
import numpy as np
import pytest

from bmx.ops.positions import rotary, scaled, sinusoidal


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
  """Position 1001 is not a bfloat16 number: angles in it would be off by radians."""
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


def llama3(factor, low, high, length):
  return {
    'factor': factor,
    'low_freq_factor': low,
    'high_freq_factor': high,
    'original_max_position_embeddings': length,
  }


LLAMA3 = llama3(8.0, 1.0, 4.0, 8192)  # of Llama 3.1
SCALINGS = [LLAMA3, llama3(32.0, 1.0, 4.0, 8192), llama3(2.0, 0.5, 30.0, 512)]


def frequencies(size=128, theta=500_000.0):
  return theta ** (-2 * np.arange(size // 2) / size)


def published(frequency, factor, low, high, length):
  """Llama 3.1's `apply_scaling`, a wave at a time, in float64."""
  wavelength = 2 * np.pi / frequency
  if wavelength < length / high:
    return frequency
  if wavelength > length / low:
    return frequency / factor
  smooth = (length / wavelength - low) / (high - low)
  return (1 - smooth) * frequency / factor + smooth * frequency


@pytest.mark.parametrize('scaling', SCALINGS)
def test_scaled_is_the_published_rule(scaling):
  given = scaled(jnp.asarray(frequencies(), jnp.float32), **scaling)
  expected = [published(f, *scaling.values()) for f in frequencies()]
  np.testing.assert_allclose(given, expected, rtol=2e-5)
  slower = frequencies() / np.asarray(given)
  np.testing.assert_allclose(slower[[0, -1]], [1, scaling['factor']], rtol=1e-5)
  between = (slower > 1.001) & (slower < 0.999 * scaling['factor'])
  assert between.any(), 'some waves are a mixture'


@pytest.mark.parametrize('scaling', SCALINGS)
def test_scaled_is_hugging_faces(scaling):
  pytest.importorskip('torch')
  transformers = pytest.importorskip('transformers')
  rope = pytest.importorskip('transformers.modeling_rope_utils')
  parameters = {
    'rope_type': 'llama3',
    'rope_theta': 500_000.0,
    **scaling,
  }
  config = transformers.LlamaConfig(
    hidden_size=512, num_attention_heads=4, rope_parameters=parameters,
    max_position_embeddings=131_072,
  )  # fmt: skip
  expected, attention = rope.ROPE_INIT_FUNCTIONS['llama3'](config, 'cpu')
  assert attention == 1.0
  given = scaled(jnp.asarray(frequencies(), jnp.float32), **scaling)
  np.testing.assert_allclose(given, expected.numpy(), rtol=2e-5)


def test_rotary_turns_by_scaled_frequencies():
  """As many radians a position as the rule says: (1, 0) at position p is (cos, sin) of p · f."""
  x = np.zeros((1, 5, 1, 128), np.float32)
  x[..., :64] = 1
  positions = np.array([[0, 1, 7, 100, 1000]])
  turned = np.asarray(rotary(x, positions, 500_000.0, LLAMA3))[0, :, 0]
  angle = positions[0][:, None] * np.array([published(f, *LLAMA3.values()) for f in frequencies()])
  np.testing.assert_allclose(turned[:, :64], np.cos(angle), atol=3e-4)
  np.testing.assert_allclose(turned[:, 64:], np.sin(angle), atol=3e-4)
  plain = np.asarray(rotary(x, positions, 500_000.0))[0, :, 0]
  assert np.abs(turned - plain).max() > 0.1
