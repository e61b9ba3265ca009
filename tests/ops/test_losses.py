"""Losses against torch in float64, and against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.ops.losses import binary_cross_entropy, cross_entropy, squared_error


def scores(*shape, scale=3.0, seed=0):
  return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def labels(*shape, classes, seed=1):
  return np.random.default_rng(seed).integers(0, classes, shape)


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 1.0])
def test_cross_entropy(torch, smoothing):
  logits, label = scores(2, 5, 7), labels(2, 5, classes=7)
  expected = torch.nn.functional.cross_entropy(
    torch.tensor(logits, dtype=torch.float64).movedim(-1, 1),
    torch.tensor(label),
    reduction='none',
    label_smoothing=smoothing,
  )
  given = cross_entropy(logits, label, smoothing)
  assert given.shape == (2, 5)
  np.testing.assert_allclose(given, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_binary_cross_entropy(torch):
  logits = np.concatenate([scores(20), [-1e4, -100, -1e-3, 0, 1e-3, 100, 1e4]]).astype(np.float32)
  for label in (np.zeros(27, int), np.ones(27, int)):
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
      torch.tensor(logits, dtype=torch.float64), torch.tensor(label).double(), reduction='none'
    )
    given = binary_cross_entropy(logits, label)
    np.testing.assert_allclose(given, expected.numpy(), rtol=1e-5, atol=1e-7)


def test_squared_error(torch):
  a, b = scores(4, 3), scores(4, 3, seed=2)
  expected = torch.nn.functional.mse_loss(torch.tensor(a), torch.tensor(b), reduction='none')
  np.testing.assert_allclose(squared_error(a, b), expected.mean(-1).numpy(), rtol=1e-6)


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_the_gradient_is_probability_minus_target(smoothing):
  """The gradient of the logits is softmax − target: Bishop 2006, eq. 4.109."""
  logits, label = scores(6, 5), labels(6, classes=5)
  given = jax.grad(lambda x: cross_entropy(x, label, smoothing).sum())(logits)
  probability = np.exp(logits.astype(np.float64))
  probability /= probability.sum(-1, keepdims=True)
  target = (1 - smoothing) * np.eye(5)[label] + smoothing / 5
  np.testing.assert_allclose(given, probability - target, rtol=1e-4, atol=1e-6)


def test_binary_is_two_classes_with_one_score_at_zero():
  logits, label = scores(9), labels(9, classes=2)
  both = np.stack([np.zeros(9, np.float32), logits], -1)
  given = binary_cross_entropy(logits, label)
  np.testing.assert_allclose(given, cross_entropy(both, label), rtol=1e-5, atol=1e-6)


def test_equal_scores_cost_the_logarithm_of_the_classes():
  given = cross_entropy(jnp.full((2, 10), 7.0), jnp.array([0, 9]), 0.3)
  np.testing.assert_allclose(given, np.log(10), rtol=1e-6)


def test_huge_scores_are_finite():
  logits = jnp.array([[1e4, -1e4, 0.0]] * 3)
  np.testing.assert_allclose(cross_entropy(logits, jnp.arange(3)), [0, 2e4, 1e4])
  gradient = jax.grad(lambda x: cross_entropy(x, jnp.arange(3)).sum())(logits)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize('dtype', [jnp.bfloat16, jnp.float16])
def test_losses_are_float32(dtype):
  """Of half-precision scores too: exact for the rounded scores."""
  logits, label = jnp.asarray(scores(4, 300), dtype), labels(4, classes=300)
  given = cross_entropy(logits, label, 0.1)
  assert given.dtype == jnp.float32
  expected = cross_entropy(logits.astype(jnp.float32), label, 0.1)
  np.testing.assert_array_equal(given, expected)
  assert binary_cross_entropy(logits[0], label[:1]).dtype == jnp.float32
  assert squared_error(logits, logits).dtype == jnp.float32
