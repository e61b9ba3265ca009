"""Adversarial training: gradients of both networks apart, R1, one optimizer for each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.images import ImageOptions
from bmx.core.types import Noise
from bmx.models.cnn import CNN
from bmx.models.gan import GAN, Discriminator, Generator
from bmx.optim.networks import by_network
from bmx.parallel import unbox
from bmx.tasks.gan import Adversarial

SHAPE, FEATURES = (4, 4, 1), (4, 8)
MODEL = GAN(SHAPE, num_classes=3, latent=5, features=FEATURES)
TASK = Adversarial(MODEL, penalty=3.0, penalty_every=2)
RANDOM = np.random.default_rng(0)
BATCH = {
  'image': RANDOM.uniform(size=(6, *SHAPE)).astype(np.float32),
  'label': np.arange(6, dtype=np.int32) % 3,
  'weights': np.array([1, 1, 0.5, 1, 1, 0], np.float32),
}
SGD = optax.sgd(1.0)
NOISE = Noise(jax.random.PRNGKey(1), jnp.int32(4))


@pytest.fixture(scope='module')
def params():
  variables = jax.jit(TASK.init)(NOISE, BATCH)
  draw = lambda x: jnp.asarray(0.4 * RANDOM.normal(size=x.shape), jnp.float32)
  return jax.tree.map(draw, unbox(variables)['params'])


def losses(params, batch):
  """(loss of the discriminator without penalty, loss of the generator), each written out."""
  image, label, weights = 2 * batch['image'] - 1, batch['label'], batch['weights']
  generate = Generator(SHAPE, FEATURES, 3).apply
  judge = lambda x: Discriminator(FEATURES, 3).apply({'params': params['discriminator']}, x, label)
  made = generate({'params': params['generator']}, batch['latent'], label)
  softplus = lambda x: jnp.log(1 + jnp.exp(x))
  of_discriminator = softplus(-judge(image)) + softplus(judge(made))
  return (weights * of_discriminator).sum(), (weights * softplus(-judge(made))).sum()


def test_each_network_has_the_gradient_of_its_own_loss(params):
  prepared = TASK.prepare(BATCH, NOISE.fold(4), train=True) | {'penalty': jnp.zeros(6)}

  def total(params):
    out, _ = TASK.forward({'params': params}, prepared, NOISE, train=True)
    return TASK.score(out.value, prepared, train=True)[0]

  whole = jax.jit(jax.grad(total))(params)
  first, second = (
    jax.jit(jax.grad(lambda p, i=i: losses(p, prepared)[i]))(params) for i in range(2)
  )
  expected = {'discriminator': first['discriminator'], 'generator': second['generator']}
  assert set(whole) == set(expected)
  for name, value in tree.named(whole).items():
    np.testing.assert_allclose(value, tree.named(expected)[name], rtol=2e-4, atol=2e-6)
    assert jnp.abs(value).max() > 0
  # Exactly apart: what the other network's loss would add is not small, and is not there.
  assert max(jnp.abs(x).max() for x in jax.tree.leaves(second['discriminator'])) > 0.01
  assert max(jnp.abs(x).max() for x in jax.tree.leaves(first['generator'])) > 0.01

  def part(params, name):
    out, _ = TASK.forward({'params': params}, prepared, NOISE, train=True)
    return TASK.score(out.value, prepared, train=True)[2][name][0]

  for name, other in (('loss_discriminator', 'generator'), ('loss_generator', 'discriminator')):
    grads = jax.jit(jax.grad(part), static_argnums=1)(params, name)
    assert not any(jnp.abs(x).max() for x in jax.tree.leaves(grads[other]))


def test_the_penalty_is_the_slope_of_each_image(params):
  """By finite differences; every second step, with twice the weight."""
  run = jax.jit(lambda step: TASK.prepare(BATCH, NOISE.replace(step=step), train=True)['penalty'])
  assert (run(4) == 2).all() and (run(5) == 0).all()
  assert not TASK.prepare(BATCH, NOISE, train=False)['penalty'].any()
  prepared = TASK.prepare(BATCH, NOISE, train=True)
  image = 2 * BATCH['image'] - 1
  given = image, prepared['latent'], prepared['label'], prepared['penalty']
  scores = jax.jit(lambda *x: MODEL.apply({'params': params}, *x))(*given)
  judge = jax.jit(
    lambda x: Discriminator(FEATURES, 3).apply(
      {'params': params['discriminator']}, x, BATCH['label']
    )
  )
  slopes = np.zeros((6, image[0].size))
  for i in range(image[0].size):
    step = np.zeros(image[0].size, np.float32)
    step[i] = 1e-2
    step = step.reshape(1, *SHAPE)
    slopes[:, i] = (judge(image + step) - judge(image - step)) / 2e-2
  np.testing.assert_allclose(scores.penalty, 2 * (slopes**2).sum(1), rtol=0.03)
  total, _, metrics = TASK.score(scores, BATCH, train=True)
  apart = metrics['loss_discriminator'][0] + metrics['loss_generator'][0]
  penalty = 1.5 * (scores.penalty * BATCH['weights']).sum()
  assert total == pytest.approx(float(apart + penalty), rel=1e-5)


def test_every_network_has_its_own_optimizer_and_clip():
  params = {'a': {'w': jnp.ones(3)}, 'b': {'w': jnp.ones(2)}}
  grads = {'a': {'w': jnp.array([3.0, 4.0, 0.0])}, 'b': {'w': jnp.array([0.0, 0.1])}}
  own = {k: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)) for k in 'ab'}
  tx = by_network(own, {'b': 2.0})
  state, alone = tx.init(params), {k: own[k].init(params[k]) for k in 'ab'}
  for _ in range(2):
    updates, state = tx.update(grads, state, params)
    for name, factor in (('a', 1.0), ('b', 2.0)):
      expected, alone[name] = own[name].update(grads[name], alone[name], params[name])
      np.testing.assert_allclose(updates[name]['w'], factor * expected['w'], rtol=1e-6)


@pytest.mark.parametrize(
  'make, message',
  [
    (lambda: by_network({}), 'networks={}: expected'),
    (
      lambda: by_network({'a': optax.sgd(1.0)}, {'b': 1.0}),
      'rates.b: expected one of the networks',
    ),
    (lambda: by_network({'a': optax.sgd(1.0)}, {'a': 0.0}), 'rates.a=0.0'),
    (lambda: by_network({'a': optax.sgd(1.0)}).init({'a': 1.0, 'b': 1.0}), 'parameters b/...'),
    (
      lambda: by_network({k: optax.sgd(1.0) for k in 'ab'}).init({'a': 1.0}),
      'networks.b: expected',
    ),
    (lambda: Adversarial(CNN(3)), 'expected a model with num_classes'),
    (lambda: Adversarial(MODEL, penalty=-1.0), 'penalty=-1.0'),
    (lambda: Adversarial(MODEL, penalty_every=0), 'penalty_every=0'),
    (lambda: TASK.validate({'num_classes': 3, 'shape': (8, 8, 1)}), r'expected \(8, 8, 1\)'),
  ],
)
def test_mistakes_are_named(make, message):
  with pytest.raises(InputError, match=message):
    make()


def test_images_are_those_of_the_generator(params):
  keys = jax.random.split(jax.random.PRNGKey(0), 3)
  labels = jnp.array([0, 1, 2])
  make = jax.jit(
    lambda p: TASK.generate({'params': p}, labels, keys, SHAPE, ImageOptions(guidance=1.0))
  )
  images = make(params)
  assert images.shape == (3, *SHAPE) and images.min() >= 0 and images.max() <= 1
  latent = jnp.stack([jax.random.normal(k, (5,)) for k in keys])
  apply = jax.jit(Generator(SHAPE, FEATURES, 3).apply)
  expected = apply({'params': params['generator']}, latent, labels)
  np.testing.assert_allclose(2 * images - 1, expected, atol=1e-5)
  with pytest.raises(InputError, match='multiples of 2'):
    jax.eval_shape(lambda: GAN((5, 4, 1), features=FEATURES).init(
      jax.random.PRNGKey(0), jnp.zeros((1, 5, 4, 1)), jnp.zeros((1, 64)), jnp.zeros(1, int),
      jnp.zeros(1)))  # fmt: skip
