"""Gradients of single examples on a mesh: as on one device, and as in a loop over examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.models.gpt import GPT
from bmx.models.mlp import MLP
from bmx.ops.losses import cross_entropy
from bmx.parallel import Layout, jit, make_mesh, vmap_examples
from bmx.parallel.sharding import param_pspecs, shardings
from tests.models.weights import drawn, shapes

B, T, V, CLIP = 8, 8, 16, 0.05
RANDOM = np.random.default_rng(0)
MODELS = {
  'mlp': (
    MLP(4, (16,)),
    {'x': RANDOM.normal(size=(B, 8)).astype(np.float32), 'label': RANDOM.integers(0, 4, B)},
  ),
  'gpt': (
    GPT(V, T, width=16, depth=2, heads=4, scan=True),
    {'x': RANDOM.integers(0, V, (B, T)), 'label': RANDOM.integers(0, V, (B, T))},
  ),
}
MESHES = {'data': {'data': 8}, 'fsdp x model': {'fsdp': 4, 'model': 2}}


def clipped(model):
  """The gradient of one example, scaled to a norm of at most CLIP."""

  def loss(params, row):
    out = model.apply({'params': params}, row['x'][None])
    return cross_entropy(out, row['label'][None]).sum()

  def gradient(params, row):
    grad = jax.grad(loss)(params, row)
    norm = jnp.sqrt(sum(jnp.square(g).sum() for g in jax.tree.leaves(grad)))
    return jax.tree.map(lambda g: g * jnp.minimum(1.0, CLIP / norm), grad)

  return gradient


def summed(name, mesh):
  model, rows = MODELS[name]
  rows = {k: v.astype(np.int32) if v.dtype == np.int64 else v for k, v in rows.items()}
  layout = Layout(make_mesh(mesh, jax.devices()[: int(np.prod([1, *mesh.values()]))]))
  boxed = jax.eval_shape(model.init, jax.random.PRNGKey(0), rows['x'])['params']
  places = shardings(param_pspecs(boxed, layout), layout.mesh)
  params = jax.device_put(drawn(shapes(model, rows['x'])['params']), places)
  rows = jax.device_put(rows, layout.sharding('batch'))

  def total(params, rows):
    each = vmap_examples(clipped(model), (None, 0))(params, rows)
    return jax.tree.map(lambda g: g.sum(0), each)

  return jax.device_get(jit(total, layout)(params, rows))


@pytest.fixture(scope='module', params=MODELS)
def alone(request):
  return request.param, summed(request.param, {})


def flat(grads):
  return np.concatenate([x.ravel() for x in tree.named(grads).values()])


def apart(given, expected):
  return np.linalg.norm(flat(given) - flat(expected)) / np.linalg.norm(flat(expected))


@pytest.mark.parametrize('mesh', MESHES.values(), ids=MESHES)
def test_a_mesh_is_one_device(alone, mesh):
  name, expected = alone
  assert apart(summed(name, mesh), expected) < 1e-6


def test_a_batch_is_a_loop_over_examples(alone):
  name, given = alone
  model, rows = MODELS[name]
  params = drawn(shapes(model, rows['x'][:1])['params'])
  one = jax.jit(clipped(model))
  each = [one(params, {k: v[i] for k, v in rows.items()}) for i in range(B)]
  expected = jax.tree.map(lambda *g: np.sum(g, axis=0), *each)
  assert apart(given, jax.device_get(expected)) < 1e-6
  assert np.linalg.norm(flat(given)) <= B * CLIP


def test_experts_without_a_capacity_are_refused():
  """jax.lax.ragged_dot has no rule for a batch of examples."""
  sizes = jnp.array([2, 2], jnp.int32)
  loss = lambda w, x: jax.lax.ragged_dot(x, w, sizes).sum()
  with pytest.raises(InputError, match=r'capacity_factor=0 .*: expected above 0'):
    vmap_examples(jax.grad(loss), (None, 0))(jnp.ones((2, 3, 4)), jnp.ones((5, 4, 3)))
