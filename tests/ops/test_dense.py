"""The dense layers' contraction beside jnp.einsum: values, derivatives of every kind, cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core import costs
from bmx.ops import dense
from bmx.ops.dense import contract

# equation, shape of x, shape of w: w wider than x, narrower, of three dimensions on either side.
CASES = [
  ('bd,df->bf', (6, 4), (4, 9)),
  ('bd,df->bf', (6, 9), (9, 4)),
  ('btd,dnh->btnh', (2, 5, 4), (4, 3, 2)),
  ('btnh,nhd->btd', (2, 5, 3, 2), (3, 2, 4)),
]


def draw(*shapes):
  random = np.random.default_rng(0)
  return [jnp.asarray(random.normal(size=s), jnp.float32) for s in shapes]


@pytest.mark.parametrize('platform', ['cpu', 'gpu'])  # copies a transpose there only
@pytest.mark.parametrize(('equation', 'left', 'right'), CASES)
def test_derivatives_are_those_of_einsum(equation, left, right, platform, monkeypatch):
  monkeypatch.setattr(dense, 'platform', lambda: platform)
  x, w, dx, dw = draw(left, right, left, right)

  def derivatives(product):
    of = lambda x, w: jnp.sin(product(equation, x, w)).sum()

    @jax.jit
    def run(x, w, dx, dw):
      gradient, hessian = jax.jvp(jax.grad(of, (0, 1)), (x, w), (dx, dw))
      tangent = jax.jvp(of, (x, w), (dx, dw))[1]
      constant_input = jax.grad(of, 1)(x, w)  # as in a first layer
      return product(equation, x, w), gradient, hessian, tangent, constant_input

    return run(x, w, dx, dw)

  close = lambda a, b: np.testing.assert_allclose(a, b, 2e-5, 2e-5)
  jax.tree.map(close, derivatives(contract), derivatives(jnp.einsum))


def test_gradients_of_every_example():
  x, w = draw((6, 4), (4, 9))
  of = lambda product: lambda w, x: jnp.sin(product('bd,df->bf', x[None], w)).sum()
  each = lambda product: jax.jit(jax.vmap(jax.grad(of(product)), (None, 0)))(w, x)
  np.testing.assert_allclose(each(contract), each(jnp.einsum), 1e-5, 1e-6)


@pytest.mark.parametrize(('equation', 'left', 'right'), CASES)
def test_costs_are_those_of_einsum(equation, left, right):
  x, w = draw(left, right)
  of = lambda product: lambda x, w: product(equation, x, w).sum()
  for argument in (0, 1):
    ours, plain = (
      costs.count(jax.grad(of(p), argument), x, w).flops for p in (contract, jnp.einsum)
    )
    assert ours == plain


def test_mixed_precision():
  x, w = (a.astype(jnp.bfloat16) for a in draw((6, 4), (4, 9)))
  assert contract('bd,df->bf', x, w).dtype == jnp.bfloat16
  grads = jax.grad(lambda w: contract('bd,df->bf', x, w).astype(jnp.float32).sum())(w)
  assert grads.dtype == jnp.bfloat16
