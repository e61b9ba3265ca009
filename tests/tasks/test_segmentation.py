"""Segmentation: losses against numpy, IoU against scikit-learn, run lengths against pycocotools."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import jaccard_score

from bmx.core.errors import InputError
from bmx.data.batches import Batches
from bmx.data.images.scenes import scenes
from bmx.models.unet import UNet
from bmx.tasks import pictures, readable
from bmx.tasks.iou import class_iou, mean_iou
from bmx.tasks.segmentation import Segmentation
from tests.models.weights import jit

K = 4
MODEL = UNet(K, (8,), attention=(False,))


def batch(seed=0):
  random = np.random.default_rng(seed)
  return {
    'image': random.normal(size=(5, 6, 7, 3)).astype(np.float32),
    'mask': random.integers(0, K, (5, 6, 7)).astype(np.int32),
    'mask_weights': random.choice([0, 1, 0.5], (5, 6, 7)).astype(np.float32),
    'weights': np.array([1, 0, 2, 1, 1], np.float32),
  }


@pytest.mark.parametrize('factors', [(), (1.0, 3.0, 0.5, 2.0)])
def test_losses(factors):
  rows = batch()
  rows['mask_weights'][3] = 0  # an image without a pixel that counts
  logits = np.random.default_rng(1).normal(size=(5, 6, 7, K))
  probability = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  total = right = 0.0
  for i in (0, 2, 4):
    mask, weights = rows['mask'][i], rows['mask_weights'][i].astype(float)
    each = -np.log(np.take_along_axis(probability[i], mask[..., None], -1))[..., 0]
    shares = weights * np.array(factors or [1] * K)[mask]
    dice = [
      1 - 2 * (weights * probability[i, ..., k] * (mask == k)).sum()
      / (weights * (probability[i, ..., k] ** 2 + (mask == k))).sum()
      for k in range(K)
    ]  # fmt: skip
    total += rows['weights'][i] * ((each * shares).sum() / shares.sum() + 0.3 * np.mean(dice))
    hits = (logits[i].argmax(-1) == mask) * weights
    right += rows['weights'][i] * hits.sum() / weights.sum()
  hidden = np.where(rows['weights'][:, None, None, None] > 0, logits, np.nan)
  task = Segmentation(MODEL, factors, dice=0.3)
  loss, count, metrics = jit(lambda out: task.score(out, rows, train=True))(jnp.float32(hidden))
  assert float(loss) == pytest.approx(total, rel=1e-5) and count == 4
  assert metrics['pixel_accuracy'].tolist() == pytest.approx([right, 4], rel=1e-5)


def test_iou_is_that_of_scikit_learn():
  random = np.random.default_rng(2)
  mask = random.integers(0, 5, (3, 9, 8))
  told = np.where(random.random(mask.shape) < 0.6, mask, random.integers(0, 7, mask.shape))
  weights = random.choice([0.0, 1.0], mask.shape)
  rows = {'mask': mask, 'prediction': told.astype(np.uint8), 'mask_weights': weights}
  there = weights > 0
  labels = np.union1d(mask[there], told[there])
  expected = jaccard_score(mask[there], told[there], average=None, labels=labels)
  assert list(class_iou(rows)) == labels.tolist()
  np.testing.assert_allclose(list(class_iou(rows).values()), expected, rtol=0, atol=1e-12)
  assert mean_iou(rows) == pytest.approx(np.mean(expected), abs=1e-12)


@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')  # of pycocotools
def test_masks_are_written_as_coco_reads_them(reference):
  random = np.random.default_rng(3)
  image = random.choice([0, 0, 0, 1, 2], (2, 5, 4)).astype(np.uint8)
  image[1] = 2
  frame = np.array([[0.5, 0.8, 10, 5], [1, 1, 5, 4]], np.float32)
  lines = readable.segments({'prediction': image, 'frame': frame}, {'class_names': 'abc'})
  (whole,) = lines[1]['segments']
  assert whole['class'] == 'c' and whole['share'] == 1
  for line, pixels in zip(lines, (np.repeat(image[0], 2, 0), image[1]), strict=True):
    for segment in line['segments']:
      height, width = segment['size']
      mask = reference.decode(reference.frPyObjects(dict(segment), height, width))
      rows = mask.astype(bool)
      expected = pixels == 'abc'.index(segment['class'])
      if width == expected.shape[1]:
        np.testing.assert_array_equal(rows, expected)
      else:  # five columns from four, the nearest
        np.testing.assert_array_equal(rows, expected[:, [0, 1, 2, 2, 3]])


@pytest.fixture
def reference():
  return pytest.importorskip('pycocotools.mask', reason='the extra `reference` is not installed')


def test_the_report_shows_boxes_and_masks():
  words = {'count': 5, 'size': 24, 'source': 'digits', 'train': False}
  for kind, titles in (
    ('masks', ['Intersection over union by class', 'Masks']),
    ('boxes', ['Average precision by class', 'Boxes']),
  ):
    data = Batches(scenes(kind=kind, objects=(1, 2), **words), 2, train=False)
    rows = data.rows(np.arange(5), np.arange(5))
    if kind == 'masks':
      found = pictures.segments({**rows, 'prediction': rows['mask'].astype(np.uint8)}, data)
    else:
      told = {'box': rows['boxes'], 'score': rows['box_weights'], 'prediction': rows['box_label']}
      found = pictures.detections({**rows, **told}, data)
    assert [s.title for s in found] == titles
    assert found[1].html.count('<img') == 5 * (3 if kind == 'masks' else 2)
    assert 'example 5' in found[1].html and '>1<' in found[0].html


def test_refusals():
  rows = batch()
  with pytest.raises(InputError, match=r'class_weights=\(1\.0,\): expected 4 numbers'):
    Segmentation(MODEL, (1.0,))
  with pytest.raises(InputError, match='num_outputs=4: expected 11, .* with the background'):
    Segmentation(MODEL).validate({'num_classes': 11})
  with pytest.raises(InputError, match='mask=4 of example 2'):
    mask = np.where(np.arange(5)[:, None, None] == 2, 4, rows['mask'])
    Segmentation(MODEL).check_rows({'mask': mask}, np.arange(5))
  with pytest.raises(InputError, match='expected outputs of .* pixels, those of `mask`'):
    Segmentation(MODEL).score(jnp.zeros((5, 3, 3, K)), rows, train=True)
  with pytest.raises(InputError, match='the predictions lack mask'):
    mean_iou({'prediction': rows['mask']})
