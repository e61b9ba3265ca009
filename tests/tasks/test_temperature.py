"""Probabilities at a temperature: as numpy divides the logits; classes stay."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.models.mlp import MLP
from bmx.tasks.classification import BinaryClassification, Classification
from bmx.tasks.regression import Regression
from bmx.tasks.reliability import Judged, at_temperature
from bmx.tasks.temperature import Tempered
from bmx.train.evaluate import eval_noise
from tests.models.weights import variables

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
BATCH = {'x': jnp.asarray(X), 'weights': jnp.ones(6)}


def both(task, temperature):
  """The predictions of a task, and those at a temperature."""
  given = variables(task.model, BATCH['x'], scale=3.0)
  tempered = Tempered(task, temperature)
  return [one.predict(given, BATCH, eval_noise()) for one in (task, tempered)]


@pytest.mark.parametrize('temperature', [0.4, 1.0, 3.0])
def test_probabilities_are_those_of_divided_logits(temperature):
  plain, scaled = both(Classification(MLP(3, (5,))), temperature)
  logits = np.log(np.asarray(plain['probability'], np.float64)) / temperature
  expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  np.testing.assert_allclose(scaled['probability'], expected, rtol=1e-4, atol=1e-7)
  np.testing.assert_array_equal(scaled['prediction'], plain['prediction'])
  judged = Judged(np.asarray(plain['probability'], np.float64), np.zeros(6, int))
  np.testing.assert_allclose(
    scaled['probability'], at_temperature(judged, temperature).probability, rtol=1e-4, atol=1e-7
  )


def test_the_score_of_a_binary_task():
  plain, scaled = both(BinaryClassification(MLP(1, (5,))), 2.0)
  score = np.asarray(plain['score'], np.float64)
  expected = 1 / (1 + ((1 - score) / score) ** 0.5)
  np.testing.assert_allclose(scaled['score'], expected, rtol=1e-4)
  np.testing.assert_array_equal(scaled['prediction'], plain['prediction'])


def test_a_certain_prediction_stays_finite():
  @dataclasses.dataclass(frozen=True)
  class Certain(Classification):
    def predict(self, variables, batch, noise):
      return {'prediction': jnp.array([1]), 'probability': jnp.array([[0.0, 1.0]])}

  found = Tempered(Certain(MLP(2)), 100.0).predict({}, {}, eval_noise())['probability']
  assert np.isfinite(found).all() and 0.5 < float(found[0, 1]) < 1


def test_mistakes_are_named():
  task = Regression(MLP(1))
  given = variables(task.model, BATCH['x'])
  with pytest.raises(InputError, match='expected a task that predicts one class for each example'):
    Tempered(task, 2.0).predict(given, BATCH, eval_noise())
  with pytest.raises(InputError, match='temperature=0.0: expected'):
    Tempered(task, 0.0)
