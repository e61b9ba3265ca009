"""The step: sums divided once, accumulation, averages, the guard."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Facts, Grads, Loss, Noise
from bmx.models.gpt import GPT
from bmx.models.mlp import MLP
from bmx.optim.optimizers import adamw
from bmx.optim.schedules import constant
from bmx.parallel import Layout, jit, make_mesh
from bmx.parallel.sharding import unbox
from bmx.tasks.classification import Classification
from bmx.tasks.language import CausalLM
from bmx.train import guard
from bmx.train.gradients import Accumulate, Gradient, divide
from bmx.train.state import eval_variables, plan_state
from bmx.train.step import make_train_step

B, T, V = 8, 16, 32
NOISE = Noise(jax.random.PRNGKey(1), jnp.int32(0))


def tokens(seed=0):
  """A batch whose rows count very different numbers of tokens."""
  random = np.random.default_rng(seed)
  ids = random.integers(0, V, (B, T + 1)).astype(np.int32)
  weights = (np.arange(T)[None] < random.integers(1, T + 1, B)[:, None]).astype(np.float32)
  return {'tokens': ids[:, :-1], 'targets': ids[:, 1:], 'weights': weights}


def language_task():
  return CausalLM(GPT(vocab_size=V, max_seq_len=T, width=32, depth=2, heads=2))


def images(seed=0, n=B):
  random = np.random.default_rng(seed)
  return {
    'x': random.normal(size=(n, 6)).astype(np.float32),
    'label': random.integers(0, 3, n).astype(np.int32),
    'weights': np.ones(n, np.float32),
  }


def start(task, batch):
  make = lambda key: dict(unbox(task.init(Noise(key, jnp.int32(0)), batch)))
  return jax.jit(make)(jax.random.PRNGKey(0))


def flat(x):
  return np.concatenate([np.ravel(v) for v in jax.tree.leaves(x)])


def test_accumulation_is_the_whole_batch():
  """In two parts, and in as many as there are rows."""
  task, batch = language_task(), tokens()
  variables = start(task, batch)
  whole = jax.jit(Gradient(task))(variables, batch, NOISE)
  for steps in (2, B):
    parts = jax.jit(Accumulate(Gradient(task), steps, B))(variables, batch, NOISE)
    error = np.linalg.norm(flat(parts.sum) - flat(whole.sum)) / np.linalg.norm(flat(whole.sum))
    assert error < 1e-6
    np.testing.assert_allclose(parts.count, whole.count)
    for name, value in whole.metrics.items():
      np.testing.assert_allclose(parts.metrics[name], value, rtol=1e-6)


def test_the_gradient_is_of_the_mean_over_tokens():
  """Against the loss written out: the sum over all tokens by their number, differentiated once."""
  task, batch = language_task(), tokens()
  params = start(task, batch)['params']

  def mean(params):
    logits = task.model.apply({'params': params}, batch['tokens'])
    log = jax.nn.log_softmax(logits)
    picked = np.arange(B)[:, None], np.arange(T)[None, :], batch['targets']
    return -(log[picked] * batch['weights']).sum() / batch['weights'].sum()

  expected = jax.jit(jax.grad(mean))(params)
  plan = plan_state(task, optax.sgd(1.0), spec(batch), one_device())
  state = plan.create()
  before = jax.tree.map(np.asarray, state.params)
  step = jax.jit(make_train_step(Gradient(task), optax.sgd(1.0)))
  after, _ = step(state.replace(params=params), batch)
  moved = jax.tree.map(lambda a, b: a - b, params, after.params)
  np.testing.assert_allclose(flat(moved), flat(expected), atol=1e-6)
  assert flat(before).shape == flat(moved).shape


def test_accumulation_must_divide_and_warns(caplog):
  with pytest.raises(InputError, match='expected a divisor of batch_size=8'):
    Accumulate(Gradient(language_task()), 3, B)
  with caplog.at_level('WARNING', logger='bmx'):
    Accumulate(Gradient(Classification(MLP(3, norm='batch'))), 2, B)
  assert 'micro-batch' in caplog.text


def spec(batch):
  return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}


def one_device():
  return Layout(make_mesh({}, jax.devices()[:1]))


def test_average_of_parameters():
  """EMA against the recurrence, on the host."""
  task, tx = Classification(MLP(3, (8,))), optax.sgd(0.5)
  plan = plan_state(task, tx, spec(images()), one_device(), ema=0.9)
  step, state = jax.jit(make_train_step(Gradient(task), tx, ema=0.9)), plan.create()
  average = flat(state.params).copy()
  for i in range(5):
    state, _ = step(state, images(i))
    average = 0.9 * average + 0.1 * flat(state.params)
  np.testing.assert_allclose(flat(state.ema), average, rtol=1e-5)


def test_average_of_statistics_beside_parameters():
  """Evaluation reads averaged parameters with equally averaged batch statistics."""
  with jax.numpy_rank_promotion('allow'):
    task, tx = Classification(Running()), optax.sgd(0.5)
    plan = plan_state(task, tx, spec(images()), one_device(), ema=0.9)
    step, state = jax.jit(make_train_step(Gradient(task), tx, ema=0.9)), plan.create()
    average = flat(state.collections['batch_stats']).copy()
    for i in range(5):
      state, _ = step(state, images(i))
      average = 0.9 * average + 0.1 * flat(state.collections['batch_stats'])
  np.testing.assert_allclose(flat(eval_variables(state)['batch_stats']), average, rtol=1e-5)
  assert not np.allclose(average, flat(state.collections['batch_stats']), rtol=1e-3)


def test_accumulation_updates_statistics_once_a_step():
  """With the mean of the micro-batches' statistics, by the recurrence written out."""
  batch = images()
  with jax.numpy_rank_promotion('allow'):
    task = Classification(Running())
    variables = start(task, batch)
    new = jax.jit(Accumulate(Gradient(task), 4, B))(variables, batch, NOISE)
    new = new.collections['batch_stats']
  parts = [batch['x'][i::4] for i in range(4)]
  mean = 0.5 * np.mean([p.mean(0) for p in parts], axis=0)
  var = 0.5 + 0.5 * np.mean([p.var(0) for p in parts], axis=0)
  found = new['BatchNorm_0']
  np.testing.assert_allclose(found['mean'], mean, rtol=1e-5)
  np.testing.assert_allclose(found['var'], var, rtol=1e-5)


def test_a_loss_between_examples_is_not_accumulated():
  @dataclasses.dataclass(frozen=True)
  class Contrastive(Classification):
    coupling = 'loss'

  with pytest.raises(InputError, match='GradCache'):
    Accumulate(Gradient(Contrastive(MLP(3))), 2, B)


def test_a_gradient_that_declares_nothing_is_not_accumulated():
  plain = lambda variables, batch, noise: Gradient(language_task())(variables, batch, noise)
  with pytest.raises(InputError, match=r'does not declare coupling.*GradWrapper'):
    Accumulate(plain, 2, B)


def test_a_model_without_facts_is_refused():
  with pytest.raises(InputError, match='Dense declares no facts'):
    Classification(nn.Dense(3))


def test_nothing_counted_divides_nothing():
  """Weights that sum below 1 divide by their sum, weights of 0 by nothing."""
  grads = Grads({'w': jnp.ones(2)}, jnp.float32(0.25), {}, {})
  np.testing.assert_array_equal(divide(grads).sum['w'], [4, 4])
  np.testing.assert_array_equal(divide(grads._replace(count=jnp.float32(0))).sum['w'], [1, 1])


@dataclasses.dataclass(frozen=True)
class Poisoned(Classification):
  """Goes wrong, in one of four ways, for a batch whose first weight is above 1."""

  how: str = 'loss'

  def loss(self, variables, batch, noise, *, train):
    value, count, metrics, new = super().loss(variables, batch, noise, train=train)
    bad, params = batch['weights'][0] > 1, variables['params']
    if self.how == 'loss':
      value = jnp.where(bad, jnp.nan, value)
      metrics['loss'] = jnp.where(bad, jnp.nan, metrics['loss'])
    if self.how == 'inf':
      metrics['loss'] = jnp.where(bad, jnp.inf, metrics['loss'])
    if self.how == 'gradient':  # a finite loss: √0 has an infinite slope
      zero = jnp.where(bad, 0.0, 1.0) * (1.0 + jnp.square(params['head']['bias']).sum())
      value = value + 0.0 * jnp.sqrt(zero)
    if self.how == 'statistics':  # of one example of 1e20: the loss and the gradient are finite
      new = jax.tree.map(lambda x: jnp.where(bad, jnp.inf, x), new)
    return Loss(value, count, metrics, new)


class Running(nn.Module):
  """Batch norm before a dense layer: its statistics are a collection."""

  facts = Facts(num_outputs=3, coupling='statistics')

  @nn.compact
  def __call__(self, x, *, train=False):
    x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x)
    return nn.Dense(3, name='head')(x)


@pytest.mark.parametrize('how', ['loss', 'inf', 'gradient', 'statistics'])
@pytest.mark.parametrize('at', [0, 1, 3])
def test_guard_refuses_exactly_one_step(how, at):
  with jax.numpy_rank_promotion('allow'):  # stock linen's batch norm promotes ranks
    task = Poisoned(Running(), how=how)
    tx = adamw(constant(1e-2, warmup=3), weight_decay=0.1)
    plan = plan_state(task, tx, spec(images()), one_device(), ema=0.9)
    step = jit(make_train_step(Gradient(task), tx, ema=0.9), one_device())
    state, skipped = plan.create(), []
    for i in range(5):
      batch = images(i)
      if i == at:
        batch['weights'][0] = 2.0
      before = tree.named(state)
      state, metrics = step(state, batch)
      skipped.append(float(metrics['skipped'][0]))
      if i == at:
        changed = [k for k, v in tree.named(state).items() if not np.array_equal(v, before[k])]
        assert sorted(changed) == ['consecutive_skips', 'step']
        assert float(metrics['loss'][1]) == 0
  assert skipped == [float(i == at) for i in range(5)]
  assert int(state.consecutive_skips) == 0
  assert np.isfinite(flat((state.params, state.opt_state, state.collections, state.ema))).all()


def test_frozen_parameters_have_no_moments():
  task = Classification(MLP(3, (8,)))
  tx = adamw(constant(1e-2), weight_decay=0.0, freeze='dense_0')
  plan = plan_state(task, tx, spec(images()), one_device())
  state = plan.create()
  kept = np.asarray(state.params['dense_0']['kernel'])
  state, _ = jax.jit(make_train_step(Gradient(task), tx))(state, images())
  np.testing.assert_array_equal(state.params['dense_0']['kernel'], kept)
  assert not [k for k in tree.named(state.opt_state) if 'dense_0' in k]


def test_spikes_are_refused_once_the_norm_is_known(monkeypatch):
  monkeypatch.setattr(guard, 'WARMUP', 3)
  task, tx = Classification(MLP(3, (8,))), optax.sgd(0.01)
  plan = plan_state(task, tx, spec(images()), one_device())
  step, state = jax.jit(make_train_step(Gradient(task), tx, spike=5.0)), plan.create()
  norms, skipped = [], []
  for i in range(8):
    batch = images(i)
    if i in (1, 5):
      batch['x'] = batch['x'] * 100  # before the norm is known, and after
    state, metrics = step(state, batch)
    skipped.append(int(metrics['skipped'][0]))
    norms += [float(metrics['grad_norm'][0])] if not skipped[-1] else []
  assert skipped[1] == 0
  assert skipped[5] == 1
  assert int(state.grad_norm_ema[1]) == len(norms) == 8 - sum(skipped)
  np.testing.assert_allclose(state.grad_norm_ema[0], np.mean(norms), rtol=1e-5)
