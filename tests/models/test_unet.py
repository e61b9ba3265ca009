"""U-Net: shapes, the condition at its beginning, blocks equal to PyTorch's, layouts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.models.unet import ResidualBlock, UNet
from bmx.parallel import Layout, jit, make_mesh, unbox

RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.normal(size=(8, 8, 8, 3)).astype(np.float32)
CONDITION = RANDOM.normal(size=(8, 8)).astype(np.float32)
SMALL = {'features': (8, 16), 'attention': (False, True), 'groups': 4}


def random(params, but=''):
  """Parameters of no zeros, but for names that contain `but`."""
  random = np.random.default_rng(1)
  draw = lambda x: 0.3 * random.normal(size=x.shape).astype(np.float32)
  return tree.map_named(lambda name, x: x if but and but in name else draw(x), unbox(params))


def made(condition=None):
  model = UNet(5, **SMALL)
  return model, jax.jit(model.init)(jax.random.PRNGKey(0), IMAGE, condition)


def test_an_image_of_classes_of_the_same_size():
  model, variables = made()
  params = random(variables['params'])
  apply = jax.jit(model.apply)
  out = apply({'params': params}, IMAGE)
  assert out.shape == (8, 8, 8, 5) and out.dtype == jnp.float32
  assert jnp.abs(out).max() > 0.1
  # Every pixel reaches every other: by the attention of the lowest resolution.
  far = apply({'params': params}, jnp.asarray(IMAGE).at[:, 0, 0].add(1.0)) - out
  assert (jnp.abs(far).max((0, 3)) > 1e-6).all()
  assert not jnp.abs(apply(unbox(variables), IMAGE)).max()  # begins as zero


def test_a_condition_begins_without_effect():
  model, variables = made(CONDITION)
  apply = jax.jit(model.apply)
  out = lambda params, c: apply({'params': params}, IMAGE, c)
  silent, heard = random(variables['params'], but='condition'), random(variables['params'])
  assert (out(silent, CONDITION) == out(silent, 1 - CONDITION)).all()
  changed = jnp.abs(out(heard, CONDITION) - out(heard, jnp.asarray(CONDITION).at[0].add(1.0)))
  assert changed[0].max() > 0.01 and not changed[1:].max()  # each image has its own


def test_a_block_is_that_of_pytorch(torch):
  f = torch.nn.functional
  block = ResidualBlock(12, 'group', 4)
  image = RANDOM.normal(size=(8, 6, 4, 8)).astype(np.float32)
  init = jax.jit(partial(block.init, train=False))
  params = random(init(jax.random.PRNGKey(0), image, CONDITION)['params'])
  given = {k: torch.tensor(np.array(v)) for k, v in tree.named(params).items()}

  def conv(x, name, padding):
    kernel = given[f'{name}/kernel'].permute(3, 2, 0, 1)
    return f.conv2d(x, kernel, given[f'{name}/bias'], padding=padding)

  def norm(x, name):
    return f.group_norm(x, 4, given[f'{name}/group/scale'], given[f'{name}/group/bias'])

  x = torch.tensor(image).permute(0, 3, 1, 2)
  y = norm(conv(f.silu(norm(x, 'norm_0')), 'conv_0', 1), 'norm_1')
  both = f.silu(torch.tensor(CONDITION)) @ given['condition/kernel'] + given['condition/bias']
  scale, shift = both[:, :, None, None].chunk(2, 1)
  expected = conv(f.silu(y * (1 + scale) + shift), 'conv_1', 1) + conv(x, 'shortcut', 0)
  out = jax.jit(partial(block.apply, train=False))({'params': params}, image, CONDITION)
  np.testing.assert_allclose(out, expected.permute(0, 2, 3, 1).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  'norm, features, mesh', [('group', (8, 16), {'data': 8}), ('batch', (8,), {'data': 2, 'fsdp': 4})]
)
def test_eight_devices_are_one(norm, features, mesh):
  """In training: batch norm is that of the whole batch."""
  attention = tuple(width > 8 for width in features)
  model = UNet(5, features, norm=norm, groups=4, attention=attention)
  assert model.facts.coupling == ('statistics' if norm == 'batch' else 'none')
  variables = unbox(jax.jit(model.init)(jax.random.PRNGKey(0), IMAGE, CONDITION))
  variables = {**variables, 'params': random(variables['params'])}

  def loss(variables, image, condition):
    out, _ = model.apply(variables, image, condition, train=True, mutable=['batch_stats'])
    return jnp.square(out).mean()

  def run(mesh):
    devices = jax.devices()[: int(np.prod(list(mesh.values())))]
    layout = Layout(make_mesh(mesh, devices))
    image, condition = jax.device_put((IMAGE, CONDITION), layout.sharding('batch'))
    value, grads = jit(jax.value_and_grad(loss), layout)(variables, image, condition)
    return float(value), np.concatenate([np.ravel(g) for g in jax.tree.leaves(grads['params'])])

  (value, grads), (other, its) = run({'data': 1}), run(mesh)
  assert other == pytest.approx(value, rel=1e-5)
  assert np.linalg.norm(its - grads) < 1e-4 * np.linalg.norm(grads)


@pytest.mark.parametrize(
  'words, image, message',
  [
    ({}, IMAGE[:, :7], 'image of 7 × 8 pixels: expected multiples of 2'),
    ({}, IMAGE[0], r'expected images \[B, I, J, C\]'),
    ({'attention': (True,)}, IMAGE, r'attention=\(True,\): expected one value for each'),
    ({'norm': 'layer'}, IMAGE, "norm='layer': expected 'group' or 'batch'"),
    ({'features': (), 'attention': ()}, IMAGE, r'features=\(\): expected'),
    ({'blocks': 0}, IMAGE, 'blocks'),
    ({'dropout': 1.0}, IMAGE, 'dropout=1.0'),
  ],
)
def test_mistakes_are_named(words, image, message):
  with pytest.raises(InputError, match=message):
    jax.eval_shape(lambda: UNet(5, **SMALL | words).init(jax.random.PRNGKey(0), image))
