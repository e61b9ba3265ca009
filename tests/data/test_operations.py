"""Single operations of augmentation, beside Pillow and their definitions."""

import concurrent.futures

import numpy as np
import pytest
from PIL import Image

from bmx.core import streams
from bmx.core.errors import InputError
from bmx.data.arrays import ArrayData
from bmx.data.images import colors
from bmx.data.images.augment import augment
from bmx.data.images.colors import ColorJitter, RandAugment
from bmx.data.images.parts import RandomErasing, RandomResizedCrop
from tests.data.test_augment import Given, around, images, scene


def noisy(n=6, side=16, channels=3, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (n, side, side, channels)).astype(np.uint8)


ALL = {
  'crop': 2, 'flip': True, 'scale': (0.3, 1.0), 'randaugment': 2, 'magnitude': 15,
  'brightness': 0.4, 'contrast': 0.4, 'saturation': 0.4, 'hue': 0.1, 'erase': 0.5,
}  # fmt: skip


@pytest.mark.parametrize('channels', [1, 3])
def test_all_operations_are_functions_of_seed_and_position(channels):
  """In any batch, in any order, and for two threads: the pixels have one digest."""
  image = noisy(20, channels=channels)
  make = lambda: ArrayData({'image': image}, {}, seed=4, augment=augment(**ALL))
  whole = make().rows(np.arange(20), np.arange(7, 27))['image']
  assert not np.array_equal(whole, image)
  one = [make().rows(np.array([i]), np.array([7 + i]))['image'][0] for i in (19, 3, 0)]
  np.testing.assert_array_equal(whole[[19, 3, 0]], one)
  data = make()
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    halves = list(pool.map(lambda at: data.rows(at, at + 7)['image'], np.split(np.arange(20), 5)))
  np.testing.assert_array_equal(np.concatenate(halves), whole)


def gray(image):
  return (image.astype(np.int64) @ [19595, 38470, 7471] + 0x8000 >> 16).astype(np.float64)


def blend(image, other, factor):
  return np.clip(other + factor * (image - other.astype(np.float64)), 0, 255).astype(np.uint8)


COLORS = {  # by the definitions of ITU-R 601 gray, and of blending
  'brightness': lambda x, f: blend(x, np.zeros_like(x), f),
  'contrast': lambda x, f: blend(x, np.full_like(x, int(gray(x).mean() + 0.5)), f),
  'saturation': lambda x, f: blend(x, np.repeat(gray(x)[..., None], 3, -1), f),
}


@pytest.mark.parametrize('name', COLORS)
def test_jitter_is_blending(name):
  image, place = noisy(), list(COLORS).index(name)
  draw = np.linspace(0, 0.99, 6)[:, None] * np.ones(4)
  got = ColorJitter(**{name: 0.8})({'image': image}, Given(draw))['image']
  expected = [COLORS[name](x, 0.2 + 1.6 * f) for x, f in zip(image, draw[:, place], strict=True)]
  assert np.abs(got.astype(int) - np.stack(expected)).max() <= 1  # float32 inside


def test_a_shift_of_hue_is_a_rotation_of_the_color_circle():
  red = np.zeros((1, 2, 2, 3), np.uint8)
  red[..., 0] = 255
  for draw, expected in ((0.0, [0, 255, 255]), (0.5, [255, 0, 0])):
    got = ColorJitter(hue=0.5)({'image': red}, Given(np.full((1, 4), draw)))['image']
    assert np.abs(got[0, 0, 0].astype(int) - expected).max() <= 12  # two steps


def test_the_order_of_jitter_is_drawn():
  image = noisy(200)
  for i in range(1, 200):
    image[i] = image[0]

  class Fixed(streams.Draws):
    def __call__(self, number=0):
      drawn = super().__call__(number)
      return np.full_like(drawn, 0.9) if number == 2 else drawn

  jitter = ColorJitter(0.8, 0.8, 0.8)
  got = jitter({'image': image}, Fixed(0, np.arange(200)))['image']
  assert 3 <= len({x.tobytes() for x in got}) <= 6


def equalized(x):
  """One channel, as histogram equalization is defined: the cumulative histogram, stretched."""
  counts = np.bincount(x.ravel(), minlength=256)
  step = (counts.sum() - counts[counts > 0][-1]) // 255
  table = (step // 2 + np.concatenate([[0], np.cumsum(counts)[:-1]])) // step
  return np.minimum(table, 255)[x]


def stretched(x):
  low, high = int(x.min()), int(x.max())
  return np.clip(x * (255 / (high - low)) - low * (255 / (high - low)), 0, 255).astype(int)


RECOLORED = {
  'posterize': (2.0, lambda x: x & 0b11111100),
  'solarize': (100.0, lambda x: np.where(x < 155, x, 255 - x)),
  'equalize': (0.0, lambda x: np.stack([equalized(x[..., c]) for c in range(3)], -1)),
  'autocontrast': (0.0, lambda x: np.stack([stretched(x[..., c]) for c in range(3)], -1)),
  'identity': (0.0, lambda x: x),
  'Brightness': (0.3, lambda x: COLORS['brightness'](x, 1.3)),
}


@pytest.mark.parametrize('name', RECOLORED)
def test_operations_of_color(name):
  size, oracle = RECOLORED[name]
  for image in np.clip(noisy(4, 32), 20, 230):
    got = np.asarray(colors.recolor(colors.to_picture(image), name, size)).astype(int)
    assert np.abs(got - oracle(image)).max() <= 1


def test_rotation_is_that_of_pillow_and_shears_shift_rows():
  for image in noisy(3, 15):
    for angle in (-17.0, 0.0, 30.0):
      got = colors.warp(image, colors.inverse_of('rotate', angle, 15, 15))
      np.testing.assert_array_equal(got, np.asarray(Image.fromarray(image).rotate(angle)))
    got = colors.warp(image, colors.inverse_of('translate_x', 0.2, 15, 15))
    np.testing.assert_array_equal(got[:, 3:], image[:, :-3])
    assert not got[:, :3].any()
    got = colors.warp(image, colors.inverse_of('translate_y', -0.2, 15, 15))
    np.testing.assert_array_equal(got[:-3], image[3:])
    got = colors.warp(image, colors.inverse_of('shear_x', 0.3, 15, 15))
    for row in range(15):
      source = np.floor(np.arange(15) + 0.5 + 0.3 * (row + 0.5)).astype(int)
      inside = source < 15
      np.testing.assert_array_equal(got[row, inside], image[row, source[inside]])
      assert not got[row, ~inside].any()


def test_randaugment_draws_every_operation_alike():
  drawn = streams.Draws(0, np.arange(2000))
  counts = [np.bincount((drawn(48 + k)[:, 0] * 14).astype(int), minlength=14) for k in (0, 1)]
  assert np.abs(np.array(counts) - 2000 / 14).max() < 5 * (2000 / 14) ** 0.5
  rows = scene(200)
  after = RandAugment(1, 20)(rows, streams.Draws(0, np.arange(200)))
  shape = [colors.NAMES[i] in colors.GEOMETRIC for i in (drawn(48)[:200, 0] * 14).astype(int)]
  moved = (after['mask'] != rows['mask']).any((1, 2))
  assert moved[shape].mean() > 0.9
  assert not moved[~np.array(shape)].any()
  for i in np.flatnonzero(moved & (after['box_weights'][:, 0] > 0) & after['mask'].any((1, 2))):
    inside, box = around(after['mask'][i]), after['boxes'][i, 0]
    assert (box[:2] <= np.add(inside[:2], 1)).all()
    assert (box[2:] >= np.subtract(inside[2:], 1)).all()


def test_resized_crops_are_those_of_pillow():
  image = noisy(30, 24)
  rows, crop = {'image': image}, RandomResizedCrop((0.2, 0.8))
  random = streams.Draws(2, np.arange(30))
  parts = crop.parts(np.full(30, 24), np.full(30, 24), random)
  sizes = parts[:, 2:] - parts[:, :2]
  assert (parts >= 0).all()
  assert (parts <= 24).all()
  share = sizes.prod(1) / 24**2
  assert share.min() > 0.15
  assert share.max() < 0.85
  assert (sizes[:, 1] / sizes[:, 0]).max() < 1.6
  for x, (top, left, bottom, right), got in zip(
    image, parts, crop(rows, random)['image'], strict=True
  ):
    expected = Image.fromarray(x).crop((left, top, right, bottom)).resize((24, 24), 2)
    np.testing.assert_array_equal(got, np.asarray(expected))


def test_resized_crops_move_boxes_and_masks():
  rows = scene(60, 16)
  after = RandomResizedCrop((0.4, 1.0))(rows, streams.Draws(0, np.arange(60)))
  there = np.flatnonzero((after['box_weights'][:, 0] > 0) & after['mask'].any((1, 2)))
  assert len(there) > 30
  for i in there:
    assert np.abs(after['boxes'][i, 0] - around(after['mask'][i])).max() <= 1.5


def test_a_shape_without_such_a_part_gives_its_center():
  parts = RandomResizedCrop((1.0, 1.0), (1.0, 1.0)).parts(
    np.array([10, 30]), np.array([30, 10]), streams.Draws(0, np.arange(2))
  )
  np.testing.assert_array_equal(parts, [[0, 10, 10, 20], [10, 0, 20, 10]])


def test_erased_rectangles_hold_the_mean():
  image = noisy(400, 16)
  got = RandomErasing(0.5)({'image': image}, streams.Draws(1, np.arange(400)))['image']
  changed = (got != image).any(-1)
  share = changed.any((1, 2))
  assert abs(share.sum() - 200) < 5 * 10
  for i in np.flatnonzero(share):
    mean = np.rint(image[i].mean((0, 1)))
    top, left, bottom, right = around(changed[i])
    assert (got[i, top:bottom, left:right] == mean).all()
    assert 0.01 < (bottom - top) * (right - left) / 256 < 0.37


BAD_WORDS = {
  'scale': ({'scale': (0.5, 0.2)}, r'scale=\(0.5, 0.2\): expected the least and the largest'),
  'scale of 2': ({'scale': (0.5, 2.0)}, 'scale=2.0: expected .* <= 1'),
  'ratio': ({'scale': (0.5, 1.0), 'ratio': (0.0, 1.0)}, 'ratio=0.0: expected'),
  'hue': ({'hue': 0.7}, 'hue=0.7: expected 0 <= hue <= 0.5'),
  'brightness': ({'brightness': -1.0}, 'brightness=-1.0: expected'),
  'magnitude': ({'randaugment': 1, 'magnitude': 31}, 'magnitude=31: expected'),
  'erase': ({'erase': 1.5}, 'erase=1.5: expected 0 <= erase <= 1'),
}


@pytest.mark.parametrize(('words', 'message'), BAD_WORDS.values(), ids=BAD_WORDS)
def test_words_of_augmentation_that_cannot_be(words, message):
  with pytest.raises(InputError, match=message):
    augment(**words)


def test_colors_of_images_that_do_not_consist_of_bytes():
  for words in ({'hue': 0.1}, {'randaugment': 1}):
    with pytest.raises(InputError, match='expected images of bytes .*found float32 with 2; leave'):
      images(augment=augment(**words))
