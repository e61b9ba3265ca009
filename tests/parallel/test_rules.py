"""Layers that choose their own collectives follow the rules: cut or not, they are one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.models.moe import MoE, MoEConfig
from bmx.ops.attention import attend
from bmx.ops.ring import zigzag
from bmx.parallel import Layout, jit, make_mesh, per_example, unbox

MOE = MoE(MoEConfig(12, 4, 2, 0.0))


def layout(mesh, **rules):
  return Layout(make_mesh(mesh, jax.devices()[: int(np.prod([1, *mesh.values()]))]), rules)


@pytest.fixture(scope='module')
def moe():
  x = jax.random.normal(jax.random.key(0), (8, 4, 8))
  params = unbox(jax.jit(MOE.init)(jax.random.key(1), x)['params'])
  params = jax.tree.map(lambda w: w * 20, params)
  return params, x, moe_gradient(params, x)


def moe_gradient(params, x, where=None):
  loss = lambda p, x: (MOE.apply({'params': p}, x)[0] * jnp.cos(x)).sum()
  return (jit(jax.value_and_grad(loss, (0, 1)), where or layout({})))(params, x)


def near(given, expected):
  for a, b in zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


@pytest.mark.parametrize(('mesh', 'rules'), [
  ({'model': 2}, {'mlp': ()}),
  ({'model': 2, 'expert': 2}, {'mlp': (), 'expert': ('expert', 'model')}),
  ({'model': 2, 'expert': 2}, {'batch': ('data', 'fsdp')}),
  ({'data': 2, 'seq': 2, 'expert': 2}, {'mlp': ('seq',)}),
  ({'data': 2, 'expert': 2}, {'expert': ()}),
], ids=str)  # fmt: skip
def test_dropless_experts_follow_the_rules(mesh, rules, moe):
  params, x, expected = moe
  near(moe_gradient(params, x, layout(mesh, **rules)), expected)


def test_dropless_experts_under_the_rules_of_one_example(moe):
  params, x, _ = moe

  def apply(params, x):
    with per_example():
      return MOE.apply({'params': params}, x)[0]

  expected = jax.jit(lambda p, x: MOE.apply({'params': p}, x)[0])(params, x)
  near(jit(apply, layout({'data': 2, 'expert': 2}))(params, x), expected)


HEADS = [(8, 2, 4), (4, 4, 4), (12, 6, 4), (8, 1, 2)]


@pytest.mark.parametrize(('heads', 'keys', 'model'), HEADS)
def test_a_ring_of_cut_query_heads_and_whole_key_heads(heads, keys, model):
  random = np.random.default_rng(0)
  order = zigzag(8, 2)
  shapes = [(2, 8, n, 4) for n in (heads, keys, keys, heads)]
  q, k, v, g = (random.normal(size=s).astype(np.float32) for s in shapes)
  at = np.broadcast_to(order, (2, 8)).astype(np.int32)

  def total(impl, positions, g):
    fn = lambda q, k, v: (attend(q, k, v, causal=True, impl=impl, positions=positions) * g).sum()
    return jax.value_and_grad(fn, (0, 1, 2))

  expected = jax.jit(total('xla', None, g))(q, k, v)
  where = layout({'seq': 2, 'model': model}, kv=())
  loss, grads = jit(total('ring', at, g[:, order]), where)(*(x[:, order] for x in (q, k, v)))
  back = [np.asarray(x)[:, np.argsort(order)] for x in grads]
  near((loss, back), (expected[0], list(expected[1])))


def test_cut_key_heads_and_whole_query_heads_are_refused():
  q = jnp.zeros((2, 8, 4, 4))
  with pytest.raises(InputError, match=r"rules.kv=\('model',\): expected \(\)"):
    jit(lambda q: attend(q, q, q, impl='ring'), layout({'seq': 2, 'model': 2}, heads=()))(q)
