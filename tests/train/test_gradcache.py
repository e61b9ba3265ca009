"""GradCache: micro-batches with the gradient of the whole batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.data.images.captioned_digits import digits
from bmx.data.recommend.synthetic import ratings
from bmx.models.clip import CLIP, TextTower
from bmx.models.resnet import ResNet
from bmx.models.towers import TwoTowers
from bmx.models.vit import ViT
from bmx.parallel import Layout, jit, make_mesh, unbox
from bmx.tasks.contrastive import Contrastive
from bmx.tasks.retrieval import Retrieval
from bmx.train.gradcache import GradCache
from bmx.train.gradients import Accumulate, Gradient
from tests.parallel.test_vision import vector

B = 16
NOISE = Noise(jax.random.PRNGKey(5), jnp.int32(0))


def clip(dropout=0.0, **options):
  image = ViT(8, 16, 8, width=16, depth=1, heads=2, dropout=dropout)
  text = TextTower(66, 8, 8, end_token=3, width=16, depth=1, heads=2, dropout=dropout)
  return CLIP(image, text, **options)


@functools.cache
def pairs():
  data = digits(train=False)
  batch = data.rows(np.arange(B), np.arange(B))
  batch['caption'][3] = batch['caption'][2]  # a duplicate
  batch['weights'][5] = 0
  return batch


@functools.cache
def users():
  data = ratings(60, 30, 12, split='train')
  towers = TwoTowers(60, 30, width=4, sparse=False)
  return Retrieval(towers, data.metadata, l2=0.1), data.rows(np.arange(B), np.arange(B))


class Noisy(Contrastive):
  """Images with noise: the whole batch is prepared once, before it is split."""

  def prepare(self, batch, noise, *, train):
    return batch | {'image': batch['image'] + jax.random.normal(noise.key, batch['image'].shape)}


CASES = {
  'softmax': lambda: (Noisy(clip()), pairs()),
  'sigmoid': lambda: (Contrastive(clip(bias=True), kind='sigmoid'), pairs()),
  'retrieval': users,
}


def run(grad_fn, variables, batch, **mesh):
  layout = Layout(make_mesh(mesh, jax.devices()[: int(np.prod([1, *mesh.values()]))]))
  return jax.device_get(jit(grad_fn, layout)(variables, batch, NOISE))


def assert_equal(found, expected):
  """Loss, metrics and gradient, to 1e-6 of the whole."""
  assert found.metrics.keys() == expected.metrics.keys()
  for name, value in expected.metrics.items():
    np.testing.assert_allclose(found.metrics[name], value, rtol=1e-6, atol=1e-7, err_msg=name)
  assert found.count == expected.count
  a, b = vector(found.sum), vector(expected.sum)
  assert np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(b)


@pytest.mark.parametrize('case', CASES)
def test_micro_batches_are_the_whole_batch(case):
  task, batch = CASES[case]()
  variables = unbox(task.init(NOISE, batch))
  expected = run(Gradient(task), variables, batch)
  assert np.linalg.norm(vector(expected.sum)) > 0.01
  assert_equal(run(GradCache(Gradient(task), 4, B), variables, batch), expected)


def test_dropout_is_the_same_in_both_passes():
  """Equal to the derivative of the whole: forward passes of micro-batches, joined, and the loss."""
  task, batch, steps = Contrastive(clip(dropout=0.3)), pairs(), 2
  variables = unbox(task.init(NOISE, batch))

  def whole(variables, batch, noise):
    def loss(params):
      outs = [
        task.forward({'params': params}, jax.tree.map(lambda x, i=i: x[i::steps], batch),
                     noise.fold(i), train=True)[0].value
        for i in range(steps)
      ]  # fmt: skip
      join = lambda *x: jnp.stack(x, 1).reshape(B, -1) if x[0].ndim else x[0]
      return task.score(jax.tree.map(join, *outs), batch, train=True)

    (total, count, metrics), pull = jax.vjp(loss, variables['params'])
    ones = (jnp.ones(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, metrics))
    return pull(ones)[0], total, count

  grads, total, count = run(whole, variables, batch)
  found = run(GradCache(Gradient(task), steps, B), variables, batch)
  np.testing.assert_allclose(found.metrics['loss'], [total, count], rtol=1e-6)
  a, b = vector(found.sum), vector(grads)
  assert np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(b)
  dry = run(GradCache(Gradient(Contrastive(clip())), steps, B), variables, batch)
  assert abs(dry.metrics['loss'][0] - total) > 1e-3  # dropout was there


@pytest.mark.parametrize('mesh', [{'data': 8}, {'fsdp': 4, 'model': 2}])
def test_eight_devices_are_one(mesh):
  task, batch = CASES['softmax']()
  variables = unbox(task.init(NOISE, batch))
  grad_fn = GradCache(Gradient(task), 2, B)
  one, eight = (run(grad_fn, variables, batch, **m) for m in ({}, mesh))
  np.testing.assert_allclose(eight.metrics['loss'], one.metrics['loss'], rtol=1e-6)
  a, b = vector(eight.sum), vector(one.sum)
  assert np.linalg.norm(a - b) <= 2e-6 * np.linalg.norm(b)


def test_activations_of_one_micro_batch_exist_at_a_time():
  task = Contrastive(clip())
  batch = {k: np.repeat(v, 16, 0) for k, v in pairs().items()}
  variables = unbox(task.init(NOISE, pairs()))
  layout = Layout(make_mesh({}, jax.devices()[:1]))
  size = lambda grad_fn: (
    (
      jit(grad_fn, layout).lower(variables, batch, NOISE).compile().memory_analysis()
    ).temp_size_in_bytes
  )
  whole = size(Gradient(task))
  assert size(GradCache(Gradient(task), 8, 16 * B)) < whole / 3


def test_mistakes_are_named():
  task = Contrastive(clip())
  plain = Gradient(task)
  norm = ResNet(8, stages=(1,), features=4, stem='small')
  cases = [
    (lambda: GradCache(plain, 3, B), 'grad.steps=3: expected a divisor of batch_size=16'),
    (lambda: GradCache(plain, 0, B), 'grad.steps=0'),
    (lambda: GradCache(GradCache(plain, 2, B), 2, B), 'grad.inner=GradCache: .* plain gradient'),
    (lambda: Accumulate(GradCache(plain, 2, B), 2, B), 'bmx.train.gradcache:GradCache'),
    (lambda: GradCache(Gradient(Contrastive(clip().clone(image=norm))), 2, B), 'batch norm'),
    (lambda: GradCache(Gradient(Retrieval(TwoTowers(9, 7))), 2, B), 'set task.model.sparse=False'),
  ]
  for call, message in cases:
    with pytest.raises(InputError, match=message):
      call()
  from bmx.tasks.classification import Classification

  with pytest.raises(InputError, match='Classification does not; use .*:Accumulate'):
    GradCache(Gradient(Classification(ViT(3))), 2, B)
