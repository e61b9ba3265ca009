"""Residual networks: how they start, the maps that detectors read, and refused words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.models.resnet import NormConfig, ResidualBlock, ResNet
from tests.models.weights import shapes, variables

IMAGE = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


@pytest.mark.parametrize(('options', 'expected'), [
  ({'depth': 50}, [(8, 256), (4, 512), (2, 1024), (1, 2048)]),
  ({'depth': 18, 'stem': 'small'}, [(32, 64), (16, 128), (8, 256), (4, 512)]),
  ({'stages': (1, 1), 'features': 32, 'stem': 'small'}, [(32, 32), (16, 64)]),
])  # fmt: skip
def test_maps_of_stages(options, expected):
  """Shapes by hand: a stem divides by 4 or by 1, each further stage by 2."""
  model = ResNet(10, **options)
  maps = lambda x: model.init_with_output(jax.random.key(0), x, method='maps')[0]
  found = jax.eval_shape(maps, IMAGE)
  assert [(x.shape[1], x.shape[3]) for x in found] == expected


@pytest.mark.parametrize('bottleneck', [False, True])
@pytest.mark.parametrize('norm', ['batch', 'group'])
def test_a_block_starts_as_its_input(norm, bottleneck):
  """Goyal et al. 2017: with the last scale at 0, only the activation is left of a new block."""
  x = jax.random.normal(jax.random.key(1), (2, 4, 4, 16))
  block = ResidualBlock(4 if bottleneck else 16, 1, bottleneck, NormConfig(norm, groups=2))
  given = block.init(jax.random.key(0), x, train=True)
  y, _ = block.apply(given, x, train=True, mutable=['batch_stats'])
  np.testing.assert_array_equal(y, jax.nn.relu(x))


def test_the_head_reads_the_mean_of_the_last_map():
  model = ResNet(5, stages=(1, 1), features=4, stem='small', norm='group', groups=2)
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  given = variables(model, x)
  last = model.apply(given, x, method='maps')[-1]
  kernel, bias = (np.asarray(given['params']['head'][k]) for k in ('kernel', 'bias'))
  expected = np.asarray(last.mean((1, 2))) @ kernel + bias
  np.testing.assert_allclose(model.apply(given, x), expected, rtol=1e-5, atol=1e-6)
  assert 'batch_stats' not in given and model.facts.coupling == 'none'
  assert ResNet(5).facts.coupling == 'statistics'


@pytest.mark.parametrize(('options', 'message'), [
  ({'depth': 20}, r'depth=20: expected one of 18, 34, 50, 101, 152'),
  ({'block': 'wide'}, r"block='wide': expected 'basic' or 'bottleneck'"),
  ({'stem': 'cifar'}, r"stem='cifar': expected 'imagenet' or 'small'"),
  ({'norm': 'layer'}, r"norm='layer': expected 'batch' or 'group'"),
  ({'stages': (1, 0)}, r'stages=\(1, 0\): expected at least 1'),
  ({'norm': 'group', 'features': 20, 'stages': (1,)}, r'groups=32: expected a divisor of 20'),
])  # fmt: skip
def test_refused_words(options, message):
  with pytest.raises(InputError, match=message):
    shapes(ResNet(10, **options), IMAGE)


def test_refused_inputs():
  with pytest.raises(InputError, match=r'images \[B, I, J, C\]'):
    shapes(ResNet(10, depth=18), jnp.zeros((2, 64)))
