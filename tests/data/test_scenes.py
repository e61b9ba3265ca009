"""Composed scenes: functions of their number, tight boxes, true masks, and augmentation."""

import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.data.images.augment import augment
from bmx.data.images.scenes import scenes

SMALL = {'size': 32, 'source': 'digits', 'objects': (1, 3)}


@pytest.fixture(scope='module')
def both():
  """The same scenes as boxes and as masks."""
  return scenes(count=20, **SMALL), scenes(count=20, kind='masks', **SMALL)


def test_a_scene_is_a_function_of_its_number(both):
  boxes, masks = both
  fewer = scenes(count=5, **SMALL)
  for name, array in fewer.arrays.items():
    np.testing.assert_array_equal(array, boxes.arrays[name][:5])
  np.testing.assert_array_equal(boxes.arrays['image'], masks.arrays['image'])
  other = scenes(count=5, scene_seed=1, **SMALL), scenes('test', count=5, **SMALL)
  for data in other:
    assert (data.arrays['image'] != fewer.arrays['image']).mean() > 0.5


def test_boxes_hold_their_masks(both):
  """Each class has as many pixels inside its boxes as in the image, and boxes are tight."""
  boxes, masks = (data.arrays for data in both)
  assert masks['mask'].max() == 10 and boxes['box_label'].max() == 9
  for i in range(20):
    there = boxes['box_weights'][i] > 0
    inside = np.zeros((32, 32), bool)
    for box, label in zip(boxes['boxes'][i][there], boxes['box_label'][i][there], strict=True):
      top, left, bottom, right = box.astype(int)
      mine = masks['mask'][i, top:bottom, left:right] == label + 1
      inside[top:bottom, left:right] = True
      if there.sum() == 1:  # nothing covers a part of it
        assert mine[[0, -1]].any(1).all() and mine[:, [0, -1]].any(0).all()
      assert mine.any()
    assert not masks['mask'][i][~inside].any()


def test_drawings_are_a_class(data_dir):
  file = str(data_dir / 'emojitwo' / 'images_32.npz')
  data = scenes(count=30, sprites=file, **SMALL)
  assert data.metadata['class_names'][-1] == 'drawing' and data.metadata['num_classes'] == 11
  assert (data.arrays['box_label'] == 10).sum() > 5


@pytest.mark.parametrize(('words', 'tolerance'), [
  ({'crop': 6}, 0), ({'flip': True}, 0), ({'crop': 4, 'flip': True}, 0),
  ({'augment': augment(scale=(0.6, 1.0), flip=True, erase=0.5)}, 1.5),  # of resized pixels
])  # fmt: skip
def test_augmentation_moves_boxes_and_masks_along(both, words, tolerance):
  """Masks tell where objects are after a change of pixels: boxes must hold them, and tightly."""
  boxes, masks = (scenes(count=20, **SMALL, **words, kind=k, seed=3) for k in ('boxes', 'masks'))
  order = np.arange(20)
  moved, masked = boxes.rows(order, order + 100), masks.rows(order, order + 100)
  np.testing.assert_array_equal(moved['image'], masked['image'])
  assert (moved['boxes'] != boxes.arrays['boxes']).any()
  for i in order:
    there = moved['box_weights'][i] > 0
    if (boxes.arrays['box_weights'][i] > 0).sum() != 1 or not there.any():
      continue
    (box,), (label,) = moved['boxes'][i][there], moved['box_label'][i][there]
    rows, columns = np.nonzero(masked['mask'][i])
    assert (masked['mask'][i][rows, columns] == label + 1).all()
    around = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
    np.testing.assert_allclose(box, around, atol=tolerance)


def test_wrong_words_are_named(tmp_path):
  wrong = tmp_path / 'wrong.npz'
  wrong.write_text('no archive')
  for words, message in (
    ({'split': 'tests'}, "split='tests': expected one of train, valid, test; did you mean 'test'"),
    ({'kind': 'mask'}, "kind='mask': expected one of boxes, masks"),
    ({'source': 'cifar'}, "source='cifar': expected one of mnist, digits"),
    ({'objects': (3, 1)}, r'objects=\(3, 1\): expected the least and the largest number'),
    ({'size': 8}, 'size=8: expected a finite number, 16 <= size'),
    ({'sprites': str(tmp_path / 'none.npz')}, 'none.npz: expected a numpy archive'),
    ({'sprites': str(wrong)}, 'wrong.npz: expected a numpy archive .* with `images`'),
  ):
    with pytest.raises(InputError, match=message):
      scenes(**{'count': 1, **SMALL, **words})
