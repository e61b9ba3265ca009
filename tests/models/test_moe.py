"""Mixture of experts against a loop over tokens in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.models.moe import MoE, MoEConfig, route
from bmx.parallel import unbox

B, T, D, F, E, K = 3, 16, 8, 12, 4, 2


@pytest.fixture(scope='module')
def given():
  x = jax.random.normal(jax.random.key(0), (B, T, D))
  params = unbox(jax.jit(MoE(MoEConfig(F, E, K)).init)(jax.random.key(1), x)['params'])
  params = jax.tree.map(lambda w: w * 20, params)  # a router that decides, experts that differ
  return x, params


def silu(x):
  return x / (1 + np.exp(-x))


def oracle(x, params, capacity):
  """Token by token: first choices of a row before second ones, at most C tokens an expert."""
  x, p = np.asarray(x, np.float64), jax.tree.map(lambda w: np.asarray(w, np.float64), params)
  scores = x @ p['router']['kernel']
  prob = np.exp(scores - scores.max(-1, keepdims=True))
  prob /= prob.sum(-1, keepdims=True)
  out, dropped = np.zeros_like(x), 0
  room = int(np.ceil(T * K / E * capacity)) if capacity else T * K
  for b in range(B):
    taken = np.zeros(E, int)
    best = np.argsort(-prob[b], -1, kind='stable')[:, :K]
    for choice in range(K):
      for t in range(T):
        e = best[t, choice]
        taken[e] += 1
        if taken[e] > min(room, T if capacity else room):
          dropped += 1
          continue
        weight = prob[b, t, e] / prob[b, t, best[t]].sum()
        h = x[b, t] @ p['up'][e] * silu(x[b, t] @ p['gate'][e])
        out[b, t] += weight * (h @ p['down'][e])
  return out, dropped / (B * T * K), prob, scores


@pytest.mark.parametrize('capacity', [0.0, 0.5, 1.0, 1.25, 4.0])
def test_values(capacity, given):
  x, params = given
  y, aux = jax.jit(MoE(MoEConfig(F, E, K, capacity)).apply)({'params': params}, x)
  expected, dropped, prob, scores = oracle(x, params, capacity)
  np.testing.assert_allclose(y, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())
  np.testing.assert_allclose(aux['dropped'], dropped, atol=1e-6)
  assert (capacity in (0.0, 4.0)) == (dropped == 0)
  load = np.bincount(np.argsort(-prob, -1)[..., :K].ravel(), minlength=E) / (B * T * K)
  np.testing.assert_allclose(aux['balance'], E * (load * prob.mean((0, 1))).sum(), rtol=1e-5)
  z = np.square(np.log(np.exp(scores).sum(-1))).mean()
  np.testing.assert_allclose(aux['router_z'], z, rtol=1e-5)


def test_dropless_and_roomy_have_the_same_gradient(given):
  x, params = given
  loss = lambda p, c: jnp.square(MoE(MoEConfig(F, E, K, c)).apply({'params': p}, x)[0]).sum()
  a, b = (jax.jit(jax.grad(loss), static_argnums=1)(params, c) for c in (0.0, 4.0))
  for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert np.linalg.norm(one - other) < 1e-5 * np.linalg.norm(other)


def test_an_even_router_is_balanced():
  """Fedus et al. 2022: the balance loss of uniform routing is 1."""
  scores = jnp.log(jnp.eye(E)[jnp.arange(16) % E] * 1e4 + 1.0)[None]
  weights, chosen, aux = jax.jit(route, static_argnums=1)(scores, 1)
  np.testing.assert_allclose(aux['balance'], 1.0, rtol=1e-3)
  np.testing.assert_array_equal(chosen[0, :, 0], np.arange(16) % E)
  np.testing.assert_allclose(weights, 1.0)


def test_more_choices_than_experts(given):
  with pytest.raises(InputError, match='top_k=5: expected 1 to 4'):
    MoE(MoEConfig(F, E, 5)).apply({'params': given[1]}, given[0])
