"""Pooling beside Flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bmx.models.cnn import halve


def test_halving_is_max_pooling():
  x = jax.random.normal(jax.random.PRNGKey(0), (2, 7, 6, 3))
  pooled = lambda x: nn.max_pool(x, (2, 2), (2, 2))
  of = lambda f: jax.grad(lambda x: jnp.sin(f(x)).sum())(x)
  np.testing.assert_array_equal(halve(x), pooled(x))
  np.testing.assert_allclose(of(halve), of(pooled), rtol=1e-6)
