"""Test-time augmentation: means of probabilities over views."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.core.types import Facts, Noise
from bmx.models.mlp import MLP
from bmx.tasks.classification import Classification
from bmx.tasks.regression import Regression
from bmx.tasks.views import Views, views_of, with_views

NOISE = Noise(jax.random.PRNGKey(0), jnp.int32(0))


class Corner(nn.Module):
  """Logits that are the first pixel."""

  @property
  def facts(self):
    return Facts(num_outputs=3)

  @nn.compact
  def __call__(self, inputs, *, train=False):
    return inputs[:, 0, 0]


def batch():
  image = np.random.default_rng(0).normal(size=(5, 16, 24, 3)).astype(np.float32)
  return {'image': image, 'weights': np.ones(5, np.float32)}


def softmax(x):
  return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def test_probabilities_are_means():
  rows, task = batch(), Views(Classification(Corner()), ('flip',))
  got = task.predict({'params': {}}, rows, NOISE)
  image = rows['image']
  expected = (softmax(image[:, 0, 0]) + softmax(image[:, 0, -1])) / 2
  np.testing.assert_allclose(got['probability'], expected, rtol=1e-5)
  np.testing.assert_array_equal(got['prediction'], expected.argmax(-1))


def test_views_are_shifts_and_flips():
  image = batch()['image']
  views = [np.asarray(v) for v in views_of(image, ('crops', 'flip'))]
  assert len(views) == 10
  np.testing.assert_array_equal(views[0], image)
  np.testing.assert_array_equal(views[5], image[:, :, ::-1])
  down_right = views[4]
  np.testing.assert_array_equal(down_right[:, 2:, 3:], image[:, :-2, :-3])
  np.testing.assert_array_equal(down_right[:, 0, 3:], image[:, 0, :-3])
  up_left = views[1]
  np.testing.assert_array_equal(up_left[:, :-2, :-3], image[:, 2:, 3:])
  assert len({v.tobytes() for v in views}) == 10


def test_tasks_and_views_that_cannot_be():
  task = Classification(MLP(3, (4,)))
  assert with_views(task, ()) is task
  with pytest.raises(InputError, match=r"predict.tta=.*unknown view 'flips'; did you mean 'flip'"):
    with_views(task, ('flips',))
  with pytest.raises(InputError, match='expected a classification of images, not Regression'):
    with_views(Regression(MLP(1, (4,))), ('flip',))
  with pytest.raises(InputError, match=r"expected images, not \['weights', 'x'\]"):
    with_views(task, ('flip',)).predict({}, {'x': np.ones((2, 3)), 'weights': np.ones(2)}, NOISE)
