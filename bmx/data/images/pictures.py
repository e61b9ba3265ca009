"""Files of images -> pixels: every mode of Pillow, orientation, transparency, size."""

import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from bmx.core.errors import InputError
from bmx.core.ranges import check_number
from bmx.data.images.normalization import Normalise

SUFFIXES = (
  '.png', '.jpg', '.jpeg', '.bmp', '.gif', '.webp', '.tif', '.tiff', '.ppm', '.pgm', '.pbm',
)  # fmt: skip
RESAMPLE = {'bilinear': 2, 'bicubic': 3}  # Pillow's numbers
WIDE = ('I', 'I;16', 'I;16L', 'I;16B', 'I;16N')  # modes of integers of more than 8 bits


@dataclasses.dataclass(frozen=True)
class Pixels:
  """How files of images become the inputs of a model; kept in data.json.

  Attributes:
    shape: rows, columns and channels (1: gray, 3: RGB).
    short: pixels of the short side before the center is cropped; 0: as `shape` needs.
    mean: of pixels scaled to 0..1, for all channels or one each.
    std: of the same.
    background: color behind transparent pixels, red, green, blue, 0 to 255.
    resample: 'bilinear' or 'bicubic', how images are resized, both with antialiasing.
    stretch: whether the whole image is resized to `shape`, with other proportions, instead.

  Raises:
    InputError: a size, color or number outside its range, another `resample`, `short` of stretched
      images.
  """

  shape: tuple[int, int, int]
  short: int = 0
  mean: tuple[float, ...] = (0.0,)
  std: tuple[float, ...] = (1.0,)
  background: tuple[int, ...] = (255, 255, 255)
  resample: str = 'bilinear'
  stretch: bool = False

  def __post_init__(self):
    if self.resample not in RESAMPLE:
      raise InputError(f'resample={self.resample!r}: expected one of {", ".join(RESAMPLE)}')
    rows, columns, channels = self.shape
    for name, value in (('size', rows), ('size', columns)):
      check_number(name, value, at_least=1)
    if channels not in (1, 3):
      raise InputError(f'channels={channels}: expected 1 (gray) or 3 (RGB)')
    if self.short and self.stretch:
      raise InputError(f'short={self.short}: expected 0 with stretch=True, which crops nothing')
    if self.short and self.short < max(rows, columns):
      raise InputError(
        f'short={self.short}: expected at least the size {max(rows, columns)} of the center that '
        'is cropped, or 0'
      )
    if len(self.background) != 3:
      raise InputError(f'background={self.background}: expected red, green and blue, 0 to 255')
    for value in self.background:
      check_number('background', value, at_least=0, at_most=255)
    for name, values in (('mean', self.mean), ('std', self.std)):
      if len(values) not in (1, channels):
        raise InputError(f'{name}={values}: expected one number, or one of each of {channels} '
                         'channels')  # fmt: skip

  @property
  def normalise(self) -> Normalise:
    """The normalization of pixels 0..255."""
    return Normalise(255.0, tuple(self.mean), tuple(self.std))

  def state(self) -> dict[str, Any]:
    """Returns the attributes, as JSON holds them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

  @classmethod
  def restore(cls, state: Mapping[str, Any]) -> 'Pixels':
    """Inverse of `state`."""
    rows, columns, channels = (int(n) for n in state['shape'])
    colors = tuple(int(v) for v in state['background'])
    mean, std = (tuple(float(v) for v in state[k]) for k in ('mean', 'std'))
    resample = str(state.get('resample', 'bilinear'))  # runs of earlier versions have no such word
    stretch = bool(state.get('stretch', False))  # likewise
    return cls((rows, columns, channels), int(state['short']), mean, std, colors, resample, stretch)

  def open(self, data: bytes, name: str) -> Any:
    """Decodes an image -> an image of Pillow, L or RGB, upright, in front of the background.

    Of an animation or a file of several pages it is the first one.

    Args:
      data: content of the file.
      name: of the file, for messages.

    Raises:
      InputError: damaged data, or another format; pixels of another kind than whole numbers of up
        to 16 bits.
    """
    from PIL import Image, ImageOps

    try:
      with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        found = self._plain(ImageOps.exif_transpose(picture), name)
    except InputError:
      raise
    except Exception as error:  # plugins of Pillow raise whatever damaged bytes lead to
      reason = 'of no known format' if isinstance(error, Image.UnidentifiedImageError) else error
      fix = f'cannot be read as an image ({reason}); remove or replace it'
      raise InputError(f'{name} {fix}') from None
    return found

  def _plain(self, picture: Any, name: str) -> Any:
    """Returns an image of any mode as L or RGB."""
    from PIL import Image

    mode = 'L' if self.shape[2] == 1 else 'RGB'
    if picture.mode in WIDE:
      return Image.fromarray(eight_bits(np.asarray(picture), name)).convert(mode)
    if picture.mode == 'F':
      raise InputError(f'{name} has pixels of mode F, float numbers: expected whole numbers of up '
                       'to 16 bits; convert it')  # fmt: skip
    if 'A' in picture.mode or 'a' in picture.mode or 'transparency' in picture.info:
      layer = picture.convert('RGBA')
      picture = Image.new('RGBA', layer.size, (*map(int, self.background), 255))
      picture.alpha_composite(layer)
    return picture.convert('RGB').convert(mode) if picture.mode != mode else picture

  def center(self, picture: Any) -> np.ndarray:
    """Resizes an image of Pillow and crops its center: uint8 [rows, columns, channels].

    The short side becomes `short`, or the image is made as small as it can cover `shape`. Pixels
    are resized with antialiasing; sizes round as torchvision's. With `stretch`, nothing is cropped.
    """
    rows, columns, _ = self.shape
    if self.stretch:
      return self.part(picture, (0, 0, picture.size[1], picture.size[0]))
    cover = (self.short, self.short) if self.short else (rows, columns)
    width, height = picture.size
    if width * cover[0] >= height * cover[1]:
      size = (max(int(width * cover[0] / height), cover[1]), cover[0])
    else:
      size = (cover[1], max(int(height * cover[1] / width), cover[0]))
    if size != picture.size:
      picture = picture.resize(size, RESAMPLE[self.resample])
    left, top = round((size[0] - columns) / 2), round((size[1] - rows) / 2)
    if size != (columns, rows):
      picture = picture.crop((left, top, left + columns, top + rows))
    return np.asarray(picture).reshape(self.shape)

  def part(self, picture: Any, part: Any) -> np.ndarray:
    """Crops (top, left, bottom, right) of an image of Pillow, and resizes it to `shape`, uint8."""
    top, left, bottom, right = (int(n) for n in part)
    rows, columns, _ = self.shape
    cut = picture.crop((left, top, right, bottom))
    return np.asarray(cut.resize((columns, rows), RESAMPLE[self.resample])).reshape(self.shape)


def eight_bits(values: np.ndarray, name: str) -> np.ndarray:
  """Returns gray values 0..65535 as bytes 0..255, rounded, uint8 [I, J].

  Raises InputError for values outside of them.
  """
  values = values.astype(np.int64)
  if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
    found = f'{values.min()} to {values.max()}'
    raise InputError(f'{name} has pixels from {found}: expected 0 to 65535; convert it')
  return ((values + 128) // 257).astype(np.uint8)


def pixels_state(shape: tuple[int, ...], scale: float) -> dict[str, Any]:
  """Returns how files become arrays of bytes that are divided by `scale`; {} if they cannot."""
  if shape[-1] not in (1, 3):
    return {}
  return {'pixels': Pixels((shape[0], shape[1], shape[2]), std=(scale / 255,)).state()}
