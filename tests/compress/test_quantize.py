"""Quantized tasks against numpy's rounding; training that rounds, against rounding afterwards."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bmx.compress.quantize import FakeQuantize, Quantized
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Facts, Noise
from bmx.models.cnn import CNN
from bmx.models.gpt import GPT
from bmx.models.mlp import MLP
from bmx.ops import stored
from bmx.parallel import Layout, jit, make_mesh, unbox
from bmx.tasks.classification import Classification
from bmx.tasks.language import CausalLM
from bmx.train.gradients import Gradient
from bmx.train.state import plan_state
from bmx.train.step import make_train_step

NOISE = Noise(jax.random.PRNGKey(0), jnp.int32(0))
TOKENS = np.random.default_rng(0).integers(0, 16, (8, 9)).astype(np.int32)
BATCH = {'tokens': TOKENS[:, :8], 'targets': TOKENS[:, 1:], 'weights': np.ones((8, 8), np.float32)}
MESHES = [{}, {'fsdp': 4, 'model': 2}]


def layout(mesh):
  return Layout(make_mesh(mesh, jax.devices()[: int(np.prod([1, *mesh.values()]))]))


def gpt(scan=True):
  return CausalLM(GPT(16, 8, width=32, depth=2, heads=4, kv_heads=2, mlp_dim=64, scan=scan))


@functools.cache
def weights(scan=True):
  return jit(lambda: unbox(gpt(scan).init(NOISE, BATCH)['params']), layout({}))()


def losses(task, mesh, params, train=False):
  """Loss of a task that takes plain weights, on a mesh."""
  at = layout(mesh)
  spec = plan_state(task, optax.identity(), {k: jax.ShapeDtypeStruct(v.shape, v.dtype)
                                            for k, v in BATCH.items()}, at)  # fmt: skip
  state = spec.create(None, jax.device_get(tree.named(params)))
  variables = {**state.collections, 'params': state.params}
  run = jit(lambda v, b: task.loss(v, b, NOISE, train=train).sum, at)
  return float(run(variables, BATCH)), variables


@pytest.mark.parametrize(('kind', 'activations'), [
  ('int8', 'int8'), ('fp8', 'fp8'), ('int4', ''),
])  # fmt: skip
def test_the_layouts_agree_and_fake_quantization_is_quantization(kind, activations):
  """Weights are kept as codes; a task that rounds while it trains has the same loss."""
  words = {'kind': kind, 'activations': activations, 'group': 8}
  task = Quantized(gpt(), **words)
  found = [losses(task, mesh, weights())[0] for mesh in MESHES]
  np.testing.assert_allclose(found, found[0], rtol=1e-6)
  fake, _ = losses(FakeQuantize(gpt(), **words), MESHES[1], weights())
  np.testing.assert_allclose(fake, found[0], rtol=1e-6)
  plain, _ = losses(gpt(), {}, weights())
  assert abs(found[0] - plain) > 1e-6


def test_the_loss_is_that_of_rounded_weights():
  """Numpy rounds every kernel of an unstacked model; the plain model computes the loss."""

  def rounded(name, w):
    if not name.endswith('/kernel'):
      return w
    over = (0, 1) if name.endswith('out/kernel') else (0,)
    step = np.abs(w).max(over, keepdims=True) / 127
    return np.round(w / step) * step

  plain = tree.map_named(rounded, jax.device_get(weights(False)))
  found, variables = losses(Quantized(gpt(False)), {}, weights(False))
  np.testing.assert_allclose(found, losses(gpt(False), {}, plain)[0], rtol=1e-6)
  merged = Quantized(gpt(False)).merged_params(variables)
  assert tree.signature(merged) == tree.signature(plain)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), merged, plain)
  whole = tree.nbytes(weights(False))
  assert tree.nbytes(variables) < 0.4 * whole


IMAGES = {'image': np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32),
          'label': np.arange(8, dtype=np.int32) % 3, 'weights': np.ones(8, np.float32)}  # fmt: skip
TABLES = CausalLM(GPT(16, 8, width=32, depth=1, heads=4, tied=False, vocab_pad=8, scan=True))
EXPERTS = CausalLM(GPT(16, 8, width=32, depth=1, heads=4, experts=4, mlp_dim=64))
CONVOLUTIONS = Classification(CNN(3, features=(8,), kernel_size=3, widths=(16,)))


@pytest.mark.parametrize(('inner', 'batch', 'words', 'path', 'mesh'), [
  (TABLES, BATCH, {'kind': 'int4', 'group': 8, 'tables': 'int8'}, 'head/table/int8', MESHES[1]),
  (EXPERTS, BATCH, {'kind': 'int4', 'group': 8}, 'experts/up/int4', {'expert': 4, 'data': 2}),
  (CONVOLUTIONS, IMAGES, {'kind': 'int8'}, 'conv_0/kernel/int8', {'data': 2}),
])  # fmt: skip
def test_other_weights_are_read_as_the_values_that_they_stand_for(inner, batch, words, path, mesh):
  """Tables of rows, experts and convolutions: the plain task with the merged weights."""
  spec = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}
  task, at = Quantized(inner, **words), layout(mesh)
  state = plan_state(task, optax.identity(), spec, at).create()
  variables = {**state.collections, 'params': state.params}
  assert [k for k in tree.named(variables['quantized']) if k.endswith(path)]
  merged = {'params': task.merged_params(jax.device_get(variables))}
  found = [
    jit(lambda v, b, one=one: one.loss(v, b, NOISE, train=False).sum, where)(given, batch)
    for one, given, where in ((task, variables, at), (inner, merged, layout({})))
  ]
  np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.parametrize('activations', ['', 'int8'])
def test_gradients_pass_the_rounding(activations):
  """They are those at the rounded weights and inputs: of the first layer, x̂ᵀ of the error."""
  random = np.random.default_rng(0)
  x = random.normal(size=(16, 6)).astype(np.float32)
  batch = {'x': x, 'label': random.integers(0, 3, 16), 'weights': np.ones(16, np.float32)}
  task = FakeQuantize(Classification(MLP(3, ())), activations=activations)
  params = jax.jit(lambda: unbox(task.init(NOISE, batch)['params']))()
  grads = jax.jit(Gradient(task))({'params': params}, batch, NOISE).sum['head']
  rounding = lambda a, over: np.asarray(stored.dequantize(stored.quantize(a, 'int8', over)))
  rows = rounding(x, (1,)) if activations else x
  logits = rows @ rounding(params['head']['kernel'], (0,)) + params['head']['bias'][None]
  error = np.asarray(jax.nn.softmax(logits)) - np.eye(3)[batch['label']]
  np.testing.assert_allclose(grads['kernel'], rows.T @ error, atol=1e-5)
  np.testing.assert_allclose(grads['bias'], error.sum(0), atol=1e-5)


def trained(task, steps=40):
  """Parameters of a task after some steps from `weights`."""
  spec = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in BATCH.items()}
  tx, at = optax.adam(1e-2), layout({})
  step = jit(make_train_step(Gradient(task), tx), at)
  state = plan_state(task, tx, spec, at).create(None, jax.device_get(tree.named(weights())))
  for _ in range(steps):
    state = step(state, BATCH)[0]
  return state.params


def test_training_lowers_the_loss_of_the_stored_weights():
  """And exactly what they lost in training; weights trained without rounding lose more by it."""
  words = {'kind': 'int4', 'group': 8}
  fake = FakeQuantize(gpt(), **words)
  aware, unaware = trained(fake), trained(gpt())
  stored, _ = losses(Quantized(gpt(), **words), {}, aware)
  np.testing.assert_allclose(losses(fake, {}, aware)[0], stored, rtol=1e-5)
  assert stored < 0.9 * losses(Quantized(gpt(), **words), {}, unaware)[0]


@pytest.mark.parametrize(('words', 'message'), [
  ({'kind': 'int5'}, "'int5': expected one of int8, fp8, int4, nf4; did you mean"),
  ({'kind': 'int4', 'group': 12}, r'/kernel: group=12: expected a divisor of'),
  ({'kind': 'int4', 'activations': 'int8'}, "expected weights of the same kind, not kind='int4'"),
  ({'activations': 'int4'}, "activations='int4': expected one of int8, fp8"),
  ({'tables': 'int4'}, "tables='int4': expected one of int8, fp8"),
  ({'targets': 'querry'}, "targets='querry': expected a regex that matches a kernel"),
])  # fmt: skip
@pytest.mark.parametrize('wrapper', [Quantized, FakeQuantize])
def test_words_that_cannot_be(wrapper, words, message):
  with pytest.raises(InputError, match=message):
    jax.eval_shape(lambda: wrapper(gpt(), **words).init(NOISE, BATCH))


def test_training_with_rounded_activations_is_refused():
  task = Quantized(gpt(), activations='int8')
  with pytest.raises(InputError, match='expected empty in training'):
    losses(task, {}, weights(), train=True)


class Stock(nn.Module):
  """A layer of linen itself beside one of bmx."""

  facts = Facts(num_outputs=3)

  @nn.compact
  def __call__(self, x, *, train=False):
    return MLP(3, ())(nn.Dense(4)(x))


def test_layers_that_cannot_be_intercepted_are_named():
  batch = {'x': np.ones((2, 6), np.float32)}
  with pytest.raises(InputError, match='Dense_0 is a Dense, which cannot be intercepted: expected'):
    jax.eval_shape(lambda: Quantized(Classification(Stock())).init(NOISE, batch))
  task = Quantized(Classification(Stock()), targets='MLP')
  found = jax.eval_shape(lambda: task.init(NOISE, batch))
  assert [*tree.named(unbox(found['quantized']))] == [
    'MLP_0/head/kernel/int8', 'MLP_0/head/kernel/scale',
  ]  # fmt: skip


@pytest.mark.parametrize(('outer', 'inner'), [(Quantized, FakeQuantize), (Quantized, Quantized)])
def test_orders_that_lose_something(outer, inner):
  with pytest.raises(InputError, match='expected another order'):
    outer(inner(gpt()))
