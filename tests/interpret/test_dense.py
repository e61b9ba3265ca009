"""Attributions of a tag, a class of pixels, a box, and a click, against sums that are known."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.core.types import Facts
from bmx.interpret import fields, gradients, methods
from bmx.interpret.dense import chosen_class, place_of, weights_of
from bmx.interpret.features import features_of
from bmx.interpret.maps import grad_cam
from bmx.interpret.methods import Options, methods_of
from bmx.interpret.patches import Patch
from bmx.interpret.subject import Subject, embedding_path, places
from bmx.models.bert import BERT, Tagger
from bmx.models.detector import Detections, Detector
from bmx.models.recsys import DeepFM, WideDeep
from bmx.parallel import Layout, make_mesh
from bmx.tasks.ctr import ClickThrough
from bmx.tasks.detection import Detection
from bmx.tasks.encoder import TokenClassification
from bmx.tasks.segmentation import Segmentation
from tests.interpret.subjects import tokens
from tests.models.weights import drawn, shapes

SIZES, N = (5, 3), 2
LAYOUT = Layout(make_mesh({'data': 1}, jax.devices()[:1]))


class Pixels(nn.Module):
  """A linear model of each pixel, whose gradients are its weights."""

  num_outputs: int = 3

  @property
  def facts(self) -> Facts:
    return Facts(num_outputs=self.num_outputs)

  @nn.compact
  def __call__(self, x, *, train=False):
    return nn.Dense(self.num_outputs, name='dense')(x)


def made(task, batch, scale=0.5):
  """Variables of a task and its outputs."""
  given = drawn(shapes(task.model, *task.inputs(batch)), 0, scale)
  return given, np.asarray(Subject(task, given, batch).outputs())


def test_a_class_of_pixels_is_the_mean_over_its_pixels():
  image = np.random.default_rng(0).normal(size=(2, 4, 4, 2)).astype(np.float32)
  task, batch = Segmentation(Pixels()), {'image': image, 'weights': np.ones(2, np.float32)}
  given, outputs = made(task, batch)
  classes = chosen_class(task, outputs, batch, 0)
  found = weights_of(task, outputs, batch, classes)
  kernel = np.asarray(given['params']['dense']['kernel'])
  slope = gradients.gradient(*Subject(task, given, batch, jnp.asarray(found)).input())
  for i, k in enumerate(classes):
    there = outputs[i].argmax(-1) == k
    assert k != 0 and there.any()
    expected = there[..., None] * kernel[:, k] / there.sum()
    np.testing.assert_allclose(slope[i], expected, atol=1e-6)
  nowhere = outputs.copy()
  nowhere[..., 1] = -9
  every = weights_of(task, nowhere, batch, np.array([1, 1]))
  np.testing.assert_allclose(every[..., 1], np.full((2, 4, 4), 1 / 16))


def test_pixels_of_one_class_alone_are_explained_by_it():
  task = Segmentation(Pixels())
  outputs = np.zeros((1, 2, 2, 3), np.float32)
  outputs[..., 0] = 1
  assert chosen_class(task, outputs, {}, 0) == [0]
  outputs[0, 1, 1, 2] = 2
  assert chosen_class(task, outputs, {}, 0) == [2]


@pytest.fixture(scope='module')
def tagged():
  task = TokenClassification(Tagger(BERT(12, 8, width=16, depth=1, heads=2, dropout=0.0), 3))
  batch = tokens()
  batch |= {'weights': (batch['segment_ids'] * [1, 0, 1, 1, 1, 1, 1, 0]).astype(np.float32)}
  given, outputs = made(task, batch)
  return task, batch, given, outputs


def test_a_tag_is_explained_at_one_word(tagged):
  """At the token that is surest of it, among those that begin a word, in the changed text too."""
  task, batch, given, outputs = tagged
  share = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
  found = weights_of(task, outputs, batch, np.array([2, 1]))
  for i, k in enumerate((2, 1)):
    at = np.where(batch['weights'][i] > 0, share[i, :, k], 0).argmax()
    assert place_of(found[i]) == (at, k) and found[i].sum() == 1
  features = features_of(batch, {})
  base = np.zeros((1, 1, 1), np.float32)
  call = lambda method: methods.explain(
    method, task, LAYOUT, given, batch, jnp.asarray(found), features, base, Options(8)
  )
  fallen = call('occlusion').values
  path = embedding_path(places(task, given, batch))
  for t in range(8):
    there = (np.arange(8) == t)[None, :, None]
    zero = {path: Patch(jnp.zeros((2, 8, 16)), where=jnp.broadcast_to(there, (2, 8, 1)))}
    changed = np.asarray(Subject(task, given, batch).outputs(zero))
    expected = ((outputs - changed) * found).sum((1, 2))
    np.testing.assert_allclose(fallen[:, t], expected, atol=1e-5)
  whole = {path: Patch(jnp.zeros((2, 8, 16)))}
  empty = np.asarray(Subject(task, given, batch).outputs(whole))
  summed = call('integrated_gradients').values.sum(1)
  np.testing.assert_allclose(summed, ((outputs - empty) * found).sum((1, 2)), atol=2e-3)
  assert np.abs(call('integrated_gradients').values[1, 5:]).max() <= 1e-6  # padding
  rolled = call('rollout').values
  np.testing.assert_allclose(rolled.sum(1), [1, 1], rtol=1e-5)
  assert set(methods_of(task, given, batch)) >= {'rollout', 'shapley', 'saliency', 'occlusion'}


def test_the_surest_tag_but_none_is_explained(tagged):
  task, batch, _, outputs = tagged
  share = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
  best = np.where(
    (batch['weights'] > 0)[..., None] & (share == share.max(-1, keepdims=True)), share, 0
  )
  best[..., 0] = 0
  expected = [row.max(0).argmax() if row.any() else 0 for row in best]
  np.testing.assert_array_equal(chosen_class(task, outputs, batch, 0), expected)


def test_a_box_is_explained_by_the_logarithm_of_its_score():
  model = Detector(3, (4, 8), width=8, depth=1, groups=2)
  task = Detection(model)
  image = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
  batch = {'image': jnp.asarray(image), 'weights': np.ones(2, np.float32)}
  given, outputs = made(task, batch, 0.2)
  out: Detections = model.apply(given, image)
  sigmoid = lambda x: 1 / (1 + np.exp(-np.asarray(x, np.float64)))
  score = np.sqrt(sigmoid(out.logits) * sigmoid(out.quality)[..., None])
  np.testing.assert_allclose(np.exp(outputs), score, rtol=1e-4)
  classes = chosen_class(task, outputs, batch, -1)
  found = weights_of(task, outputs, batch, classes)
  for i, k in enumerate(classes):
    assert score[i].max() == pytest.approx(score[i, place_of(found[i])[0], k])
  subject = Subject(task, given, batch, jnp.asarray(found))
  of, x = subject.input()
  slope = np.asarray(gradients.gradient(of, x))
  step = np.zeros_like(image)
  step[:, 9, 14, 1] = 0.01
  expected = (of(x + step) - of(x - step)) / 0.02
  np.testing.assert_allclose(slope[:, 9, 14, 1], expected, rtol=2e-2, atol=1e-4)
  with pytest.raises(InputError, match='gradcam: expected the path of a layer.* set --layer to'):
    grad_cam(subject)


def clicks(model):
  random = np.random.default_rng(0)
  draw = lambda n: {
    'x': random.normal(size=(n, N)).astype(np.float32),
    'ids': np.stack([random.integers(0, size, n) for size in SIZES], 1).astype(np.int32),
  }
  task, batch = ClickThrough(model), draw(3) | {'weights': np.ones(3, np.float32)}
  return task, batch, draw(4), made(task, batch)[0]


def explained(method, task, batch, background, given):
  packed = np.asarray(fields.pack(background['x'], background['ids']))
  target = jnp.ones(3, jnp.int32)
  return methods.explain(method, task, LAYOUT, given, batch, target, features_of(batch, {}),
                         packed, Options(16))  # fmt: skip


def test_columns_of_a_linear_click_model_have_their_weights():
  """Shapley values and falls of a sum are its terms, less those of the baseline."""
  task, batch, background, given = clicks(WideDeep(SIZES, N, width=4, widths=(3,)))
  given = jax.tree.map(jnp.asarray, given)
  params = given['params']
  params['deep'] = jax.tree.map(jnp.zeros_like, params['deep'])
  numeric = np.asarray(params['linear']['numeric'])[:, 0]
  table = np.asarray(params['linear']['categories']['table'])[:, 0]
  terms = lambda rows: np.concatenate(
    [rows['x'] * numeric, table[rows['ids'] + np.array([[0, SIZES[0]]])]], 1
  )
  found = explained('shapley', task, batch, background, given).values
  np.testing.assert_allclose(found, terms(batch) - terms(background).mean(0), atol=1e-5)
  common = [np.bincount(column).argmax() for column in background['ids'].T]
  base = {'x': background['x'].mean(0, keepdims=True), 'ids': np.array([common])}
  fallen = explained('occlusion', task, batch, background, given).values
  np.testing.assert_allclose(fallen, terms(batch) - terms(base), atol=1e-5)


def test_shapley_values_of_a_click_sum_to_the_difference_of_logits():
  task, batch, background, given = clicks(DeepFM(SIZES, N, width=4, widths=(3,)))
  found = explained('shapley', task, batch, background, given).values
  logit = lambda rows: np.asarray(task.model.apply(given, rows['x'], rows['ids']))[:, 0]
  np.testing.assert_allclose(found.sum(1), logit(batch) - logit(background).mean(), atol=1e-4)
  assert methods_of(task, given, batch) == ('shapley', 'occlusion')


def test_packed_columns_are_whole():
  x = np.array([[np.nan, -0.0], [1e-40, 3e38]], np.float32)
  ids = np.array([[2**31 - 1], [7]], np.int32)
  found = fields.unpack(fields.pack(x, ids), 2)
  np.testing.assert_array_equal(np.asarray(found['x']).view(np.int32), x.view(np.int32))
  np.testing.assert_array_equal(found['ids'], ids)
