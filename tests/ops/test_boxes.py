"""Overlaps of boxes, and non-maximum suppression, against loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from bmx.ops.boxes import giou, iou, non_maximum_suppression
from bmx.ops.losses import focal
from tests.models.weights import jit


def random_boxes(seed, *shape):
  random = np.random.default_rng(seed)
  corner = random.uniform(0, 30, (*shape, 2))
  return np.concatenate([corner, corner + random.uniform(1, 20, (*shape, 2))], -1).astype('float32')


def one_iou(a, b):
  """Counts in a plane of 1/8 pixels would do; the area of rectangles does."""
  inside = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
  size = lambda x: (x[2] - x[0]) * (x[3] - x[1])
  return inside, size(a) + size(b) - inside


def test_overlaps():
  a, b = random_boxes(0, 50), random_boxes(1, 50)
  for i in range(50):
    inside, union = one_iou(a[i].astype(float), b[i].astype(float))
    low, high = np.minimum(a[i], b[i])[:2], np.maximum(a[i], b[i])[2:]
    hull = np.prod((high - low).astype(float))
    assert iou(a[i], b[i]) == pytest.approx(inside / union, abs=1e-5)
    assert giou(a[i], b[i]) == pytest.approx(inside / union - (hull - union) / hull, abs=1e-5)


def test_boxes_without_area_overlap_by_nothing():
  nothing = jnp.zeros((1, 4))
  assert iou(nothing, nothing) == 0
  assert np.isfinite(giou(nothing, nothing)).all()


def greedy(boxes, scores, labels, count, threshold):
  """The definition: the best box, without those of its class that overlap a better one."""
  order, kept = np.argsort(-scores, kind='stable'), []
  for i in order:
    clash = [j for j in kept if labels[i] == labels[j]
             and np.divide(*one_iou(boxes[i], boxes[j])) > threshold]  # fmt: skip
    if scores[i] > 0 and not clash:
      kept.append(i)
  return kept[:count]


@pytest.mark.parametrize('count', [3, 40])
def test_suppression_is_greedy(count):
  boxes = random_boxes(2, 3, 30).astype(np.float64)
  random = np.random.default_rng(3)
  scores = np.round(random.random((3, 30)), 1).astype(np.float32)
  labels = random.integers(0, 2, (3, 30))
  choose = jit(lambda *given: non_maximum_suppression(*given, count, 0.3))
  chosen, kept = choose(jnp.float32(boxes), scores, labels)
  for i in range(3):
    expected = greedy(boxes[i], scores[i], labels[i], count, 0.3)
    there = np.asarray(kept[i]) > 0
    assert chosen[i][there].tolist() == expected
    assert kept[i][there].tolist() == scores[i][expected].tolist()
    assert not there[len(expected) :].any()


def test_focal_loss():
  random = np.random.default_rng(4)
  logits, labels = random.normal(0, 3, 40), random.integers(0, 2, 40)
  p = 1 / (1 + np.exp(-logits))
  right = np.where(labels, p, 1 - p)
  expected = -np.where(labels, 0.3, 0.7) * (1 - right) ** 1.5 * np.log(right)
  np.testing.assert_allclose(focal(jnp.float32(logits), labels, 1.5, 0.3), expected, rtol=1e-4)
