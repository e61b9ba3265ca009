"""Augmentation: a function of seed and position, the same for images, boxes and masks."""

import hashlib

import numpy as np
import pytest

from bmx.core import streams
from bmx.core.errors import InputError
from bmx.data.arrays import ArrayData
from bmx.data.builtin import digits
from bmx.data.images.augment import Flip, RandomCrop, Sequence, augment, augmentation
from bmx.data.images.parts import RandomErasing
from tests.data.batched import batched


def images(n=12, side=6, channels=2, **options):
  image = np.random.default_rng(1).uniform(1, 2, (n, side, side, channels)).astype(np.float32)
  return batched(ArrayData, 4, {'image': image}, {}, **options)


class Given:
  """Draws that a test chooses, the same ones from every stream."""

  def __init__(self, numbers):
    self.numbers = np.asarray(numbers, np.float64)

  def __call__(self, number=0):
    return self.numbers


def digest(array):
  return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


RECORDED = {  # of the version that had crops and flips only
  ('uint8', 2, True): 'bd8d7bfcb078bb87',
  ('uint8', 3, False): '69514aeab15cbfa5',
  ('uint8', 0, True): '8bb5a7495ab3c438',
  ('float32', 2, True): '709e66494eb6ed02',
  ('float32', 3, False): 'c2374f603924545f',
  ('float32', 0, True): 'a040ebca4656717e',
}


@pytest.mark.parametrize('case', RECORDED, ids=str)
def test_crops_and_flips_are_the_recorded_ones(case):
  dtype, crop, flip = case
  image = np.random.default_rng(1).integers(0, 256, (12, 7, 6, 3)).astype(dtype)
  data = ArrayData({'image': image}, {}, seed=5, augment=augment(crop=crop, flip=flip))
  at = np.concatenate([np.arange(990, 1040), [3, 17, 2**40]])
  assert digest(data.rows(at % 12, at)['image']) == RECORDED[case]


def test_crops_of_digits_are_the_recorded_ones():
  rows = digits(crop=1, seed=3).rows(np.arange(64), np.arange(64))
  assert digest(rows['image']) == 'd11be9471ea1363e'


def test_augmentation_is_a_function_of_seed_and_position():
  data = images(n=40, augment=augment(crop=2, flip=True), seed=5)
  indices, at = np.arange(40) % 7, np.arange(1000, 1040)
  whole = data.rows(indices, at)['image']
  some = np.array([3, 4, 20, 11, 39])
  np.testing.assert_array_equal(data.rows(indices[some], at[some])['image'], whole[some])
  again = images(n=40, augment=augment(crop=2, flip=True), seed=5)
  np.testing.assert_array_equal(again.rows(indices, at)['image'], whole)
  other = images(n=40, augment=augment(crop=2, flip=True), seed=6)
  assert not np.array_equal(other.rows(indices, at)['image'], whole)
  assert not np.array_equal(data.rows(indices, at + 40)['image'], whole)


def test_evaluation_is_not_augmented():
  data = images(augment=augment(crop=2, flip=True), train=False)
  got = data.rows(np.arange(12), np.arange(12))['image']
  np.testing.assert_array_equal(got, data.arrays['image'])


def crops(image, crop):
  """Every (offset, flip) of an image padded with zeros -> the view it gives."""
  side = image.shape[0]
  padded = np.zeros((side + 2 * crop, side + 2 * crop, image.shape[2]), image.dtype)
  padded[crop : crop + side, crop : crop + side] = image
  views = {}
  for i in range(2 * crop + 1):
    for j in range(2 * crop + 1):
      view = padded[i : i + side, j : j + side]
      views[i, j, False], views[i, j, True] = view, view[:, ::-1]
  return views


def test_crops_are_crops_and_all_of_them_happen():
  data, crop = images(n=6, augment=augment(crop=2, flip=True)), 2
  known = [crops(image, crop) for image in data.arrays['image']]
  indices = np.arange(600) % 6
  found = set()
  for index, got in zip(indices, data.rows(indices, np.arange(600))['image'], strict=True):
    names = [name for name, view in known[index].items() if np.array_equal(view, got)]
    assert len(names) == 1
    found.add(names[0])
  assert len(found) == 50


@pytest.mark.parametrize(('draw', 'top', 'flipped'), [(0.0, 0, True), (0.9999, 2, False)])
def test_crop_and_flip_follow_the_draws(draw, top, flipped):
  image = np.arange(2 * 4 * 4, dtype=np.uint8).reshape(2, 4, 4, 1)
  got = augment(crop=1, flip=True)(
    {'image': image, 'label': np.arange(2)}, Given(np.full((2, 4), draw))
  )
  expected = [crops(x, 1)[top, top, flipped] for x in image]
  np.testing.assert_array_equal(got['image'], expected)
  np.testing.assert_array_equal(got['label'], [0, 1])
  assert got['image'].dtype == np.uint8


def test_flips_are_fair():
  data = images(n=1, augment=augment(crop=0, flip=True))
  got = data.rows(np.zeros(2000, int), np.arange(2000))['image']
  flipped = (got == data.arrays['image'][0][:, ::-1]).all((1, 2, 3))
  assert (flipped | (got == data.arrays['image'][0]).all((1, 2, 3))).all()
  assert abs(flipped.sum() - 1000) < 5 * (2000 / 4) ** 0.5


def test_no_augmentation_is_none():
  assert augmentation(0, False, None) is None
  assert augmentation(0, False, augment()) is None
  erasing = augment(erase=1.0)
  assert augmentation(1, True, erasing) == Sequence((augment(crop=1, flip=True), erasing))
  assert augment(crop=1, flip=True, erase=1.0).operations == (
    RandomCrop(1),
    Flip(),
    RandomErasing(1.0),
  )


def test_streams_are_independent():
  """Four numbers of each stream of a position are those of Philox, counted by stream."""
  positions = np.array([5, 6, 7, 100, 3])
  random = streams.Draws(9, positions)
  for number in (0, 1, 40):
    words = [
      np.random.Philox(key=[9, streams.AUGMENTATION], counter=[p, number, 0, 0]).random_raw(4)
      for p in positions
    ]
    np.testing.assert_array_equal(random(number), (np.stack(words) >> np.uint64(11)) * 2.0**-53)
  many = streams.Draws(0, np.arange(4000))
  both = np.concatenate([many(0), many(1)], 1)
  assert np.abs(np.corrcoef(both.T) - np.eye(8)).max() < 5 / 4000**0.5


def scene(n=40, side=12):
  """Images with a rectangle of ones each, its box, and its mask; padded by a box of weight 0."""
  generator = np.random.default_rng(0)
  top, left = generator.integers(0, side - 4, (2, n))
  bottom = top + generator.integers(2, 5, n)
  right = left + generator.integers(2, 5, n)
  image = np.zeros((n, side, side, 1), np.uint8)
  for i in range(n):
    image[i, top[i] : bottom[i], left[i] : right[i]] = 1
  box = np.stack([top, left, bottom, right], 1)
  return {
    'image': image,
    'mask': image[..., 0].astype(np.int32),
    'mask_weights': np.ones((n, side, side), np.float32),
    'boxes': np.stack([box, np.zeros_like(box)], 1).astype(np.float32),
    'box_label': np.ones((n, 2), np.int32),
    'box_weights': np.tile(np.float32([1, 0]), (n, 1)),
  }


def around(mask):
  """(top, left, bottom, right) of the pixels that are not 0."""
  rows, columns = np.nonzero(mask)
  return [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]


def test_boxes_and_masks_move_with_the_pixels():
  before = scene()
  after = augment(crop=5, flip=True)(before, streams.Draws(1, np.arange(40)))
  assert {k: (v.shape, v.dtype) for k, v in after.items()} == {
    k: (v.shape, v.dtype) for k, v in before.items()
  }
  np.testing.assert_array_equal(after['mask'], after['image'][..., 0])
  kept = after['mask'].sum((1, 2)) / before['mask'].sum((1, 2))
  assert set((after['box_weights'][:, 0] > 0).tolist()) == {True, False}
  np.testing.assert_array_equal(after['box_weights'][:, 0], kept >= 0.25)
  for i in np.flatnonzero(kept >= 0.25):
    np.testing.assert_array_equal(after['boxes'][i, 0], around(after['mask'][i]))
  assert not after['boxes'][after['box_weights'] == 0].any()


def test_padding_of_a_mask_weighs_nothing():
  rows = scene(2)
  after = RandomCrop(3)(rows, Given(np.zeros((2, 4))))
  expected = np.ones((2, 12, 12), np.float32)
  expected[:, :3], expected[:, :, :3] = 0, 0
  np.testing.assert_array_equal(after['mask_weights'], expected)


def test_rows_that_are_augmented_are_not_changed():
  rows = scene()
  copies = {k: v.copy() for k, v in rows.items()}
  augment(crop=2, flip=True)(rows, streams.Draws(0, np.arange(40)))
  for name, copy in copies.items():
    np.testing.assert_array_equal(rows[name], copy)


def test_a_flip_twice_is_the_image():
  rows, random = scene(), streams.Draws(3, np.arange(40))
  again = Flip()(Flip()(rows, random), random)
  for name in ('image', 'mask', 'boxes'):
    np.testing.assert_array_equal(again[name], rows[name])


@pytest.mark.parametrize(('crop', 'message'), [
  (-1, 'crop=-1: expected a number of pixels'),
  (6, 'crop=6: expected less than the side of the images, 6×6 pixels'),
])  # fmt: skip
def test_crops_that_cannot_be(crop, message):
  with pytest.raises(InputError, match=message):
    images(augment=augment(crop=crop, flip=False))
