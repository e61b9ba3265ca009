"""Sparse tables: gradients of rows, and optimizers that touch them alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bmx.core import costs, tree
from bmx.core.errors import InputError
from bmx.core.types import Facts, Noise
from bmx.models.tables import Table
from bmx.optim.optimizers import adam, sgd, wrap
from bmx.optim.tables import lazy_adam, with_tables
from bmx.parallel import Layout, jit, make_mesh
from bmx.parallel.sharding import unbox
from bmx.tasks.common import ModelTask
from bmx.train import guard
from bmx.train.gradients import Accumulate, Gradient
from bmx.train.state import plan_state
from bmx.train.step import make_dispatch, make_train_step

V, D, B, F = 40, 8, 16, 3
NOISE = Noise(jax.random.PRNGKey(1), jnp.int32(0))


class Clicks(nn.Module):
  """Sum of a user's rows, then a dense layer."""

  sparse: tuple[str, ...] = ('user/table',)

  @property
  def facts(self):
    return Facts(num_outputs=1, sparse_tables=self.sparse)

  @nn.compact
  def __call__(self, ids, *, train=False):
    x = Table(V, D, stddev=1.0, name='user')(ids).sum(1)
    return nn.Dense(1, name='head')(jnp.tanh(x))[:, 0]


class Squares(ModelTask):
  """Squared error of a click model."""

  def inputs(self, batch):
    return (batch['ids'],)

  def score(self, out, batch, *, train):
    return jnp.square(out - batch['y']).sum(), jnp.float32(len(out)), {}


def batch(seed=0, rows=V):
  random = np.random.default_rng(seed)
  return {
    'ids': random.integers(0, rows, (B, F)).astype(np.int32),
    'y': random.normal(size=B).astype(np.float32),
    'weights': np.ones(B, np.float32),
  }


def layout(devices=1, **mesh):
  return Layout(make_mesh(mesh, jax.devices()[:devices]))


def optimizer(rate=0.05):
  schedule = lambda step: jnp.float32(rate)
  return with_tables(optax.sgd(rate), lazy_adam(schedule), 'table')


def spec(batch):
  return {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}


def dense_of(rows, shape):
  full = np.zeros(shape, np.float32)
  at = np.asarray(rows.indices) < shape[0]
  np.add.at(full, np.asarray(rows.indices)[at], np.asarray(rows.values)[at])
  return full


@pytest.mark.parametrize('steps', [1, 4])
def test_rows_are_the_dense_gradient(steps):
  task, plain = Squares(Clicks()), Squares(Clicks(()))
  variables = jax.jit(lambda: dict(unbox(task.init(NOISE, batch()))))()
  one = lambda task: Accumulate(Gradient(task), steps, B) if steps > 1 else Gradient(task)
  wrapped = lambda task: jax.jit(one(task))
  found = wrapped(task)(variables, batch(rows=9), NOISE)
  expected = wrapped(plain)(variables, batch(rows=9), NOISE)
  rows = found.sum['user']['table']
  real = np.asarray(rows.indices)[np.asarray(rows.indices) < V]
  assert len(set(real)) == len(real) <= 9 < B * F, 'each row once'
  table = np.asarray(expected.sum['user']['table'])
  np.testing.assert_allclose(dense_of(rows, (V, D)), table, atol=1e-5)
  np.testing.assert_allclose(found.sum['head']['kernel'], expected.sum['head']['kernel'], rtol=1e-5)
  np.testing.assert_allclose(guard.norm(found.sum), guard.norm(expected.sum), rtol=1e-5)


def lazy_oracle(table, grads, rate=0.05, b1=0.9, b2=0.999, eps=1e-8):
  """Adam on a dense gradient, at rows whose gradient was taken; numpy, float64."""
  table, mu, nu = table.astype(np.float64), np.zeros((V, D)), np.zeros((V, D))
  for t, (g, seen) in enumerate(grads, 1):
    g = g.astype(np.float64)
    mu[seen] = b1 * mu[seen] + (1 - b1) * g[seen]
    nu[seen] = b2 * nu[seen] + (1 - b2) * g[seen] ** 2
    m, v = mu[seen] / (1 - b1**t), nu[seen] / (1 - b2**t)
    table[seen] -= rate * m / (np.sqrt(v) + eps)
  return table


@pytest.mark.parametrize('mesh', [{}, {'data': 2, 'model': 2, 'fsdp': 2}])
def test_lazy_adam_equals_a_dense_oracle(mesh):
  task, tx = Squares(Clicks()), optimizer()
  where = layout(8 if mesh else 1, **mesh)
  plan = plan_state(task, tx, spec(batch()), where)
  step = jit(make_train_step(Gradient(task), tx), where, out_shardings=(plan.shardings, None))
  state, grads = plan.create(), []
  table = np.asarray(state.params['user']['table'])
  plain = jax.jit(lambda params, b: Gradient(Squares(Clicks(())))({'params': params}, b, NOISE).sum)
  for i in range(6):
    g = plain(jax.device_get(state.params), batch(i, rows=11))['user']['table']
    seen = np.unique(batch(i, rows=11)['ids'])
    grads.append((np.asarray(g) / B, seen))
    state, _ = step(state, batch(i, rows=11))
  expected = lazy_oracle(table, grads)
  np.testing.assert_allclose(state.params['user']['table'], expected, atol=1e-5)
  np.testing.assert_array_equal(np.asarray(state.params['user']['table'])[11:], table[11:])


def test_a_rejected_step_moves_no_row():
  task, tx = Squares(Clicks()), optimizer()
  plan = plan_state(task, tx, spec(batch()), layout())
  dispatch = make_dispatch(make_train_step(Gradient(task), tx), lambda c, g, i: g, 0, 2)
  state = plan.create()
  before = jax.device_get(state)
  bad = batch()
  bad['y'][0] = np.inf
  after, sums, _ = jit(dispatch, layout())(state, {}, bad, np.int32(1))
  assert float(sums['skipped'][0]) == 1
  changed = [
    k for k, v in tree.named(after).items() if not np.array_equal(v, tree.named(before)[k])
  ]
  assert sorted(changed) == ['consecutive_skips', 'step']


def test_mistakes_are_named():
  with pytest.raises(InputError, match="sparse_tables='usr/table'.*did you mean 'user/table'"):
    task = Squares(Clicks(('usr/table',)))
    start = lambda: dict(unbox(task.init(NOISE, batch())))
    jax.eval_shape(lambda: Gradient(task)(start(), batch(), NOISE))
  with pytest.raises(InputError, match='ema=0.9: expected 0 with sparse tables'):
    plan_state(Squares(Clicks()), optimizer(), spec(batch()), layout(), ema=0.9)
  task, tx = Squares(Clicks(())), optimizer()
  plan = plan_state(task, tx, spec(batch()), layout())
  with pytest.raises(InputError, match='optimizer.tables'):
    jax.eval_shape(make_train_step(Gradient(task), tx), plan.abstract, batch())


@pytest.mark.parametrize('tx', [
  sgd(lambda step: 0.1), adam(lambda step: 0.1), optax.sgd(0.1),
  wrap(optimizer(), clip=1.0), wrap(optimizer(), freeze='head'),
])  # fmt: skip
def test_optimizers_that_would_compute_with_indices_are_refused(tx):
  with pytest.raises(InputError, match='expected bmx.optim.tables:with_tables around all else'):
    plan_state(Squares(Clicks()), tx, spec(batch()), layout())


def test_a_generic_optimizer_of_rows_is_refused():
  task, tx = Squares(Clicks()), with_tables(optax.sgd(0.1), optax.sgd(lambda step: 0.1), 'table')
  plan = plan_state(task, tx, spec(batch()), layout())
  with pytest.raises(InputError, match='optimizer.rows: expected a transform of `SparseRows`'):
    jax.eval_shape(make_train_step(Gradient(task), tx), plan.abstract, batch())


def test_the_flops_of_a_sparse_step_are_those_of_a_dense_one():
  def count(sparse):
    task = Squares(Clicks(sparse))
    variables = jax.jit(lambda: dict(unbox(task.init(NOISE, batch()))))()
    return costs.count(Gradient(task), variables, batch(), NOISE).flops

  # Forward, and backward of the kernel and of its input.
  assert count(('user/table',)) == count(()) == 3 * 2 * B * D
