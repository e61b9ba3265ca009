"""The pipeline against the same layers one after another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.parallel import Layout, jit, make_mesh, pipeline


def block(w, number, x):
  x, mark = x
  return (jnp.tanh(x @ w) + mark[:, None], mark), {'size': jnp.square(x).mean()}


@pytest.fixture(scope='module')
def given():
  params = jax.random.normal(jax.random.key(0), (8, 16, 16)) / 4
  return params, jax.random.normal(jax.random.key(1), (24, 16)), jnp.arange(24.0) / 24


def plain(params, x, mark):
  sizes = []
  for w in params:
    sizes.append(jnp.square(x).mean())
    x = jnp.tanh(x @ w) + mark[:, None]
  return x, sum(sizes)


def both(fn):
  def compute(params, x, mark):
    value, back = jax.vjp(lambda p, x: fn(p, x, mark), params, x)
    return value, back((jnp.ones_like(value[0]), jnp.ones_like(value[1])))

  return compute


@pytest.fixture(scope='module')
def expected(given):
  return jax.device_get(jax.jit(both(plain))(*given))


@pytest.mark.parametrize(('mesh', 'microbatches'), [
  ({'pipe': 4, 'data': 2}, 2),
  ({'pipe': 4, 'data': 2}, 12),
  ({'pipe': 8}, 4),
  ({'pipe': 2, 'data': 2, 'model': 2}, 12),
])  # fmt: skip
def test_values_and_gradients(mesh, microbatches, given, expected):
  def run(params, x, mark):
    (y, _), aux = pipeline(block, params, (x, mark), microbatches)
    return y, aux['size']

  (y, size), grads = jax.device_get(jit(both(run), Layout(make_mesh(mesh)))(*given))
  (y_, size_), grads_ = expected
  np.testing.assert_allclose(y, y_, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(size, size_, rtol=1e-5)
  for a, b in zip(grads, grads_, strict=True):
    assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)


def test_every_layer_and_microbatch_has_a_number_of_its_own(given):
  def count(w, number, x):
    return x, {'sum': number.astype(jnp.float32), 'square': number.astype(jnp.float32) ** 2}

  run = lambda p, x: pipeline(count, p, x, 4)[1]
  aux = jit(run, Layout(make_mesh({'pipe': 4, 'data': 2})))(given[0], given[1])
  numbers = np.arange(8 * 4)
  assert float(aux['sum']) * 4 == numbers.sum()
  assert float(aux['square']) * 4 == np.square(numbers).sum()


def test_what_does_not_divide(given):
  def run(p, x, m):
    return jit(lambda p, x: pipeline(lambda w, n, x: (x, {}), p, x, m), Layout(
      make_mesh({'pipe': 8})))(p, x)  # fmt: skip

  with pytest.raises(InputError, match='6 layers are not divisible by mesh.pipe=8'):
    run(given[0][:6], given[1], 4)
  with pytest.raises(InputError, match='24 rows are not divisible by 7 microbatches'):
    run(given[0], given[1], 7)
