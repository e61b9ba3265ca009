"""Average precision equals that of pycocotools, and known values."""

import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.tasks import average_precision as metrics

SIZES = {'all': metrics.EVERY, 'small': (0, 32**2), 'medium': (32**2, 96**2),
         'large': (96**2, 1e10)}  # fmt: skip


def random_rows(seed, images=12, classes=4, most=7, found=30, crowds=True, ties=False):
  """Boxes, and detections near them and elsewhere; float64, so that both programs see one value."""
  random = np.random.default_rng(seed)
  corner = random.uniform(0, 200, (images, most, 2))
  boxes = np.concatenate([corner, corner + random.uniform(4, 140, (images, most, 2))], -1)
  weights = (random.random((images, most)) < 0.7).astype(np.float32)
  near = random.integers(0, most, (images, found))
  moved = np.take_along_axis(boxes, near[..., None], 1)
  moved = moved + random.normal(0, random.choice([0, 3, 12], (images, found, 1)), moved.shape)
  moved[..., 2:] = np.maximum(moved[..., 2:], moved[..., :2] + 1)
  label = random.integers(0, classes, (images, most))
  told = np.take_along_axis(label, near, 1)
  told = np.where(random.random(told.shape) < 0.2, random.integers(0, classes, told.shape), told)
  score = random.random((images, found))
  score = np.round(score, 1) if ties else score
  score[random.random(score.shape) < 0.2] = 0
  crowd = (random.random((images, most)) < 0.2 * crowds).astype(np.float32)
  area = metrics.area(boxes) * random.uniform(0.5, 1, (images, most))
  return {'boxes': boxes, 'box_label': label, 'box_weights': weights, 'box_crowd': crowd,
          'box_area': area, 'box': moved, 'prediction': told, 'score': score}  # fmt: skip


@pytest.fixture
def reference():
  """A function of rows: AP, AP50, AP75, small, medium, large of pycocotools; precision by class."""
  coco = pytest.importorskip('pycocotools.coco', reason='the extra `reference` is not installed')
  cocoeval = pytest.importorskip('pycocotools.cocoeval')
  return lambda rows, classes: reference_stats(coco, cocoeval, rows, classes)


def reference_stats(coco, cocoeval, rows, classes):
  xywh = lambda b: [b[1], b[0], b[3] - b[1], b[2] - b[0]]
  truth = [
    {'id': 1 + i * 1000 + j, 'image_id': i + 1, 'category_id': int(rows['box_label'][i, j]),
     'bbox': xywh(rows['boxes'][i, j]), 'area': rows['box_area'][i, j],
     'iscrowd': int(rows['box_crowd'][i, j])}
    for i, j in np.argwhere(rows['box_weights'] > 0)
  ]  # fmt: skip
  found = [
    {'image_id': i + 1, 'category_id': int(rows['prediction'][i, j]),
     'bbox': xywh(rows['box'][i, j]), 'score': rows['score'][i, j]}
    for i, j in np.argwhere(rows['score'] > 0)
  ]  # fmt: skip
  known = coco.COCO()
  known.dataset = {'images': [{'id': i + 1} for i in range(len(rows['boxes']))],
                   'categories': [{'id': k} for k in range(classes)],
                   'annotations': truth}  # fmt: skip
  known.createIndex()
  if not found:
    told = coco.COCO()
    told.dataset = {**known.dataset, 'annotations': []}
    told.createIndex()
  else:
    told = known.loadRes(found)
  judged = cocoeval.COCOeval(known, told, 'bbox')
  judged.evaluate()
  judged.accumulate()
  judged.summarize()
  return judged.stats[:6], judged.eval['precision'][..., -1]


@pytest.mark.parametrize('seed', range(6))
def test_equals_pycocotools(seed, reference):
  rows = random_rows(seed, crowds=seed % 2 == 0, ties=seed > 2)
  stats, precision = reference(rows, 4)
  functions = (metrics.ap, metrics.ap50, metrics.ap75, metrics.ap_small, metrics.ap_medium,
               metrics.ap_large)  # fmt: skip
  np.testing.assert_allclose([f(rows) for f in functions], stats, rtol=0, atol=1e-12)
  for number, areas in enumerate(SIZES.values()):
    found = metrics.by_class(rows, areas)
    for k in range(4):
      expected = precision[:, :, k, number].mean(1)
      if k in found:
        np.testing.assert_allclose(found[k], expected, rtol=0, atol=1e-12)
      else:
        assert (expected == -1).all()


def test_more_detections_than_count(reference):
  rows = random_rows(7, images=2, classes=1, found=160)
  np.testing.assert_allclose(metrics.ap(rows), reference(rows, 1)[0][0], rtol=0, atol=1e-12)


def test_without_detections(reference):
  rows = random_rows(0)
  rows['score'] = np.zeros_like(rows['score'])
  assert metrics.ap(rows) == 0 == reference(rows, 4)[0][0]


def test_a_known_curve():
  """One image, two boxes: right, wrong, right: precision 1 up to recall ½, then ⅔."""
  boxes = np.array([[[0, 0, 10, 10], [20, 20, 30, 30]]], np.float32)
  rows = {'boxes': boxes, 'box_label': np.zeros((1, 2), int), 'box_weights': np.ones((1, 2)),
          'box': np.stack([boxes[0, 0], [50, 50, 60, 60], boxes[0, 1]])[None],
          'prediction': np.zeros((1, 3), int), 'score': np.array([[0.9, 0.8, 0.7]])}  # fmt: skip
  assert metrics.ap50(rows) == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-12)


def test_truth_is_read_in_pixels_of_the_original():
  rows = random_rows(1)
  scale = np.full((len(rows['boxes']), 4), 0.25, np.float32)
  scale[:, 1] = 2.0
  moved = {**rows, 'boxes': rows['boxes'] * np.tile(scale[:, None, :2], 2), 'frame': scale}
  assert metrics.ap(moved) == pytest.approx(metrics.ap(rows), abs=1e-12)


def test_wrong_input_is_named():
  rows = random_rows(0)
  empty = {**rows, 'box_weights': np.zeros_like(rows['box_weights'])}
  with pytest.raises(InputError, match='the split has no boxes'):
    metrics.ap(empty)
  small = {**rows, 'box_area': np.ones_like(rows['box_area'])}
  with pytest.raises(InputError, match='no boxes of at least 96² pixels'):
    metrics.ap_large(small)
  with pytest.raises(InputError, match='lack boxes'):
    metrics.ap({k: v for k, v in rows.items() if k != 'boxes'})
