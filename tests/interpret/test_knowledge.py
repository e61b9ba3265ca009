"""Probes, the logit lens, influence and permutation importance beside their definitions."""

import jax
import numpy as np
import pytest
from sklearn.inspection import permutation_importance as theirs
from sklearn.linear_model import LinearRegression, LogisticRegression

from bmx.core.errors import InputError
from bmx.interpret import importance, influence, probes
from bmx.interpret.patches import places
from bmx.models.mlp import MLP
from bmx.parallel import Layout, jit, make_mesh
from bmx.tasks.classification import Classification
from tests.interpret.subjects import run, subject
from tests.models.test_interception import stacked
from tests.models.weights import variables

RANDOM = np.random.default_rng(0)


def test_a_probe_is_the_logistic_regression_of_scikit_learn():
  x = RANDOM.normal(size=(120, 5)) * [1, 10, 0.1, 1, 1] + 3
  label = (x[:, 0] + RANDOM.normal(size=120) > 3).astype(int) + (x[:, 1] > 10)
  probe = probes.fit_probe(x, label, 3, decay=0.01)
  model = LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-8, max_iter=2000)
  model.fit((x - x.mean(0)) / x.std(0), label)
  centered = probe.weights - probe.weights.mean(1, keepdims=True)  # a common shift changes nothing
  np.testing.assert_allclose(centered[:-1], model.coef_.T, atol=2e-3)
  np.testing.assert_array_equal(probe(x), model.predict((x - x.mean(0)) / x.std(0)))
  with pytest.raises(InputError, match='at least two classes'):
    probes.fit_probe(x, np.zeros(120, int), 3)


def test_features_of_layers():
  """Averaged over tokens without padding, over pixels, or as they are."""
  for kind, names in (('bert', ['encoder/stack/block_0', 'encoder/stack/block_1']),
                      ('mlp', ['dense_0', 'head'])):  # fmt: skip
    s = subject(kind)
    assert probes.layers_of(places(s.task, s.variables, s.batch)) == names
    found = run(lambda v, s=s, n=names: probes.layer_features(s.task, v, s.batch, n), s.variables)
    assert [x.ndim for x in found] == [2, 2]
  s = subject('bert')
  other = s.batch | {'tokens': np.where(s.batch['segment_ids'] > 0, s.batch['tokens'], 3)}
  path = ['encoder/stack/block_1']
  pair = [run(lambda v, b=b: probes.layer_features(s.task, v, b, path), s.variables)[0]
          for b in (s.batch, other)]  # fmt: skip
  np.testing.assert_allclose(*pair, atol=1e-6)


def test_the_lens_is_the_head_on_every_layer():
  s = subject('gpt')
  found = run(lambda v: probes.logit_lens(s.task, v, s.batch), s.variables)
  np.testing.assert_allclose(found[-1], run(lambda v: s.outputs(), s.variables), atol=1e-5)
  scanned = subject('gpt', scan=True)
  params = {'params': stacked(s.variables['params'])}
  again = run(lambda v: probes.logit_lens(scanned.task, v, s.batch), params)
  np.testing.assert_allclose(again, found, atol=1e-5)
  # The first layer, by the model's own methods.
  model = s.task.model
  capture = {'capture_intermediates': lambda m, _: m.name == 'block_0'}
  _, seen = model.apply(s.variables, *s.task.inputs(s.batch), **capture, mutable='intermediates')
  state = seen['intermediates']['stack']['block_0']['__call__'][0][0]
  logits = model.apply(s.variables, state, method=lambda m, h: m.logits(m.norm_out(h)))
  np.testing.assert_allclose(found[0], logits[np.arange(2), [7, 4]], atol=1e-5)
  assert np.abs(found[0] - found[-1]).max() > 0.01
  with pytest.raises(InputError, match='lens: expected a transformer, not MLP'):
    probes.logit_lens(subject('mlp').task, subject('mlp').variables, subject('mlp').batch)


def test_influence_is_the_product_of_gradients():
  """Of softmax regression: gradients are outer products of (p - one hot) and (x, 1)."""
  task = Classification(MLP(3, ()))
  x, label = RANDOM.normal(size=(6, 4)).astype(np.float32), np.array([0, 1, 2, 0, 1, 1])
  rows = {'x': x, 'label': label, 'weights': np.ones(6, np.float32)}
  test = jax.tree.map(lambda v: v[:2] + v.dtype.type(0), rows) | {'x': x[:2] + 1}
  one = lambda seed: variables(task.model, x, seed=seed, scale=0.5)
  checkpoints = [(one(0), 0.1), (one(1), 0.02)]
  product = jax.jit(lambda v, g: influence.along(task, v, rows, g))
  slope = jax.jit(lambda v, i: influence.gradient(task, v, test, i))
  found = influence.tracin(checkpoints, 2, slope, product)
  expected = np.zeros((2, 6))
  for weights, rate in checkpoints:
    head = weights['params']['head']

    def error(rows, head=head):
      logits = rows['x'] @ np.asarray(head['kernel']) + np.asarray(head['bias'])
      return np.asarray(jax.nn.softmax(logits)) - np.eye(3)[rows['label']]

    expected += rate * (error(test) @ error(rows).T) * (test['x'] @ x.T + 1)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_influence_on_eight_devices_is_that_on_one():
  task = Classification(MLP(3, (8,)))
  x = RANDOM.normal(size=(8, 4)).astype(np.float32)
  rows = {'x': x, 'label': np.arange(8) % 3, 'weights': np.ones(8, np.float32)}
  weights = variables(task.model, x, scale=0.5)

  def influence_of(count):
    layout = Layout(make_mesh({'data': count}, jax.devices()[:count]))
    slope = jit(lambda v, i: influence.gradient(task, v, rows, i), layout)
    product = jit(lambda v, g: influence.along(task, v, rows, g), layout)
    return influence.tracin([(weights, 1.0)], 2, slope, product)

  np.testing.assert_allclose(influence_of(8), influence_of(1), atol=1e-5)


def test_a_step_lowers_the_loss_by_the_influence():
  """Finite differences: a step on a training example moves the explained loss by -rate·I."""
  s = subject('mlp')
  batch = s.batch | {'label': np.array([1, 2])}
  slope = influence.gradient(s.task, s.variables, batch, 1)
  product = run(lambda v: influence.along(s.task, v, batch, slope), s.variables)
  step = jax.tree.map(lambda w, g: w - 1e-3 * g, s.variables['params'], slope)
  losses = lambda params: influence.losses(s.task, {'params': params}, batch)
  moved = run(losses, step) - run(losses, s.variables['params'])
  np.testing.assert_allclose(moved, -1e-3 * product, rtol=0.02, atol=1e-6)


def test_importance_is_that_of_scikit_learn():
  x = RANDOM.normal(size=(200, 4))
  y = x @ [3.0, 1.0, 0.0, -0.5] + 0.1 * RANDOM.normal(size=200)
  model = LinearRegression().fit(x, y)
  expected = theirs(model, x, y, n_repeats=100, random_state=0)
  score, each = lambda x: model.score(x, y), np.eye(4, dtype=bool)
  found = importance.permutation_importance(score, x, each, 100)
  assert found.score == pytest.approx(model.score(x, y))
  error = np.hypot(found.std, expected.importances_std) / 10
  assert (np.abs(found.mean - expected.importances_mean) < 4 * error + 1e-9).all()
  np.testing.assert_allclose(found.std, expected.importances_std, rtol=0.4, atol=1e-6)
  both = np.array([[True, True, False, False]])
  pair = importance.permutation_importance(score, x, both, 20)
  assert pair.mean[0] > found.mean[0]  # the columns of a feature move together
