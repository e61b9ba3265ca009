"""Ghost clipping: the sums of `Clipped`, and which kernels have norms without gradients."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bmx.adapt.lora import LoRA
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Facts
from bmx.models.cnn import CNN
from bmx.models.gpt import GPT
from bmx.models.layers import Einsum
from bmx.models.mlp import MLP
from bmx.parallel import jit
from bmx.parallel.sharding import unbox
from bmx.privacy import Clipped, GhostClipped, Noised, ghost
from bmx.privacy.noise import Scales
from bmx.tasks.classification import Classification
from bmx.tasks.language import CausalLM
from bmx.train.gradients import Gradient, GradWrapper
from bmx.train.state import plan_state
from bmx.train.step import make_train_step
from tests.privacy.tasks import NOISE, SECRET, flat, layout, rows, spec, tokens


def images(n=16):
  random = np.random.default_rng(0)
  return {
    'image': random.normal(size=(n, 8, 8, 1)).astype(np.float32),
    'label': random.integers(0, 3, n).astype(np.int32),
    'weights': np.ones(n, np.float32),
  }


def gpt(**words):
  return GPT(**{'vocab_size': 300, 'max_seq_len': 8, 'width': 32, 'depth': 2, 'heads': 2, **words})


TASKS = {
  # name: (task, batch, parameters whose gradients of single examples exist)
  'mlp': (
    Classification(MLP(3, (8, 8), dropout=0.5, norm='layer')), rows,
    '.*(bias|scale)',
  ),
  'cnn': (Classification(CNN(3, (8, 16), 3, (16,), 'tanh')), images, 'conv_0/kernel|.*/bias'),
  'gpt, scanned': (
    CausalLM(gpt(scan=True, tied=False, dropout=0.1)), tokens,
    'position|.*(bias|scale)',
  ),
  'gpt, rotary, tied, recomputed': (
    CausalLM(gpt(tied=True, remat='full', positions='rotary', norm='rms', gated=True)),
    tokens, 'embed/table|.*(bias|scale)',
  ),
  'lora': (
    LoRA(CausalLM(gpt(depth=1)), rank=2, train='norm_out'), tokens, 'adapters/.*|trained/.*',
  ),
}  # fmt: skip


def variables_of(task, batch):
  return unbox(dict(jax.jit(task.init)(NOISE, batch)))


def loss_of(task, variables):
  def loss(params, example, row):
    one = jax.tree.map(lambda x: x[None], example)
    result = task.loss({**variables, 'params': params}, one, NOISE.fold(row), train=True)
    return result.sum, result.metrics['loss']

  return loss


@pytest.mark.parametrize('name', TASKS)
def test_sums_are_those_of_gradients_of_examples(name):
  """Rows without weight and examples with NaN add zero; dropout differs by row alike."""
  task, data, others = TASKS[name]
  batch = data()
  variables = variables_of(task, batch)
  batch['weights'][3:5] = 0
  for key in ('x', 'image'):
    if key in batch:
      batch[key][7] = np.nan
  clipped, ghosts = (jax.jit(C(Gradient(task), adaptive=True)) for C in (Clipped, GhostClipped))
  for clip in 2.0 ** np.arange(-3, 8, 0.2):  # the first that is above some norms and below others
    given = variables | {'privacy': {'clip': jnp.float32(clip), 'within': jnp.float32(0)}}
    expected = clipped(given, batch, NOISE)
    if abs(float(expected.collections['privacy']['within'])) < float(expected.count) / 2:
      break
  else:
    pytest.fail('all norms are between two of the clips')
  found = ghosts(given, batch, NOISE)
  difference = flat(found.sum) - flat(expected.sum)
  assert np.linalg.norm(difference) < 1e-6 * np.linalg.norm(flat(expected.sum))
  for given, reference in zip(found[1:], expected[1:], strict=True):
    np.testing.assert_allclose(flat(given), flat(reference), rtol=1e-6)
  kernels = ghost.products(loss_of(task, variables), variables['params'], batch)
  left = [k for k in tree.named(variables['params']) if k not in kernels]
  assert left == [k for k in tree.named(variables['params']) if re.fullmatch(others, k)]


def test_the_norm_of_a_product_is_numpys():
  """‖xᵀ g‖² in numpy, with float64."""
  random = np.random.default_rng(0)
  x, g = random.normal(size=(7, 5)), random.normal(size=(7, 3))
  found = ghost.gram(jnp.float32(x), jnp.float32(g))
  np.testing.assert_allclose(found, np.square(x.T @ g).sum(), rtol=1e-5)


class Twice(nn.Module):
  """A kernel that two products read."""

  @property
  def facts(self):
    return Facts(num_outputs=3)

  @nn.compact
  def __call__(self, x, *, train=False):
    layer = Einsum('bd,df->bf', (6, 6), (None, None), name='layer')
    x = jnp.tanh(layer(jnp.tanh(layer(x))))
    return Einsum('bd,df->bf', (6, 3), (None, None), name='head')(x)


class Penalized(Twice):
  """A kernel that something besides its product reads."""

  @nn.compact
  def __call__(self, x, *, train=False):
    layer = Einsum('bd,df->bf', (6, 6), (None, None), name='layer')
    y = jnp.tanh(layer(x)) + jnp.square(layer.weight()).sum()
    return Einsum('bd,df->bf', (6, 3), (None, None), name='head')(y)


@pytest.mark.parametrize('model', [Twice(), Penalized()], ids=lambda m: type(m).__name__)
def test_a_kernel_of_two_uses_has_gradients(model):
  """The norm of a sum of gradients is not that of its parts."""
  task, batch = Classification(model), rows()
  variables = variables_of(task, batch)
  kernels = ghost.products(loss_of(task, variables), variables['params'], batch)
  assert kernels == {'head/kernel': 'head.product'}
  sums = [C(Gradient(task), 0.5)(variables, batch, NOISE).sum for C in (Clipped, GhostClipped)]
  assert np.linalg.norm(flat(sums[0]) - flat(sums[1])) < 1e-6


def test_a_kernel_that_an_interceptor_changes_has_gradients():
  task, batch = Classification(MLP(3, (8,))), rows()
  variables = variables_of(task, batch)

  def halved(next_fun, args, kwargs, context):
    if context.method_name != 'product':
      return next_fun(*args, **kwargs)
    x, w = args
    return next_fun(x, jnp.where(w > 0, w, 0.5 * w))

  with nn.intercept_methods(halved):
    assert not ghost.products(loss_of(task, variables), variables['params'], batch)


def trained(where):
  """Parameters after a step of a GPT."""
  task, batch = CausalLM(gpt(depth=1, tied=False, vocab_size=64)), tokens()
  grad_fn = Noised(GhostClipped(Gradient(task), 30.0), 30.0, 12.0, Scales(0.1, 1.0))
  tx = optax.sgd(0.5)
  plan = plan_state(task, tx, spec(batch), where, grad_fn=grad_fn)
  run = jit(make_train_step(grad_fn, tx), where, out_shardings=(plan.shardings, None))
  return flat(run(plan.create(), batch, SECRET)[0].params)


def test_eight_devices_are_one():
  alone, mesh = trained(layout()), trained(layout(8, data=2, fsdp=2, model=2))
  assert np.linalg.norm(mesh - alone) < 1e-6 * np.linalg.norm(alone)


def test_a_batch_without_examples_adds_zero():
  task, batch = TASKS['mlp'][0], rows(4)
  variables = variables_of(task, batch)
  batch['x'][:] = np.nan
  found = GhostClipped(Gradient(task))(variables, batch, NOISE)
  assert float(found.count) == 0 and not flat(found.sum).any()


def test_another_gradient_is_refused():
  with pytest.raises(InputError, match='method=ghost: .* of a task, found GradWrapper'):
    GhostClipped(GradWrapper(Gradient(TASKS['mlp'][0])))


def test_large_parameters_with_gradients_are_named(monkeypatch, caplog):
  monkeypatch.setattr(ghost, 'LARGE', 1000)
  task, batch = CausalLM(gpt(depth=1)), tokens(2)
  variables = variables_of(task, batch)
  ghost.products(loss_of(task, variables), variables['params'], batch)
  assert 'gradients of single examples exist of embed/table (9,600 values)' in caplog.text
