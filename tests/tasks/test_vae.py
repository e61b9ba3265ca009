"""Autoencoders: the bound beside PyTorch's distributions and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.core.images import ImageOptions
from bmx.core.types import Noise
from bmx.models.vae import AutoEncoder
from bmx.parallel import unbox
from bmx.tasks.vae import Reconstruction, Variational, divergence

SHAPE = (4, 4, 1)
MODEL = AutoEncoder(SHAPE, num_classes=2, latent=3, features=(4, 8))
TASK = Variational(MODEL, beta=0.7)
RANDOM = np.random.default_rng(0)
BATCH = {
  'image': RANDOM.uniform(size=(5, *SHAPE)).astype(np.float32),
  'label': np.array([0, 1, 0, 1, 1], np.int32),
  'weights': np.array([1, 1, 0.5, 1, 0], np.float32),
}
NOISE = Noise(jax.random.PRNGKey(1), jnp.int32(0))


@pytest.fixture(scope='module')
def params():
  return unbox(jax.jit(TASK.init)(NOISE, BATCH))['params']


def test_the_divergence_is_that_of_pytorch(torch):
  mean = RANDOM.normal(size=(6, 4)).astype(np.float32)
  log_variance = RANDOM.normal(size=(6, 4)).astype(np.float32)
  normal = torch.distributions.Normal
  posterior = normal(torch.tensor(mean), torch.tensor(np.exp(log_variance / 2)))
  expected = torch.distributions.kl_divergence(posterior, normal(0.0, 1.0)).sum(-1)
  np.testing.assert_allclose(divergence(mean, log_variance), expected, rtol=1e-5)


def test_the_bound_is_its_two_parts(params, torch):
  """Cross-entropy of the pixels as in PyTorch, plus beta · divergence, weighted by example."""
  prepared = TASK.prepare(BATCH, NOISE, train=True)
  out, _ = jax.jit(lambda p: TASK.forward({'params': p}, prepared, NOISE, train=True))(params)
  total, count, metrics = TASK.score(out.value, prepared, train=True)
  pixels = torch.nn.functional.binary_cross_entropy_with_logits(
    torch.tensor(np.array(out.value.logits)), torch.tensor(BATCH['image']), reduction='none'
  ).sum((1, 2, 3))
  kl = divergence(out.value.mean, out.value.log_variance)
  expected = (BATCH['weights'] * (pixels.numpy() + 0.7 * np.asarray(kl))).sum()
  assert total == pytest.approx(float(expected), rel=1e-5) and count == 3.5
  assert metrics['divergence'][0] == pytest.approx(float((BATCH['weights'] * kl).sum()), rel=1e-5)


def test_gradients_are_finite_differences(params):
  """Of the encoder's last layers, which the noise is scaled and moved by."""
  loss = jax.jit(lambda p: TASK.loss({'params': p}, BATCH, NOISE, train=True).sum)
  grads = jax.jit(jax.grad(loss))(params)
  for name in ('mean', 'log_variance'):
    direction = RANDOM.normal(size=params[name]['bias'].shape).astype(np.float32)
    moved = lambda size, d=direction, name=name: loss(
      {**params, name: {**params[name], 'bias': params[name]['bias'] + size * d}}
    )
    expected = (moved(1e-2) - moved(-1e-2)) / 2e-2
    slope = np.vdot(grads[name]['bias'], direction)
    assert slope == pytest.approx(float(expected), rel=0.03, abs=0.02)


def test_predictions_decode_the_mean_and_images_decode_noise(params):
  rows = jax.jit(lambda p: TASK.predict({'params': p}, BATCH, NOISE))(params)
  assert rows['reconstruction'].shape == (5, *SHAPE) and rows['latent'].shape == (5, 3)
  decode = jax.jit(
    lambda z, y: jax.nn.sigmoid(MODEL.apply({'params': params}, z, y, method='decode'))
  )
  np.testing.assert_allclose(
    decode(rows['latent'], BATCH['label']), rows['reconstruction'], atol=1e-5
  )
  keys, labels = jax.random.split(jax.random.PRNGKey(0), 2), jnp.array([1, 0])
  make = jax.jit(lambda y: TASK.generate({'params': params}, y, keys, SHAPE, ImageOptions()))
  images = make(labels)
  latent = jnp.stack([jax.random.normal(k, (3,)) for k in keys])
  np.testing.assert_allclose(decode(latent, labels), images, atol=1e-5)
  assert jnp.abs(images - make(1 - labels)).max() > 1e-4


def test_an_autoencoder_has_no_variance():
  task = Reconstruction(AutoEncoder(SHAPE, latent=3, features=(4,), variance=False))
  batch = {k: v for k, v in BATCH.items() if k != 'label'}
  variables = unbox(jax.jit(task.init)(NOISE, batch))
  assert 'log_variance' not in variables['params']
  loss = jax.jit(lambda v: task.loss(v, batch, NOISE, train=True))(variables)
  rows = jax.jit(lambda v: task.predict(v, batch, NOISE))(variables)
  p = np.asarray(rows['reconstruction'], np.float64)
  entropy = -(BATCH['image'] * np.log(p) + (1 - BATCH['image']) * np.log(1 - p)).sum((1, 2, 3))
  assert loss.sum == pytest.approx((entropy * BATCH['weights']).sum(), rel=1e-4)


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: Variational(MODEL, beta=-1.0), 'beta=-1.0'),
    (lambda: Variational(AutoEncoder(SHAPE, variance=False)), 'variance=False: expected True'),
    (lambda: TASK.validate({'num_classes': 2, 'shape': (4, 4, 3)}), r'expected \(4, 4, 3\)'),
    (lambda: TASK.validate({'num_classes': 3}), 'num_classes=2: expected 3'),
  ],
)
def test_mistakes_are_named(make, message):
  with pytest.raises(InputError, match=message):
    make()
