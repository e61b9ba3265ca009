"""Convolutions, norms and pools against PyTorch's, and pooling against Flax's."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.models.convolution import (
  BatchNorm,
  Conv,
  GroupNorm,
  avg_pool,
  max_pool,
  torch_padding,
  upsample,
)
from tests.models.weights import shapes, variables


def image(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def near(ours, theirs):
  """Compares [B, I, J, C] with PyTorch's [B, C, I, J]."""
  theirs = theirs.detach().numpy().transpose(0, 2, 3, 1)
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def batch_of(torch, x):
  return torch.tensor(x.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(('size', 'stride', 'groups', 'side'), [
  (1, 2, 1, 8), (3, 1, 1, 7), (3, 2, 1, 8), (3, 2, 4, 7), (7, 2, 1, 9), (7, 2, 2, 8),
])  # fmt: skip
def test_convolutions_pad_as_torch_does(torch, size, stride, groups, side):
  x = image(2, side, side + 1, 4)
  conv = Conv(8, (size, size), (stride, stride), torch_padding(size), groups=groups)
  given = variables(conv, x)
  kernel, bias = given['params']['kernel'], given['params']['bias']
  theirs = torch.nn.functional.conv2d(
    batch_of(torch, x),
    torch.tensor(np.asarray(kernel).transpose(3, 2, 0, 1)),
    torch.tensor(np.asarray(bias)),
    stride=stride,
    padding=size // 2,
    groups=groups,
  )
  near(conv.apply(given, x), theirs)


def test_same_padding_at_stride_two_is_another():
  """The reason for `torch_padding`: rows of even size are padded below only."""
  x = image(1, 8, 8, 1)
  same, pairs = (Conv(1, strides=(2, 2), padding=p) for p in ('SAME', torch_padding(3)))
  given = variables(same, x)
  assert abs(same.apply(given, x) - pairs.apply(given, x)).max() > 0.01


def test_sides_may_differ():
  conv = Conv(2, (3, 5), padding=torch_padding(3, 5))
  assert conv.padding == ((1, 1), (2, 2))
  out = jax.eval_shape(lambda x: conv.init_with_output(jax.random.key(0), x)[0], image(1, 6, 9, 3))
  assert out.shape == (1, 6, 9, 2)


def test_group_norm_is_torchs(torch):
  x = 3 + 2 * image(2, 5, 4, 12)
  norm = GroupNorm(4, eps=1e-3)
  given = variables(norm, x)
  scale, bias = (torch.tensor(np.asarray(given['params'][k])) for k in ('scale', 'bias'))
  theirs = torch.nn.functional.group_norm(batch_of(torch, x), 4, scale, bias, eps=1e-3)
  near(norm.apply(given, x), theirs)


def test_batch_norm_is_torchs(torch):
  """But for the running variance, which PyTorch divides by the count less one."""
  x = 3 + 2 * image(4, 5, 3, 6)
  norm = BatchNorm()
  given = variables(norm, x, train=True)
  theirs = torch.nn.BatchNorm2d(6, momentum=0.1)
  with torch.no_grad():
    for name, ours in (('weight', 'scale'), ('bias', 'bias')):
      getattr(theirs, name).copy_(torch.tensor(np.asarray(given['params'][ours])))
    theirs.running_mean.copy_(torch.tensor(np.asarray(given['batch_stats']['mean'])))
    theirs.running_var.copy_(torch.tensor(np.asarray(given['batch_stats']['var'])))
  ours, new = norm.apply(given, x, train=True, mutable=['batch_stats'])
  near(ours, theirs(batch_of(torch, x)))
  new = new['batch_stats']
  np.testing.assert_allclose(new['mean'], theirs.running_mean.numpy(), rtol=1e-5)
  n, old = 4 * 5 * 3, 0.9 * given['batch_stats']['var']
  expected = old + (theirs.running_var.numpy() - old) * (n - 1) / n
  np.testing.assert_allclose(new['var'], expected, rtol=1e-5)
  near(norm.apply(given | {'batch_stats': new}, x, train=False), torch.nn.functional.batch_norm(
    batch_of(torch, x), torch.tensor(np.asarray(new['mean'])), torch.tensor(np.asarray(new['var'])),
    theirs.weight, theirs.bias, eps=1e-5,
  ))  # fmt: skip


@pytest.mark.parametrize('norm', [BatchNorm, GroupNorm])
def test_a_scale_may_start_at_zero(norm):
  options = {'train': True} if norm is BatchNorm else {}
  layer = norm(scale_init=nn.initializers.zeros_init())
  given = layer.init(jax.random.key(0), image(1, 2, 2, 32), **options)
  assert not layer.apply(given, image(1, 2, 2, 32), **options, mutable=True)[0].any()


@pytest.mark.parametrize(('size', 'stride', 'padding'), [(2, 2, 0), (3, 2, 1), (3, 3, 0)])
def test_pools_are_torchs(torch, size, stride, padding):
  x = image(2, 7, 6, 3)
  f, options = torch.nn.functional, {'stride': stride, 'padding': padding}
  near(max_pool(x, size, stride, padding), f.max_pool2d(batch_of(torch, x), size, **options))
  near(avg_pool(x, size, stride, padding), f.avg_pool2d(batch_of(torch, x), size, **options))


def test_upsampling_is_torchs(torch):
  x = image(2, 3, 4, 5)
  near(upsample(x, 3), torch.nn.functional.interpolate(batch_of(torch, x), scale_factor=3))


def test_halving_is_max_pooling():
  x = jax.random.normal(jax.random.PRNGKey(0), (2, 7, 6, 3))
  pooled = lambda x: nn.max_pool(x, (2, 2), (2, 2))
  of = lambda f: jax.grad(lambda x: jnp.sin(f(x)).sum())(x)
  np.testing.assert_array_equal(max_pool(x), pooled(x))
  np.testing.assert_allclose(of(max_pool), of(pooled), rtol=1e-6)


@pytest.mark.parametrize('layer', [Conv(6, groups=4), Conv(8, groups=3), GroupNorm(5)])
def test_groups_divide_channels(layer):
  with pytest.raises(InputError, match='groups='):
    shapes(layer, image(1, 4, 4, 4))
