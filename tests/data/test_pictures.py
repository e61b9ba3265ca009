"""Files of images: every mode is decoded right, or refused with the file's name."""

import io

import numpy as np
import pytest
from PIL import Image

from bmx.core.errors import InputError
from bmx.data.images.pictures import Pixels, eight_bits
from tests.data.pictures import pixels

RGB, GRAY = Pixels((20, 24, 3)), Pixels((20, 24, 1))


def encoded(picture, kind='PNG', **options):
  file = io.BytesIO()
  picture.save(file, kind, **options)
  return file.getvalue()


def read(reader, data):
  return reader.center(reader.open(data, 'a.png'))


def test_colors_and_gray():
  image = pixels(0)
  np.testing.assert_array_equal(read(RGB, encoded(Image.fromarray(image))), image)
  gray = (image.astype(int) @ [19595, 38470, 7471] + 0x8000) >> 16
  np.testing.assert_array_equal(read(GRAY, encoded(Image.fromarray(image)))[..., 0], gray)
  plain = Image.fromarray(gray.astype(np.uint8))
  np.testing.assert_array_equal(read(GRAY, encoded(plain))[..., 0], gray)
  np.testing.assert_array_equal(read(RGB, encoded(plain)), np.repeat(gray[..., None], 3, -1))


def test_a_palette():
  image = pixels(0) // 128 * 200
  picture = Image.fromarray(image).convert('P', palette=Image.Palette.ADAPTIVE)
  assert picture.mode == 'P'
  np.testing.assert_array_equal(read(RGB, encoded(picture)), image)


def test_bits():
  bits = np.random.default_rng(0).integers(0, 2, (20, 24)).astype(bool)
  got = read(RGB, encoded(Image.fromarray(bits)))
  np.testing.assert_array_equal(got, np.repeat(255 * bits[..., None], 3, -1))


def test_cmyk_is_converted():
  image = pixels(0)
  data = encoded(Image.fromarray(image).convert('CMYK'), 'TIFF')
  assert np.abs(read(RGB, data).astype(int) - image).max() <= 1
  assert (
    np.abs(
      read(RGB, encoded(Image.fromarray(image).convert('CMYK'), 'JPEG', quality=100)).astype(int)
      - image
    ).mean()
    < 8
  )


@pytest.mark.parametrize('background', [(255, 255, 255), (0, 128, 7)])
def test_transparency_is_blended_with_the_background(background):
  image, alpha = pixels(0), np.linspace(0, 255, 480).astype(np.uint8).reshape(20, 24, 1)
  got = read(
    Pixels((20, 24, 3), background=background),
    encoded(Image.fromarray(np.concatenate([image, alpha], -1))),
  )
  share = alpha / 255
  expected = share * image + (1 - share) * np.array(background)
  assert np.abs(got - expected).max() <= 1


def test_transparency_of_gray_and_of_palettes():
  gray = np.full((20, 24, 2), 100, np.uint8)
  gray[:10, :, 1], gray[10:, :, 1] = 0, 255
  got = read(RGB, encoded(Image.fromarray(gray, 'LA')))
  assert (got[:10] == 255).all()
  assert (got[10:] == 100).all()
  picture = Image.fromarray(np.zeros((20, 24), np.uint8), 'P')
  picture.putpalette([10, 20, 30, 40, 50, 60])
  assert (read(RGB, encoded(picture, transparency=0)) == 255).all()
  assert (read(RGB, encoded(picture)) == [10, 20, 30]).all()


def test_orientation():
  """All eight values of EXIF: the picture stands upright."""
  image = pixels(0, 20, 20)
  other = image.swapaxes(0, 1)
  turned = [image, image[:, ::-1], image[::-1, ::-1], image[::-1], other, other[::-1],
            image[::-1, ::-1].swapaxes(0, 1), other[:, ::-1]]  # fmt: skip
  for value, stored in enumerate(turned, 1):
    exif = Image.Exif()
    exif[0x0112] = value
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(read(Pixels((20, 20, 3)), data), image, err_msg=str(value))


def test_sixteen_bits():
  wide = np.linspace(0, 65535, 480).round().astype(np.uint16).reshape(20, 24)
  got = read(GRAY, encoded(Image.fromarray(wide)))[..., 0]
  np.testing.assert_array_equal(got, np.rint(wide / 257))
  assert {int(got.min()), int(got.max())} == {0, 255}
  with pytest.raises(InputError, match='a.png has pixels from 0 to 70000: expected 0 to 65535'):
    eight_bits(np.array([[0, 70000]], np.int32), 'a.png')


@pytest.mark.parametrize(
  ('size', 'short'), [((20, 24), 0), ((8, 8), 0), ((9, 5), 0), ((30, 30), 0), ((8, 8), 10)]
)
def test_the_center_covers_the_size(size, short):
  """Beside a resize and a crop of Pillow, with the sizes of torchvision."""
  for height, width in ((20, 24), (31, 17), (50, 50)):
    picture = Image.fromarray(pixels(1, height, width))
    got = Pixels((*size, 3), short).center(picture)
    cover = (short, short) if short else size
    factor = max(cover[0] / height, cover[1] / width)
    sides = [
      max(int(n * factor + 1e-9), c) for n, c in zip((width, height), cover[::-1], strict=True)
    ]
    whole = np.asarray(picture.resize(sides, Image.Resampling.BILINEAR))
    top, left = (round((a - b) / 2) for a, b in zip(whole.shape, size, strict=False))
    np.testing.assert_array_equal(got, whole[top : top + size[0], left : left + size[1]])


def test_shrinking_is_antialiased():
  """A fine checkerboard becomes gray, not a coarse pattern."""
  board = np.indices((64, 64)).sum(0) % 2 * 255
  picture = Image.fromarray(np.repeat(board[..., None], 3, -1).astype(np.uint8))
  got = Pixels((8, 8, 3)).center(picture)
  assert np.abs(got.astype(int) - 127).max() <= 2


def floats():
  return encoded(Image.fromarray(np.zeros((4, 4), np.float32)), 'TIFF')


DAMAGED = {
  'truncated png': (encoded(Image.fromarray(pixels(0)))[:-600], 'cannot be read as an image'),
  'truncated jpeg': (encoded(Image.fromarray(pixels(0, 64, 64)), 'JPEG')[:-400], r'truncated'),
  'text': (b'hello', 'cannot be read as an image .of no known format.; remove or replace it'),
  'empty': (b'', 'of no known format'),
  'flipped bytes': (encoded(Image.fromarray(pixels(0)))[:40] + bytes(500), 'cannot be read'),
  'floats': (floats(), 'mode F, float numbers: expected whole numbers'),
}


@pytest.mark.parametrize('case', DAMAGED)
def test_damaged_files_are_named(case):
  data, message = DAMAGED[case]
  with pytest.raises(InputError, match=f'^b/x.jpg .*{message}'):
    RGB.open(data, 'b/x.jpg')


def test_what_is_kept_is_restored():
  reader = Pixels((20, 24, 3), 30, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (1, 2, 3))
  assert Pixels.restore(reader.state()) == reader


BAD = {
  'size': ({'shape': (0, 4, 3)}, 'size=0: expected'),
  'channels': ({'shape': (4, 4, 2)}, r'channels=2: expected 1 \(gray\) or 3'),
  'short': ({'shape': (8, 8, 3), 'short': 7}, 'short=7: expected at least the size 8'),
  'background': ({'shape': (8, 8, 3), 'background': (0, 300, 0)}, 'background=300: expected'),
  'two': ({'shape': (8, 8, 3), 'background': (0, 3)}, 'background=.*: expected red, green and'),
  'mean': ({'shape': (8, 8, 3), 'mean': (0.1, 0.2)}, 'mean=.*: expected one number, or one of'),
}


@pytest.mark.parametrize(('words', 'message'), BAD.values(), ids=BAD)
def test_words_that_cannot_be(words, message):
  with pytest.raises(InputError, match=message):
    Pixels(**words)
