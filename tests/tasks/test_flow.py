"""Flow matching: samplers beside scipy, the optimum of a Gaussian, guidance, dropped labels."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad, solve_ivp

from bmx.core.errors import InputError
from bmx.core.images import ImageOptions
from bmx.core.types import Facts, Noise
from bmx.models.flow import Velocity, embed_time, to_channels, to_pixels
from bmx.models.unet import UNet
from bmx.tasks.flow import FlowMatching, integrate

NOISE = Noise(jax.random.PRNGKey(3), jnp.int32(0))
MEAN, DEVIATION = 0.4, 0.3  # of pixels in [-1, 1]


class Gaussian(nn.Module):
  """The velocity of independent normal pixels: E[image - noise | (1 - t) noise + t image]."""

  num_classes: int = 0
  facts = Facts(num_outputs=1)

  @nn.compact
  def __call__(self, image, time, label, *, train=False):
    t = time[:, None, None, None]
    variance = (1 - t) ** 2 + (t * DEVIATION) ** 2
    return MEAN + (t * DEVIATION**2 - (1 - t)) / variance * (image - t * MEAN)


class Label(nn.Module):
  """A velocity that is the label, everywhere."""

  num_classes: int = 3
  facts = Facts(num_outputs=1)

  @nn.compact
  def __call__(self, image, time, label, *, train=False):
    return jnp.broadcast_to(label[:, None, None, None].astype(jnp.float32), image.shape)


def test_samplers_solve_an_equation():
  """Errors fall by 2 and by 4 where the steps double; scipy solves it to 1e-10."""
  start = np.array([0.3, -1.2])
  field = lambda t, x: np.sin(3 * x) + t * x
  exact = solve_ivp(field, (0, 1), start, rtol=1e-10, atol=1e-12).y[:, -1]
  velocity = lambda x, t: jnp.sin(3 * x) + t * x

  def errors(sampler):
    solve = jax.jit(integrate, static_argnums=(0, 2, 3))
    return [np.abs(solve(velocity, jnp.asarray(start, jnp.float32), n, sampler) - exact).max()
            for n in (8, 16)]  # fmt: skip

  euler, heun = errors('euler'), errors('heun')
  assert 1.7 < euler[0] / euler[1] < 2.3 and 3.3 < heun[0] / heun[1] < 5
  assert heun[1] < 0.1 * euler[1]


def test_the_exact_velocity_of_a_gaussian():
  """It has the loss that quadrature gives, and makes noise into images of that mean and spread."""
  task = FlowMatching(Gaussian())
  random = np.random.default_rng(0)
  pixels = MEAN + DEVIATION * random.normal(size=(20_000, 2, 2, 1))
  batch = {'image': (pixels.astype(np.float32) + 1) / 2, 'weights': np.ones(20_000, np.float32)}
  loss = jax.jit(lambda b: task.loss({}, b, NOISE, train=True))(batch)

  def remaining(t):
    s2 = DEVIATION**2
    return 1 + s2 - (t * s2 - (1 - t)) ** 2 / ((1 - t) ** 2 + t * t * s2)

  assert loss.sum / loss.count == pytest.approx(quad(remaining, 0, 1)[0], rel=0.02)
  keys = jax.random.split(jax.random.PRNGKey(0), 4000)
  images = jax.jit(
    lambda keys: task.generate({}, jnp.zeros(4000, int), keys, (2, 2, 1), ImageOptions())
  )(keys)
  scaled = 2 * np.asarray(images) - 1
  assert scaled.mean() == pytest.approx(MEAN, abs=0.01)
  assert scaled.std() == pytest.approx(DEVIATION, rel=0.03)
  few = jax.jit(lambda k: task.generate({}, jnp.zeros(3, int), k, (2, 2, 1), ImageOptions()))
  np.testing.assert_allclose(few(keys[5:8]), images[5:8], atol=1e-5)  # each of its own key


def test_guidance():
  """Free + guidance · (asked - free), the free label being `num_classes`."""
  task = FlowMatching(Label())
  labels, keys = jnp.array([0, 2]), jax.random.split(jax.random.PRNGKey(0), 2)

  def moved(guidance):
    options = ImageOptions(guidance=guidance, sample_steps=1, sampler='euler')
    found = task.generate({}, labels, keys, (1, 1, 1), options).ravel()
    still = jax.vmap(lambda k: jax.random.normal(k, (1, 1, 1)))(keys).ravel()
    return 2 * np.asarray(found) - 1 - np.asarray(still)

  np.testing.assert_allclose(moved(1.0), [0, 2], atol=1e-5)
  np.testing.assert_allclose(moved(0.0), [3, 3], atol=1e-5)
  np.testing.assert_allclose(moved(2.5), [3 - 2.5 * 3, 3 - 2.5 * 1], atol=1e-5)


def test_labels_are_dropped_in_training_only():
  task = FlowMatching(Label(), label_dropout=0.3)
  batch = {'image': np.zeros((5000, 1, 1, 1), np.float32), 'label': np.ones(5000, np.int32)}
  trained = np.asarray(task.prepare(batch, NOISE, train=True)['label'])
  assert set(trained) == {1, 3} and np.mean(trained == 3) == pytest.approx(0.3, abs=0.03)
  assert (task.prepare(batch, NOISE, train=False)['label'] == 1).all()
  middle = task.prepare(batch, NOISE, train=True)['time']
  often = dataclasses.replace(task, time='logit_normal').prepare(batch, NOISE, train=True)['time']
  inside = lambda t: float(jnp.mean((t > 0.25) & (t < 0.75)))
  assert inside(middle) == pytest.approx(0.5, abs=0.03)
  assert inside(often) == pytest.approx(0.728, abs=0.03)  # P(|normal| < log 3)


def test_patches(torch):
  """Pixels of squares are channels, as PyTorch's pixel_unshuffle orders one channel."""
  image = np.random.default_rng(0).normal(size=(2, 4, 6, 1)).astype(np.float32)
  found = to_channels(jnp.asarray(image), 2)
  expected = torch.pixel_unshuffle(torch.tensor(image).permute(0, 3, 1, 2), 2)
  np.testing.assert_array_equal(found, expected.permute(0, 2, 3, 1))
  wide = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
  np.testing.assert_array_equal(to_pixels(to_channels(jnp.asarray(wide), 2), 2), wide)
  for words, message in (
    ({'patch': 3}, 'patch=3: expected a divisor of the 4 × 6 pixels'),
    ({'patch': 2}, 'network.num_outputs=1: expected 4'),
    ({'width': 5}, 'width=5: expected an even number'),
  ):
    model = Velocity(UNet(1), **words)
    with pytest.raises(InputError, match=message):
      jax.eval_shape(lambda m=model: m.init(jax.random.PRNGKey(0), image, jnp.zeros(2), None))


def test_a_time_and_a_class_reach_the_network():
  model = Velocity(UNet(1, (8,), groups=4, attention=(False,)), num_classes=3, width=16)
  image = np.ones((2, 4, 4, 1), np.float32)
  time, label = jnp.array([0.1, 0.9]), jnp.array([0, 3])
  variables = jax.jit(model.init)(jax.random.PRNGKey(0), image, time, label)
  params = jax.tree.map(lambda x: 0.3 * jnp.ones_like(x) * jnp.cos(jnp.arange(x.size, dtype=x.dtype)
                        ).reshape(x.shape), nn.unbox(variables)['params'])  # fmt: skip
  apply = jax.jit(lambda t, y: model.apply({'params': params}, image, t, y))
  out = apply(time, label)
  assert jnp.abs(out - apply(time, jnp.array([1, 3])))[0].max() > 1e-6
  assert jnp.abs(out - apply(jnp.array([0.1, 0.8]), label))[1].max() > 1e-6
  half = np.arange(4)
  expected = np.cos(100 * 10_000.0 ** (-half / 4))
  np.testing.assert_allclose(embed_time(jnp.array([0.1]), 8)[0, :4], expected, atol=1e-4)


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: FlowMatching(Gaussian(), label_dropout=1.0), 'label_dropout=1.0'),
    (lambda: FlowMatching(Gaussian(), time='cosine'), "time='cosine': expected one of uniform"),
    (lambda: FlowMatching(Velocity(UNet(3), patch=2)), 'network.num_outputs=3: expected the chan'),
    (lambda: FlowMatching(Velocity(UNet(1), patch=0)), 'patch'),
    (lambda: FlowMatching(UNet(1)), 'expected a model with num_classes'),
    (lambda: FlowMatching(Label()).validate({'num_classes': 10}), 'num_classes=3: expected 10'),
    (
      lambda: FlowMatching(Gaussian()).validate({'shape': (8, 8, 3)}),
      'num_outputs=1 of the velocity: expected 3',
    ),
    (lambda: ImageOptions(sampler='ddim'), "generate.sampler='ddim': expected one of euler, heun"),
    (lambda: ImageOptions(count=0), 'generate.count=0: expected count >= 1'),
    (lambda: ImageOptions(guidance=-1.0), 'generate.guidance=-1.0'),
    (lambda: ImageOptions(label=-2), 'generate.label=-2: expected a class'),
  ],
)
def test_mistakes_are_named(make, message):
  with pytest.raises(InputError, match=message):
    make()


def test_predictions_are_refused():
  task = FlowMatching(Gaussian())
  batch = {'image': jnp.zeros((1, 2, 2, 1)), 'weights': jnp.ones(1)}
  with pytest.raises(InputError, match='predicts nothing of an example: expected `bmx generate'):
    task.predict({}, batch, NOISE)
