"""Regression against scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import mean_absolute_error, mean_squared_error

from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.models.mlp import MLP
from bmx.parallel.sharding import unbox
from bmx.tasks.regression import Regression
from tests.models.weights import jit

N = 10
KEY = jax.random.PRNGKey(0)
NOISE = Noise(KEY, jnp.int32(0))


def batch(targets=2):
  random = np.random.default_rng(0)
  return {
    'x': random.normal(size=(N, 5)).astype(np.float32),
    'y': random.normal(size=(N, targets)).astype(np.float32),
    'weights': random.choice([0.0, 0.5, 2.0], N).astype(np.float32),
  }


def evaluate(task, rows):
  @jit
  def run(rows):
    params = unbox(task.init(NOISE, rows))['params']
    loss, _, metrics, _ = task.loss({'params': params}, rows, NOISE, train=False)
    return loss, metrics, task.predict({'params': params}, rows, NOISE)

  return jax.device_get(run(rows))


@pytest.mark.parametrize('targets', [1, 2])
def test_loss_is_the_weighted_sum_of_mean_squares(targets):
  rows = batch(targets)
  loss, metrics, told = evaluate(Regression(MLP(targets, (8,))), rows)
  total = rows['weights'].sum()
  mean = mean_squared_error(rows['y'], told['prediction'], sample_weight=rows['weights'])
  assert told['prediction'].shape == (N, targets)
  assert metrics['loss'].tolist() == pytest.approx([mean * total, total], rel=1e-5)
  assert loss == metrics['loss'][0]


def test_rows_without_weight_are_not_there():
  rows, task = batch(), Regression(MLP(2, (8,)))
  hidden = rows['weights'] == 0
  assert 0 < hidden.sum() < N
  y = np.where(hidden[:, None], np.nan, rows['y'])
  given = evaluate(task, rows | {'y': y})[1]['loss']
  expected = evaluate(task, {k: v[~hidden] for k, v in rows.items()})[1]['loss']
  np.testing.assert_allclose(given, expected, rtol=1e-6)


@pytest.mark.parametrize(('outputs', 'y'), [(1, (N, 3)), (3, (N, 1)), (1, (N,))])
def test_targets_of_another_shape_are_refused(outputs, y):
  rows, task = batch() | {'y': np.zeros(y, np.float32)}, Regression(MLP(outputs, (8,)))
  params = unbox(task.init(NOISE, rows))['params']
  with pytest.raises(InputError, match=r'y: expected \[B, D\] like the outputs'):
    task.loss({'params': params}, rows, NOISE, train=False)


def test_check():
  Regression(MLP(2)).validate({'num_targets': 2})
  with pytest.raises(InputError, match='no key y: regression expects a data set with targets'):
    Regression(MLP(2)).validate({'num_classes': 2})
  with pytest.raises(InputError, match='num_outputs=2: expected 3, the number of targets'):
    Regression(MLP(2)).validate({'num_targets': 3})


def test_units_of_the_target():
  rows, mean, std = batch(1), 3.0, 7.0
  given = rows | {'y': rows['y'] * std + mean}
  model = MLP(1, (8,))
  plain_loss, _, plain = evaluate(Regression(model), rows)
  loss, metrics, told = evaluate(Regression(model, mean, std), given)
  assert loss == pytest.approx(plain_loss, rel=1e-4)
  np.testing.assert_allclose(told['prediction'], plain['prediction'] * std + mean, rtol=1e-4)
  total, count = metrics['mae'].tolist()
  expected = mean_absolute_error(given['y'], told['prediction'], sample_weight=rows['weights'])
  assert total / count == pytest.approx(expected, rel=1e-5)
  with pytest.raises(InputError, match='std'):
    Regression(model, std=0.0)
