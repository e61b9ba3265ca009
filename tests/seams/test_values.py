"""Seams of Task, GradFn and state, with wrappers that a user could have written."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bmx.core import tree
from bmx.core.types import Noise
from bmx.models.gpt import GPT
from bmx.models.mlp import MLP
from bmx.parallel import Layout, jit, make_mesh
from bmx.parallel.sharding import unbox
from bmx.tasks.classification import Classification
from bmx.tasks.language import CausalLM
from bmx.train.gradients import Accumulate, Gradient, GradWrapper
from bmx.train.state import plan_state
from bmx.train.step import make_dispatch, make_train_step
from tests.seams.wrappers import GAN, ClipEach, Distill, LoRA

NOISE = Noise(jax.random.PRNGKey(3), jnp.int32(0))


def layout(devices=1, **mesh):
  return Layout(make_mesh(mesh, jax.devices()[:devices]))


def spec(batch):
  return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}


def points(n=64):
  random = np.random.default_rng(0)
  x = random.normal(size=(n, 2)).astype(np.float32) + 3
  return {'x': x, 'z': np.zeros((n, 4), np.float32), 'weights': np.ones(n, np.float32)}


def test_two_networks_have_gradients_of_their_own():
  """Against each network's loss differentiated alone."""
  task, batch = GAN(), points()
  variables = task.init(NOISE, batch)
  found = jax.jit(Gradient(task))(variables, batch, NOISE).sum
  given = task.prepare(batch, NOISE.fold(4), train=True)

  def alone(name):
    def loss(part):
      params = {**variables['params'], name: part}
      real, fake, _ = task.model.apply({'params': params}, given['x'], given['z'])
      if name == 'generator':
        return jax.nn.softplus(-fake).sum()
      return (jax.nn.softplus(-real) + jax.nn.softplus(fake)).sum()

    return jax.jit(jax.grad(loss))(variables['params'][name])

  for name in ('generator', 'discriminator'):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found[name], alone(name))


def test_a_gan_trains_with_an_optimizer_for_each_network():
  task, batch = GAN(), points()
  label = lambda params: {k: jax.tree.map(lambda _, k=k: k, v) for k, v in params.items()}
  tx = optax.partition({'generator': optax.adam(1e-2), 'discriminator': optax.sgd(0.0)}, label)
  plan = plan_state(task, tx, spec(batch), layout())
  dispatch = make_dispatch(make_train_step(Gradient(task), tx), lambda c, g, i: g, 10, 2)
  run = jit(dispatch, layout())
  state = plan.create()
  before = jax.device_get(state.params)
  losses = []
  for _ in range(10):
    state, sums, _ = run(state, {}, batch, np.int32(2))
    losses.append(float(sums['generator_loss'][0] / sums['generator_loss'][1]))
  assert losses[-1] < 0.8 * losses[0]
  same = lambda a, b: np.testing.assert_array_equal(a, b)
  jax.tree.map(same, state.params['discriminator'], before['discriminator'])
  assert not np.array_equal(state.params['generator']['out']['bias'],
                            before['generator']['out']['bias'])  # fmt: skip
  out = jit(lambda v: task.predict(v, batch, NOISE), layout())({'params': state.params})
  assert out['prediction'].shape == (64, 2)


def tokens(n=16, length=8, vocab=32):
  ids = np.random.default_rng(0).integers(0, vocab, (n, length + 1)).astype(np.int32)
  return {'tokens': ids[:, :-1], 'targets': ids[:, 1:], 'weights': np.ones((n, length), np.float32)}


def gpt(scan=True):
  return GPT(32, 8, width=32, depth=2, heads=2, scan=scan)


def test_a_wrapper_of_a_wrapper_takes_plain_weights_and_gives_them_back():
  task, batch = LoRA(CausalLM(gpt())), tokens()
  plan = plan_state(task, optax.adam(1e-2), spec(batch), layout())
  plain = jax.tree.map(lambda x: np.full(x.shape, 0.25, x.dtype), plan.plain)
  state = plan.create({}, tree.named(plain))
  merged = task.merged_params({**state.collections, 'params': state.params})
  jax.tree.map(np.testing.assert_array_equal, merged, plain)
  assert set(tree.named(state.params)) == {
    f'stack/blocks/attention/{n}/kernel/{m}' for n in ('query', 'value') for m in 'ab'
  }


def dispatched(task, tx, batch, where, constant, steps=4):
  plan = plan_state(task, tx, spec(batch), where)
  grad_fn = Accumulate(Gradient(task), 2, len(batch['weights']))
  step = make_train_step(grad_fn, tx, constant=constant)
  dispatch = make_dispatch(step, lambda c, g, i: g, 10, steps, constant)
  everywhere = (plan.shardings, None, None)
  return plan, jit(dispatch, where, donate_argnums=(0,), out_shardings=everywhere)


def test_adapters_train_on_eight_devices_as_on_one():
  task, batch, tx = LoRA(CausalLM(gpt())), tokens(), optax.sgd(0.5)
  results = []
  for where in (layout(), layout(8, data=8), layout(8, fsdp=4, model=2)):
    plan, run = dispatched(task, tx, batch, where, task.constant)
    state = plan.create()
    base = jax.device_get(state.collections['frozen'])
    state, sums, _ = run(state, {}, batch, np.int32(4))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.collections['frozen']), base)
    results.append((flat(state.params), float(sums['loss'][0])))
  one, *others = results
  for found in others:
    assert np.linalg.norm(found[0] - one[0]) < 1e-5 * np.linalg.norm(one[0])
    assert found[1] == pytest.approx(one[1], rel=1e-5)


def test_constant_collections_are_not_copied():
  """Temporaries of the looped, guarded, accumulated program hold no second base."""
  batch, tx = tokens(4), optax.sgd(0.5)
  wide = GPT(32, 8, width=256, depth=4, heads=4, scan=True, remat='full')
  task = LoRA(CausalLM(wide))
  memory = {}
  for constant in ((), task.constant):
    plan, run = dispatched(task, tx, batch, layout(), constant)
    compiled = run.lower(plan.abstract, {}, spec(batch), np.int32(4)).compile()
    memory[constant] = compiled.memory_analysis().temp_size_in_bytes
  base = tree.nbytes(plan.abstract.collections['frozen'])
  assert memory[task.constant] <= memory[()]
  text = compiled.as_text()
  shape = plan.abstract.collections['frozen']['stack']['blocks']['feed_forward']['up']['kernel']
  whole = f'f32[{",".join(map(str, shape.shape))}]'
  copies = [line for line in text.splitlines() if f'= {whole}' in line and ' copy(' in line]
  assert not copies, f'{len(copies)} copies of a frozen kernel; base {base} bytes'


def test_a_teacher_is_read_and_never_moves():
  random = np.random.default_rng(0)
  batch = {
    'x': random.normal(size=(32, 6)).astype(np.float32),
    'label': random.integers(0, 3, 32).astype(np.int32),
    'weights': np.ones(32, np.float32),
  }
  teacher = Classification(MLP(3, (16,)))
  task = Distill(Classification(MLP(3, (8,))), teacher)
  tx = optax.adam(1e-2)
  plan = plan_state(task, tx, spec(batch), layout())
  made = unbox(teacher.init(NOISE, batch))
  given = {f'teacher/{k}': v for k, v in tree.named(made).items()}
  state = plan.create(given, {})
  jax.tree.map(np.testing.assert_array_equal, state.collections['teacher'], made)
  step = jit(make_train_step(Gradient(task), tx, constant=task.constant), layout())
  kl = []
  for _ in range(40):
    state, metrics = step(state, batch)
    kl.append(float(metrics['kl'][0] / metrics['kl'][1]))
  assert kl[-1] < 0.7 * kl[0]
  jax.tree.map(np.testing.assert_array_equal, state.collections['teacher'], made)
  # The KL against numpy, from the two models' logits.
  logits = teacher.model.apply(made, batch['x'])
  out = task.model.apply({'params': state.params}, batch['x'])
  p = np.asarray(jax.nn.softmax(logits), np.float64)
  expected = (p * (np.log(p) - np.asarray(jax.nn.log_softmax(out), np.float64))).sum(-1).mean()
  _, metrics = step(state, batch)
  assert float(metrics['kl'][0] / 32) == pytest.approx(expected, rel=1e-4)


@dataclasses.dataclass(frozen=True)
class Counter(GradWrapper):
  """A GradFn with state of its own: how often it was called."""

  def init(self, variables):
    return {**super().init(variables), 'counter': {'calls': jnp.zeros(())}}

  def __call__(self, variables, batch, noise):
    own = {k: v for k, v in variables.items() if k != 'counter'}
    grads = self.inner(own, batch, noise)
    calls = {'calls': variables['counter']['calls'] + 1}
    return grads._replace(collections={**grads.collections, 'counter': calls})


@pytest.mark.parametrize('wrap', [False, True])
def test_a_gradient_may_have_state(wrap):
  random = np.random.default_rng(0)
  batch = {
    'x': random.normal(size=(8, 6)).astype(np.float32),
    'label': random.integers(0, 3, 8).astype(np.int32),
    'weights': np.ones(8, np.float32),
  }
  task, tx = Classification(MLP(3, (8,))), optax.sgd(0.1)
  grad_fn = Accumulate(Counter(Gradient(task)), 4, 8) if wrap else Counter(Gradient(task))
  plan = plan_state(task, tx, spec(batch), layout(), grad_fn=grad_fn)
  step, state = jit(make_train_step(grad_fn, tx), layout()), plan.create()
  for _ in range(3):
    state, _ = step(state, batch)
  assert float(state.collections['counter']['calls']) == (12 if wrap else 3)
  batch['x'][0] = np.nan
  state, _ = step(state, batch)
  assert float(state.collections['counter']['calls']) == (12 if wrap else 3), 'rejected with it'


def test_clipped_examples_on_eight_devices_equal_one():
  """Gradients of single examples, clipped, summed and divided by a constant."""
  task, batch, tx = CausalLM(gpt()), tokens(8), optax.sgd(1.0)
  batch['weights'][5:] = 0  # the divisor is not the number of real examples
  results = []
  for where in (layout(), layout(8, data=8), layout(8, fsdp=4, model=2)):
    plan = plan_state(task, tx, spec(batch), where)
    grad_fn = ClipEach(Gradient(task), batch_size=8, clip=0.5)
    step = jit(make_train_step(grad_fn, tx), where, out_shardings=(plan.shardings, None))
    state = plan.create()
    before = flat(state.params)
    results.append(before - flat(step(state, batch)[0].params))
  expected = np.zeros_like(results[0])
  params = plan_state(task, tx, spec(batch), layout()).create().params
  gradient = jax.jit(Gradient(task))
  for i in range(5):
    one = jax.tree.map(lambda x, i=i: x[i : i + 1], batch)
    g = flat(gradient({'params': params}, one, NOISE).sum)
    expected += g * min(1, 0.5 / np.linalg.norm(g)) / 8
  for moved in results:
    assert np.linalg.norm(moved - expected) < 1e-5 * np.linalg.norm(expected)
    assert np.linalg.norm(moved - results[0]) < 3e-6 * np.linalg.norm(results[0])


def flat(params):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(params))])
