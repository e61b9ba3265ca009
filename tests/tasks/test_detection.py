"""Detection: targets against loops, perfect outputs, crowds, originals, and refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.data.images.scenes import scenes
from bmx.models.detector import Detections, Detector, points
from bmx.models.mlp import MLP
from bmx.parallel.sharding import unbox
from bmx.tasks.average_precision import ap
from bmx.tasks.detection import Detection, assign
from tests.models.weights import jit

NOISE = Noise(jax.random.PRNGKey(0), jnp.int32(0))
MODEL = Detector(10, (8, 16), 1, (2, 4), width=8, depth=1)


@pytest.fixture(scope='module')
def rows():
  data = scenes(count=6, size=40, objects=(1, 3), source='digits', train=False)
  return data.rows(np.arange(6), np.arange(6))


def perfect(batch, strides=MODEL.strides, radius=1.0):
  """The outputs that a detector should learn: certain classes, the true boxes."""
  grid = points(batch['image'].shape[1:3], strides)
  given = [batch[k] for k in ('boxes', 'box_label', 'box_weights')]
  targets = jit(lambda *given: assign(grid, *given, None, radius))(*given)
  label = jnp.where(targets.weights > 0, targets.label, -1)
  logits = 60.0 * jax.nn.one_hot(label, 10) - 30.0
  sides = targets.boxes[..., 2:] - targets.boxes[..., :2]
  center = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2 - jnp.asarray(grid.center)[None]
  return Detections(logits, jnp.concatenate([center, sides], -1), jnp.full(label.shape, 30.0))


def test_points_are_the_outputs():
  image = jnp.zeros((1, 37, 42, 3))
  shapes = jax.eval_shape(lambda x: MODEL.init(NOISE.key, x), image)
  out = jax.eval_shape(lambda v, x: MODEL.apply(v, x), shapes, image)
  grid = points((37, 42), MODEL.strides)
  assert out.logits.shape == (1, len(grid.center), 10) == (1, 19 * 21 + 10 * 11, 10)
  assert out.places.shape == (1, len(grid.center), 4)
  assert grid.center[0].tolist() == [1, 1] and grid.center[-1].tolist() == [38, 42]


def test_targets_are_those_of_a_loop():
  random = np.random.default_rng(0)
  corner = random.uniform(0, 30, (4, 5, 2))
  boxes = np.concatenate([corner, corner + random.uniform(1, 25, (4, 5, 2))], -1).astype('float32')
  label = random.integers(0, 10, (4, 5))
  weights = random.choice([0.0, 1.0, 0.5], (4, 5)).astype(np.float32)
  crowd = (random.random((4, 5)) < 0.3).astype(np.float32)
  grid = points((40, 48), (2, 4))
  found = jit(lambda *given: assign(grid, *given, 1.0))(boxes, label, weights, crowd)
  for b in range(4):
    for p, (row, column) in enumerate(grid.center):
      best, inside = None, False
      for m, (top, left, bottom, right) in enumerate(boxes[b]):
        if not weights[b, m]:
          continue
        if crowd[b, m]:
          inside |= bool(top < row < bottom and left < column < right)
          continue
        off = max(abs(row - (top + bottom) / 2), abs(column - (left + right) / 2))
        longer = max(bottom - top, right - left)
        size = (bottom - top) * (right - left)
        fits = grid.least[p] < longer <= grid.most[p] and off <= grid.stride[p]
        if fits and (best is None or size < best[0]):
          best = size, m
      assert found.weights[b, p] == (weights[b, best[1]] if best else 0)
      assert found.ignored[b, p] == (inside and not best)
      if best:
        assert found.label[b, p] == label[b, best[1]]
        np.testing.assert_array_equal(found.boxes[b, p], boxes[b, best[1]])


def test_every_box_has_a_point(rows):
  """Also thin ones, between the points of a coarse map."""
  boxes = np.array([[[3, 4.1, 25, 4.4], [30, 8, 31, 39]]], np.float32)
  given = {'image': np.zeros((1, 40, 40, 3)), 'boxes': boxes, 'box_label': np.array([[1, 2]]),
           'box_weights': np.ones((1, 2))}  # fmt: skip
  grid = points((40, 40), (8,))
  targets = assign(grid, boxes, given['box_label'], given['box_weights'], None, 0.5)
  assert {1, 2} <= set(np.asarray(targets.label)[np.asarray(targets.weights) > 0].tolist())


def test_perfect_outputs(rows):
  """Their loss is least and their predictions are the labels, in pixels of the originals."""
  task = Detection(MODEL, detections=8)
  frame = np.tile(np.array([[0.5, 2.0, 80, 20]], np.float32), (6, 1))
  batch = {**rows, 'frame': frame, 'weights': np.array([1, 1, 0, 1, 0.5, 1], np.float32)}
  out = perfect(batch)
  total, count, _ = jit(lambda out: task.score(out, batch, train=True))(out)
  assert count == 4.5 and float(total) == pytest.approx(0, abs=1e-4)
  told = jax.device_get(jit(task.postprocess)(out, batch))
  labels = {k: batch[k] for k in task.labels_for_metrics if k in batch}
  assert ap({**told, **labels}) == pytest.approx(1, abs=1e-9)
  names = [str(i) for i in range(10)]
  lines = task.readable({**told, **labels}, {'class_names': names})
  for line in lines:
    assert len(line['objects']) == len(line['labels']) > 0
    one = lambda x: {k: pytest.approx(v, abs=1e-3) for k, v in x.items() if k != 'class'}
    for label in line['labels']:
      same = [o for o in line['objects'] if o['class'] == label['class']]
      assert any({k: o[k] for k in one(label)} == one(label) for o in same)
  top = min(o['top'] for line in lines for o in line['objects'])
  assert max(o['right'] for line in lines for o in line['objects']) <= 20 and top >= 0


def test_crowds_are_not_background(rows):
  task, crowd = Detection(MODEL), np.ones_like(rows['box_weights'])
  given = {**rows, 'boxes': np.tile(np.float32([0, 0, 40, 40]), (*crowd.shape, 1)),
           'box_weights': np.ones_like(crowd)}  # fmt: skip
  loud = Detections(jnp.full((6, 500, 10), 3.0), jnp.ones((6, 500, 4)), jnp.zeros((6, 500)))
  assert task.score(loud, {**given, 'box_crowd': crowd}, train=True)[0] == 0
  assert task.score(loud, given, train=True)[0] > 0


def test_rows_without_weight_count_nothing_and_rows_are_independent(rows):
  task = Detection(Detector(10, (4, 8), 0, (4,), width=8, depth=0))
  variables = unbox(jit(task.init)(NOISE, rows))
  program = jit(lambda batch: task.loss(variables, batch, NOISE, train=True)[:2])

  def loss(weights):
    hidden = np.where(weights[:, None, None, None] > 0, rows['image'], np.nan).astype(np.float32)
    return program({**rows, 'image': hidden, 'weights': weights})

  weights = np.array([1, 0, 2, 0, 1, 1], np.float32)
  total, count = loss(weights)
  each = [float(loss(np.float32(np.arange(6) == i))[0]) for i in range(6)]
  assert float(total) == pytest.approx(weights @ each, rel=1e-5) and count == 5


def test_refusals(rows):
  with pytest.raises(InputError, match=r'task\.model=MLP: expected a detector'):
    Detection(MLP(3))
  with pytest.raises(InputError, match=r'radius=0\.2: expected'):
    Detection(MODEL, radius=0.2)
  with pytest.raises(InputError, match='num_outputs=10: expected 11'):
    Detection(MODEL).validate({'num_classes': 11})
  with pytest.raises(InputError, match='box_label=10 of example 7'):
    label = np.where(np.arange(6)[:, None] == 1, 10, rows['box_label'])
    Detection(MODEL).check_rows({**rows, 'box_label': label}, np.arange(6) + 6)
  with pytest.raises(InputError, match=r'boxes=\[.*\] of example 0: expected \(top'):
    Detection(MODEL).check_rows({**rows, 'boxes': rows['boxes'][..., [2, 1, 0, 3]]}, np.arange(6))
  with pytest.raises(InputError, match=r'strides=\(3,\): expected some of \[2, 4\]'):
    Detector(2, (8, 8), strides=(3,)).init(NOISE.key, jnp.zeros((1, 16, 16, 3)))
