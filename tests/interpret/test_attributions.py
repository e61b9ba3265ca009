"""Attributions: their axioms, closed forms of linear models, dependence on the weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.interpret import ablation, gradients, maps
from bmx.interpret.subject import Subject, class_number
from tests.interpret.subjects import TARGET, run, subject

KEY = jax.random.PRNGKey(0)
W = np.array([[1.0, -2.0, 0.5, 3.0], [0.0, 1.0, -1.0, 2.0]], np.float32)
X = np.array([[1.0, 2.0, -1.0, 0.5], [0.3, -0.7, 2.0, 1.5]], np.float32)
BACKGROUND = np.random.default_rng(2).normal(size=(3, 4)).astype(np.float32)
EACH = np.eye(4, dtype=bool)


def linear(x):
  return (W * x).sum(1) + 7


def curved(x):
  """Interactions of two and of three features."""
  return x[:, 0] * x[:, 1] + jnp.sin(x[:, 2]) * x[:, 3] * x[:, 0] + x[:, 3]


def exact_shapley(fn, x, background):
  """The definition: weighted gains over all subsets, absent features from each background row."""
  n = x.shape[1]

  def value(subset):
    mask = np.isin(np.arange(n), subset)
    rows = [np.asarray(fn(jnp.where(mask[None], x, row[None]))) for row in background]
    return np.mean(rows, 0)

  values = np.zeros(x.shape)
  count = np.array([1, 1, 2, 6, 24])
  for i in range(n):
    others = [j for j in range(n) if j != i]
    for size in range(n):
      for subset in itertools.combinations(others, size):
        weight = count[size] * count[n - size - 1] / count[n]
        values[:, i] += weight * (value([*subset, i]) - value(list(subset)))
  return values


def sampled(fn, rounds, seed=0):
  orders, chosen = ablation.permutations(4, len(BACKGROUND), rounds, seed)
  return run(lambda x: ablation.shapley(fn, x, BACKGROUND, EACH, orders, chosen), X)


def test_closed_forms_of_a_linear_score():
  base = np.full((1, 4), 0.25, np.float32)
  np.testing.assert_allclose(run(lambda x: gradients.saliency(linear, x), X), np.abs(W))
  smooth = run(lambda x: gradients.smooth_grad(linear, x, KEY, 4), X)
  np.testing.assert_allclose(smooth, W, rtol=1e-6)
  found = run(lambda x: gradients.integrated_gradients(linear, x, base, 1), X)
  np.testing.assert_allclose(found.values, W * (X - base), rtol=1e-5)
  occluded = run(lambda x: ablation.occlusion(linear, x, base, EACH), X)
  np.testing.assert_allclose(occluded, W * (X - base), rtol=1e-4, atol=1e-6)
  shapley = sampled(linear, 6)
  np.testing.assert_allclose(shapley.values, W * (X - BACKGROUND.mean(0)), rtol=1e-4)


def test_shapley_values_of_interactions():
  """Within four standard errors of the definition; sums are exact."""
  exact, found = exact_shapley(curved, X, BACKGROUND), sampled(curved, 384)
  assert np.abs(exact - W * (X - BACKGROUND.mean(0))).max() > 0.5  # no accident of a linear score
  assert (np.abs(found.values - exact) < 4 * found.error + 1e-5).all()
  assert np.abs(found.values - exact).max() < 0.1
  total = np.asarray(curved(X)) - np.mean([curved(row[None]) for row in BACKGROUND])
  np.testing.assert_allclose(found.values.sum(1), total, atol=1e-4)
  np.testing.assert_allclose(exact.sum(1), total, atol=1e-4)


def test_smooth_grad_is_the_mean_over_its_noise():
  score = lambda x: (x**3).sum(1)
  found = run(lambda x: gradients.smooth_grad(score, x, KEY, 3, share=0.1), X)
  deviation = 0.1 * (X.max(1, keepdims=True) - X.min(1, keepdims=True))
  noise = [jax.random.normal(jax.random.fold_in(KEY, i), X.shape) for i in range(3)]
  expected = np.mean([3 * (X + deviation * n) ** 2 for n in noise], 0)
  np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize('kind', ['mlp', 'cnn', 'bert', 'gpt'])
def test_integrated_gradients_are_complete(kind):
  s = subject(kind)

  def integrate(variables, parts):
    score, x = Subject(s.task, variables, s.batch, TARGET).input()
    return gradients.integrated_gradients(score, x, 0.0, parts)

  program = jax.jit(integrate)
  found, parts = gradients.completed(lambda parts: program(s.variables, parts))
  total = found.values.reshape(2, -1).sum(1) - found.difference
  assert (np.abs(total) < 2e-3 * np.maximum(1, np.abs(found.difference))).all()
  assert (np.abs(found.gap) <= 1e-3 * np.maximum(1, np.abs(found.difference))).all()
  assert parts <= 512
  if kind in ('mlp', 'cnn'):  # one Gauss-Legendre rule does not integrate kinks
    assert np.abs(program(s.variables, 1).gap).max() > 1e-3
  assert np.abs(found.difference).min() > 0.05
  if kind == 'bert':  # padding is seen by nothing
    assert np.abs(found.values[1, 5:]).max() == 0 < np.abs(found.values[1, :5]).max()


def attributions(kind, method, seed):
  """The attributions of a model whose weights are drawn from a seed."""
  s = subject(kind, seed)

  def explain(variables):
    one = Subject(s.task, variables, s.batch, TARGET)
    if method == 'rollout':
      return maps.rollout(maps.attention_weights(one.task, variables, one.batch))
    if method == 'gradcam':
      return maps.grad_cam(one)
    score, x = one.input()
    masks = ablation.windows(x.shape[1:], (1,), (1,))
    return {
      'saliency': lambda: gradients.saliency(score, x),
      'smoothgrad': lambda: gradients.smooth_grad(score, x, KEY, 4),
      'integrated_gradients': lambda: gradients.integrated_gradients(score, x, 0.0, 2).values,
      'occlusion': lambda: ablation.occlusion(score, x, 0.0, masks),
      'shapley': lambda: (
        ablation.shapley(
          score, x, jnp.zeros_like(x[:1]), masks, *ablation.permutations(len(masks), 1, 4, 0)
        ).values
      ),
    }[method]()

  return run(explain, s.variables)


@pytest.mark.parametrize(
  ('kind', 'method'),
  [('mlp', 'saliency'), ('mlp', 'smoothgrad'), ('mlp', 'integrated_gradients'),
   ('mlp', 'occlusion'), ('mlp', 'shapley'), ('cnn', 'gradcam'), ('bert', 'rollout'),
   ('bert', 'integrated_gradients')],
)  # fmt: skip
def test_other_weights_give_other_attributions(kind, method):
  """The sanity check of Adebayo et al. 2018: what does not depend on the model explains nothing."""
  first, again, other = (attributions(kind, method, seed) for seed in (0, 0, 1))
  np.testing.assert_array_equal(first, again)
  real = np.ones(first.shape, bool)
  if kind == 'bert':
    real[1, 5:] = False
    real[1, :, 5:] &= method != 'rollout'
  assert abs(np.corrcoef(first[real], other[real])[0, 1]) < 0.9


def test_rollout_follows_the_mask():
  def of(s):
    return run(lambda v: maps.rollout(maps.attention_weights(s.task, v, s.batch)), s.variables)

  found = of(subject('gpt'))
  np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
  assert np.abs(np.triu(found, 1)).max() == 0
  found = of(subject('bert'))
  assert found[1, :5, 5:].max() == 0 and found[0].min() > 0


def test_windows_of_an_image():
  masks = ablation.windows((5, 4, 3), (2, 3), (2, 2))
  assert masks.shape == (6, 5, 4, 1) and masks.any(0).all()
  assert masks[0, :, :, 0].sum() == 6 and masks[-1, :, :, 0].sum() == 2
  values = np.arange(6.0, dtype=np.float32)[None]
  assert ablation.spread(values, masks)[0, 0, 2, 0] == 0.5  # in windows 0 and 1
  for size, stride in (((0, 1), (1, 1)), ((6, 1), (1, 1)), ((2, 1), (3, 1))):
    with pytest.raises(InputError, match='expected 1 <= stride <= window <= '):
      ablation.windows((5, 4, 3), size, stride)


def test_maps_of_other_models_are_refused():
  with pytest.raises(InputError, match='network of convolutions; method=saliency'):
    maps.grad_cam(subject('mlp'))
  s = subject('cnn')
  with pytest.raises(InputError, match="layer='conv_7': expected one of conv_0, conv_1"):
    maps.grad_cam(s, 'conv_7')
  with pytest.raises(InputError, match='rollout: expected a transformer'):
    maps.attention_weights(s.task, s.variables, s.batch)


def test_the_output_that_is_named():
  assert class_number('dog', ('cat', 'dog'), 2) == 1 and class_number('0', ('cat', 'dog'), 2) == 0
  with pytest.raises(InputError, match=r"explain.target='dgo': .*did you mean 'dog'"):
    class_number('dgo', ('cat', 'dog'), 2)


def test_maps_are_resized():
  small = np.arange(4.0, dtype=np.float32).reshape(1, 2, 2)
  large = np.asarray(maps.resized(small, (4, 4)))
  assert large.shape == (1, 4, 4) and large[0, 0, 0] == 0 and large[0, -1, -1] == 3
  assert (np.diff(large[0], axis=1) >= 0).all()
