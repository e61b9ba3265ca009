"""Image models: training on 8 virtual devices is training on one."""

import jax
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core import tree
from bmx.parallel import jit
from bmx.train.feed import Feed
from bmx.train.state import state_spec
from bmx.train.step import make_dispatch, make_train_step
from tests.conftest import ROOT

STEPS = 3
MODELS = {
  'resnet': {
    'call': 'bmx.models.resnet:ResNet', 'num_outputs': 10, 'stages': (1, 1), 'features': 8,
    'stem': 'small',
  },
  'vit': {
    'call': 'bmx.models.vit:ViT', 'num_outputs': 10, 'image_size': 8, 'patch_size': 2, 'width': 16,
    'depth': 2, 'heads': 2, 'scan': True, 'drop_path': 0.2,
  },
}  # fmt: skip
DIGITS = 'digits_mlp', ['data.crop=0']
SIGLIP = ['task.kind=sigmoid', 'task.model.bias=True', 'task.model.image.pool=attention',
          'task.model.image.project=False', 'task.model.text.causal=False',
          'task.model.text.pool=last', 'task.model.text.head_bias=True']  # fmt: skip
RECIPES = {
  'clip': ('emoji_clip', ['task.model.image.depth=1', 'task.model.text.scan=True']),
  'siglip': ('emoji_clip', ['task.model.image.depth=1', *SIGLIP]),
  'captions': ('emoji_captions', ['task.model.vocab_pad=4']),
}
CASES = [
  ('resnet', {'data': 2, 'fsdp': 4}),
  ('vit', {'data': 1, 'fsdp': 4, 'model': 2}),
  ('clip', {'data': 8}),
  ('clip', {'data': 1, 'fsdp': 4, 'model': 2}),
  ('siglip', {'data': 8}),
  ('siglip', {'data': 1, 'fsdp': 4, 'model': 2}),
  ('captions', {'data': 8}),
  ('captions', {'data': 1, 'fsdp': 4, 'model': 2}),
]


def train(model, mesh):
  """-> losses of every step, the state, its abstract shapes."""
  recipe, words = RECIPES.get(model, DIGITS)
  config, _ = recipes.load(str(ROOT / f'configs/{recipe}.py:tiny'), words)
  plain = recipes.plain(config)
  if model in MODELS:
    plain['task']['model'] = MODELS[model]
  plain['optimizer'] = {'call': 'bmx.optim.optimizers:sgd', 'momentum': 0.9}
  plain['schedule']['peak'] = 0.01
  plain['mesh'] |= mesh
  devices = jax.devices() if mesh else jax.devices()[:1]
  x = experiment.build(recipes.from_plain(plain), devices=devices)
  spec, feed = state_spec(x), Feed(x.data, x.layout, 1)
  constants, state, losses = feed.constants(), spec.create(), []
  dispatch = make_dispatch(make_train_step(x.grad_fn, x.tx), feed.take, 0, 1)
  program = jit(dispatch, x.layout, out_shardings=(spec.shardings, None, None))
  for group, _ in feed.groups([(step, 1) for step in range(STEPS)]):
    state, sums, _ = program(state, constants, group, np.int32(1))
    losses.append(float(sums['loss'][0] / sums['loss'][1]))
  return np.array(losses), state


def vector(leaves):
  return np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(leaves)])


@pytest.fixture(scope='module')
def alone():
  """One device's losses and state, trained once for each model."""
  return {model: train(model, {}) for model in dict(CASES)}


@pytest.mark.parametrize(('model', 'mesh'), CASES)
def test_eight_devices_equal_one(model, mesh, alone):
  expected, one = alone[model]
  losses, state = train(model, mesh)
  np.testing.assert_allclose(losses, expected, rtol=1e-5)
  for ours, theirs in ((state.params, one.params), (state.collections, one.collections)):
    a, b = (vector(x) if jax.tree.leaves(x) else np.ones(1) for x in (ours, theirs))
    assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)
  kernels = [x for k, x in tree.named(state.params).items() if k.endswith('kernel') and x.ndim > 2]
  kinds = {axis for axis in ('fsdp', 'model') if mesh.get(axis, 1) > 1}
  for axis in kinds:
    sharded = sum(x.size for x in kernels if axis in str(x.sharding.spec))
    assert sharded > 0.9 * sum(x.size for x in kernels), axis
