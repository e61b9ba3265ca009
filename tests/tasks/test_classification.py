"""Classification, binary and not: weighted sums, accuracy, refusals, AUC by scikit-learn."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sk

from bmx.core.errors import InputError
from bmx.core.types import Facts, Noise
from bmx.models.mlp import MLP
from bmx.parallel.sharding import unbox
from bmx.tasks.classification import BinaryClassification, Classification, auc
from tests.models.weights import jit

N, CLASSES = 12, 3
KEY = jax.random.PRNGKey(0)
NOISE = Noise(KEY, jnp.int32(0))


def batch(classes=CLASSES, seed=0):
  random = np.random.default_rng(seed)
  return {
    'x': random.normal(size=(N, 5)).astype(np.float32),
    'label': random.integers(0, classes, N).astype(np.int32),
    'weights': random.choice([0.0, 0.5, 1.0, 2.0], N).astype(np.float32),
  }


def evaluate(task, rows, train=False):
  """-> (loss, metrics, predictions) of fresh parameters, as numpy."""

  @jit
  def run(rows):
    params = unbox(task.init(NOISE, rows))['params']
    loss, _, metrics, _ = task.loss({'params': params}, rows, NOISE, train=train)
    return loss, metrics, task.predict({'params': params}, rows, NOISE)

  return jax.device_get(run(rows))


def poisoned(rows):
  """The same with NaN in every row that has no weight."""
  hidden = rows['weights'] == 0
  assert 0 < hidden.sum() < N
  return rows | {'x': np.where(hidden[:, None], np.nan, rows['x']).astype(np.float32)}


def test_classification_against_scikit_learn():
  rows = batch()
  loss, metrics, told = evaluate(Classification(MLP(CLASSES, (8,))), rows)
  weights, probability = rows['weights'], told['probability'].astype(np.float64)
  options = {'sample_weight': weights, 'normalize': False}
  probability /= probability.sum(-1, keepdims=True)
  total = sk.log_loss(rows['label'], probability, labels=range(CLASSES), **options)
  hits = sk.accuracy_score(rows['label'], told['prediction'], **options)
  assert loss == metrics['loss'][0] == pytest.approx(total, rel=1e-5)
  assert metrics['accuracy'][0] == pytest.approx(hits)
  assert metrics['loss'][1] == metrics['accuracy'][1] == pytest.approx(weights.sum())


def test_binary_against_scikit_learn():
  rows = batch(2)
  loss, metrics, told = evaluate(BinaryClassification(MLP(1, (8,))), rows)
  weights = rows['weights']
  options = {'sample_weight': weights, 'normalize': False}
  score = told['score'].astype(np.float64)
  assert loss == pytest.approx(
    sk.log_loss(rows['label'], score, labels=[0, 1], **options), rel=1e-5
  )
  hits = sk.accuracy_score(rows['label'], told['prediction'], **options)
  assert metrics['accuracy'].tolist() == pytest.approx([hits, weights.sum()])
  assert metrics['loss'].tolist() == pytest.approx([float(loss), weights.sum()])
  np.testing.assert_array_equal(told['prediction'], score > 0.5)


@pytest.mark.parametrize(('task', 'classes'), [
  (Classification(MLP(CLASSES, (8,))), CLASSES), (BinaryClassification(MLP(1, (8,))), 2),
])  # fmt: skip
def test_rows_without_weight_are_not_there(task, classes):
  rows = batch(classes)
  there = rows['weights'] > 0
  expected = evaluate(task, {k: v[there] for k, v in rows.items()})
  given = evaluate(task, poisoned(rows))
  assert np.isfinite(given[0])
  for name, value in expected[1].items():
    np.testing.assert_allclose(given[1][name], value, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize('smoothing', [0.1, 0.5])
def test_smoothing_mixes_in_the_uniform_target(smoothing):
  rows, model = batch(), MLP(CLASSES, (8,))
  loss, metrics, told = evaluate(Classification(model, smoothing), rows, train=True)
  log = np.log(told['probability'].astype(np.float64))
  picked = log[np.arange(N), rows['label']]
  expected = -(1 - smoothing) * picked - smoothing * log.mean(-1)
  assert loss == pytest.approx((expected * rows['weights']).sum(), rel=1e-5)
  plain = evaluate(Classification(model), rows)[1]
  assert metrics['accuracy'].tolist() == plain['accuracy'].tolist()
  evaluated = evaluate(Classification(model, smoothing), rows)[1]
  assert evaluated['loss'].tolist() == plain['loss'].tolist()
  assert loss != plain['loss'][0]


def test_images_are_read_too():
  rows = batch()
  image = rows['x'].reshape(N, 5, 1, 1)
  rows_of_images = {k: v for k, v in rows.items() if k != 'x'} | {'image': image}
  task = Classification(MLP(CLASSES, (8,)))
  assert evaluate(task, rows_of_images)[0] == pytest.approx(evaluate(task, rows)[0])


def test_a_key_that_is_missing():
  rows = batch()
  del rows['x']
  with pytest.raises(
    InputError, match=r"expected a key image or x, not only \['label', 'weights'\]"
  ):
    Classification(MLP(CLASSES)).init(NOISE, rows)


@pytest.mark.parametrize('task', [Classification(MLP(3)), BinaryClassification(MLP(1))])
def test_data_without_classes(task):
  with pytest.raises(InputError, match='no labels: classification expects a data set with classes'):
    task.validate({'num_targets': 1})


def test_as_many_outputs_as_classes():
  Classification(MLP(3)).validate({'num_classes': 3})
  for outputs in (2, 4):
    with pytest.raises(
      InputError, match=f'num_outputs={outputs}: expected 3, the number of classes'
    ):
      Classification(MLP(outputs)).validate({'num_classes': 3})


def test_binary_needs_one_output_and_two_classes():
  BinaryClassification(MLP(1)).validate({'num_classes': 2})
  for outputs, classes in ((2, 2), (1, 3), (3, 3)):
    with pytest.raises(InputError, match=f'{classes} classes'):
      BinaryClassification(MLP(outputs)).validate({'num_classes': classes})


def test_the_error_tells_the_outputs_the_model_has():
  with pytest.raises(InputError) as caught:
    BinaryClassification(MLP(7)).validate({'num_classes': 2})
  assert '7' in str(caught.value)
  assert '-1' not in str(caught.value)


class Silent(nn.Module):
  """A model of someone else, which fixes no `num_outputs`."""

  facts = Facts()

  @nn.compact
  def __call__(self, x, *, train):
    return nn.Dense(1)(x)


@pytest.mark.parametrize('task', [Classification, BinaryClassification])
def test_a_model_that_does_not_say_its_outputs_passes(task):
  task(Silent()).validate({'num_classes': 2})


def test_only_batch_norm_ties_examples_together():
  assert Classification(MLP(3)).coupling == 'none'
  assert Classification(Silent()).coupling == 'none'
  assert Classification(MLP(3, norm='batch')).coupling == 'statistics'


@pytest.mark.parametrize('levels', [2, 5, 1000])
@pytest.mark.parametrize('n', [2, 10, 501])
def test_auc(n, levels):
  """Few levels make many ties."""
  random = np.random.default_rng(n + levels)
  label = np.concatenate([[0, 1], random.integers(0, 2, n - 2)])
  score = random.integers(0, levels, n) / levels + 0.2 * label * (levels > 2)
  expected = sk.roc_auc_score(label, score)
  assert auc({'score': score, 'label': label}) == pytest.approx(expected, abs=1e-12)


def test_auc_of_all_ties_and_of_both_orders():
  label = np.array([0, 0, 1, 1, 1])
  for score, expected in ((np.zeros(5), 0.5), (label, 1.0), (-label, 0.0)):
    assert auc({'score': score, 'label': label}) == expected


def test_auc_of_many_examples_does_not_overflow():
  label = np.arange(200_000, dtype=np.int32) % 2
  score = label.astype(np.float32)
  assert auc({'score': score, 'label': label}) == 1.0


@pytest.mark.parametrize('label', [0, 1])
def test_auc_of_one_class(label):
  with pytest.raises(InputError, match='both classes'):
    auc({'score': np.arange(3.0), 'label': np.full(3, label)})


def test_auc_of_a_task():
  rows = batch(2)
  told = evaluate(BinaryClassification(MLP(1, (8,))), rows)[2]
  given = auc({'score': told['score'], 'label': rows['label']})
  assert given == pytest.approx(sk.roc_auc_score(rows['label'], told['score']))
  assert jnp.asarray(told['score']).dtype == jnp.float32
