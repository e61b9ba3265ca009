"""Scenes composed of real digits and drawings: data for detection and segmentation.

A scene is a function of (`scene_seed`, split, number of the scene) alone.
"""

import dataclasses
from typing import Any, Literal

import numpy as np

from bmx.core import streams
from bmx.core.errors import InputError, did_you_mean
from bmx.core.ranges import check_number
from bmx.core.types import HostBatch
from bmx.data.arrays import ArrayData
from bmx.data.builtin import digits as small_digits
from bmx.data.images.archive import read_images
from bmx.data.images.augment import Augmentation, augmentation
from bmx.data.images.boxes import padded
from bmx.data.images.pictures import Pixels
from bmx.data.tfds import tfds

Kind = Literal['boxes', 'masks']
SPLITS = ('train', 'valid', 'test')
MNIST = {'train': 'train[:55000]', 'valid': 'train[55000:]', 'test': 'test'}
SOURCES = ('mnist', 'digits')
DRAWING = 'drawing'  # class of all sprites
DRAWINGS = 0.25  # share of the objects
# Of each ten sprites in turn: similar ones stand side by side.
DRAWN = {'train': range(8), 'valid': range(8, 9), 'test': range(9, 10)}
WHITE = 250  # least value of the channels of a sprite's background
SIDES = 0.22, 0.5  # least and largest longer side of an object, as shares of the scene's
MAX_OVERLAP = 0.1  # share of an object that may lie inside the box of another one
TRIALS = 20  # places that are tried for an object before it is left out
CONTRAST = 90  # least difference of brightness between a digit and the background
NOISE = 8.0  # standard deviation of the background's noise
OPAQUE = 0.5  # least opacity of a pixel that belongs to an object


@dataclasses.dataclass(frozen=True)
class Cutout:
  """An object to paste: its class, opacity float32 [I, J], and color [I, J, 3] or None for ink."""

  label: int
  opacity: np.ndarray
  color: np.ndarray | None


def scenes(
  split: str = 'train',
  count: int = 4000,
  size: int = 64,
  objects: tuple[int, int] = (1, 4),
  kind: Kind = 'boxes',
  source: str = 'mnist',
  data_dir: str = '',
  sprites: str = '',
  scene_seed: int = 0,
  crop: int = 0,
  flip: bool = False,
  augment: Augmentation | None = None,
  seed: int = 0,
  train: bool = True,
) -> ArrayData:
  """Returns scenes of digits, and of drawings where `sprites` names them, on a colored background.

  The scenes of a split use digits and drawings of their own.

  Args:
    split: 'train', 'valid' or 'test'.
    count: number of scenes.
    size: side of the square scenes, in pixels.
    objects: least and largest number of objects of a scene; one without a free place is left out.
    kind: 'boxes' adds `boxes` [M, 4], `box_label` [M] and `box_weights` [M]; 'masks' adds `mask`
      [I, J], 0 for the background.
    source: 'mnist', a prepared TFDS data set, or 'digits' of scikit-learn, which need no files.
    data_dir: folder of the TFDS data set; '' is $TFDS_DATA_DIR, else ~/tensorflow_datasets.
    sprites: numpy archive (.npz) of drawings, `images` uint8 [N, I, J, 3] on white; '' is
      without.
    scene_seed: of the scenes.
    crop: pixels of padding of a random crop in training.
    flip: left-right flips in training.
    augment: further augmentation in training, such as `bmx.data.images.augment:augment`.
    seed: of augmentation.
    train: whether examples are augmented.

  Raises:
    InputError: an unknown word, a number outside its range, files that are missing.
  """
  _check(split, kind, source, count, size, objects)
  pool, names = _digits(source, split, data_dir)
  drawings = _drawings(sprites, split) if sprites else []
  names += [DRAWING] if drawings else []
  made = [
    _scene(_random(scene_seed, split, i), pool, drawings, size, objects) for i in range(count)
  ]
  arrays: HostBatch = {'image': np.stack([image for image, *_ in made])}
  if kind == 'masks':
    names = ['background', *names]
    arrays['mask'] = np.stack([mask for *_, mask in made])
  else:
    arrays |= padded([boxes for _, boxes, *_ in made], [label for _, _, label, _ in made],
                     objects[1])  # fmt: skip
  what = f'{source} and drawings' if drawings else source
  metadata = {'num_classes': len(names), 'class_names': names, 'shape': (size, size, 3),
              'source': f'{count} scenes of {what}, {split}'}  # fmt: skip
  pixels = Pixels((size, size, 3), 0, (0.5,), (0.25,))
  fitted = {'class_names': names, 'whole': pixels.state(), 'kind': kind}
  operations = augmentation(crop, flip, augment)
  return ArrayData(arrays, metadata, seed, train, operations, pixels.normalise, fitted=fitted)


def _check(
  split: str, kind: str, source: str, count: int, size: int, objects: tuple[int, int]
) -> None:
  for name, value, known in (
    ('split', split, SPLITS),
    ('kind', kind, ('boxes', 'masks')),
    ('source', source, SOURCES),
  ):
    if value not in known:
      raise InputError(
        f'{name}={value!r}: expected one of {", ".join(known)}{did_you_mean(value, known)}'
      )
  check_number('count', count, at_least=1)
  check_number('size', size, at_least=16)
  if len(objects) != 2 or not 0 <= objects[0] <= objects[1] or not objects[1]:
    raise InputError(
      f'objects={objects}: expected the least and the largest number of objects, such as (1, 4)'
    )


def _random(scene_seed: int, split: str, number: int) -> np.random.Generator:
  return streams.generator(scene_seed, streams.SCENES, SPLITS.index(split) << 40 | number)


def _digits(source: str, split: str, data_dir: str) -> tuple[list[Cutout], list[str]]:
  if source == 'mnist':
    read = tfds('mnist', MNIST[split], data_dir)
    assert isinstance(read, ArrayData)
    arrays, scale = read.arrays, 255
  else:
    arrays, scale = small_digits(split, 0.1 if split != 'test' else 0.0).arrays, 16
  opacity = arrays['image'][..., 0].astype(np.float32) / scale
  pool = [Cutout(int(k), _trimmed(x), None) for x, k in zip(opacity, arrays['label'], strict=True)]
  return pool, [str(i) for i in range(10)]


def _drawings(path: str, split: str) -> list[Cutout]:
  """The drawings of a split; their white background is transparent, white inside them is not."""
  from scipy import ndimage

  images = read_images(path, 'sprites')
  result = []
  for image in images[np.isin(np.arange(len(images)) % 10, DRAWN[split])]:
    opacity: Any = ndimage.binary_fill_holes((image < WHITE).any(-1))
    if opacity.any():
      rows, columns = _inside(opacity)
      result.append(Cutout(10, opacity[rows, columns].astype(np.float32), image[rows, columns]))
  if not result:
    raise InputError(f'sprites={path}: expected drawings for the split {split}, found nothing')
  return result


def _inside(opaque: np.ndarray) -> tuple[slice, slice]:
  """The smallest rows and columns that hold all opaque pixels."""
  rows, columns = np.flatnonzero(opaque.any(1)), np.flatnonzero(opaque.any(0))
  return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _trimmed(opacity: np.ndarray) -> np.ndarray:
  return opacity[_inside(opacity > 0)]


def _scene(
  random: np.random.Generator,
  pool: list[Cutout],
  drawings: list[Cutout],
  size: int,
  objects: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Composes one scene.

  Returns:
    Image uint8 [I, J, 3], boxes float32 [m, 4], classes int32 [m], mask int32 [I, J].
  """
  canvas = _background(random, size)
  mask = np.zeros((size, size), np.int32)
  boxes: list[tuple[int, int, int, int]] = []
  labels: list[int] = []
  for _ in range(random.integers(objects[0], objects[1] + 1)):
    drawn = drawings and random.random() < DRAWINGS
    chosen = drawings if drawn else pool
    cutout = _resized(chosen[random.integers(len(chosen))], random.uniform(*SIDES) * size)
    color = cutout.color if cutout.color is not None else _ink(random, canvas)
    opaque = cutout.opacity >= OPAQUE
    place = _place(random, opaque, boxes, size) if opaque.any() else None
    if place is None:
      continue
    part = tuple(slice(p, p + n) for p, n in zip(place, opaque.shape, strict=True))
    alpha = cutout.opacity[..., None]
    canvas[part] = canvas[part] * (1 - alpha) + color * alpha
    mask[part][opaque] = cutout.label + 1
    boxes.append(_box(place, opaque))
    labels.append(cutout.label)
  image = np.clip(np.round(canvas), 0, 255).astype(np.uint8)
  return image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int32), mask


def _background(random: np.random.Generator, size: int) -> np.ndarray:
  """A gradient between four random colors in the corners, with noise, float32 [I, J, 3]."""
  middle = random.uniform(50, 205)
  corners = np.clip(middle + random.uniform(-45, 45, (2, 2, 3)), 0, 255)
  t = np.linspace(0, 1, size)
  rows = np.stack([1 - t, t], 1)
  smooth = np.einsum('ia,jb,abc->ijc', rows, rows, corners)
  return (smooth + random.normal(0, NOISE, smooth.shape)).astype(np.float32)


def _ink(random: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
  """A random color that is brighter or darker than the scene."""
  middle = canvas.mean()
  ranges = [(v, w) for v, w in ((0.0, middle - CONTRAST), (middle + CONTRAST, 255.0)) if w > v]
  low, high = ranges[random.integers(len(ranges))]
  color = random.uniform(low, high) + random.uniform(-40, 40, 3)
  return np.clip(color, 0, 255).astype(np.float32)


def _place(
  random: np.random.Generator, opaque: np.ndarray, boxes: list[Any], size: int
) -> tuple[int, int] | None:
  """Draws a place with little overlap with the boxes that are there; None if it finds nothing."""
  for _ in range(TRIALS):
    top, left = (int(random.integers(0, size - n + 1)) for n in opaque.shape)
    box = _box((top, left), opaque)
    if all(_shared(box, other) <= MAX_OVERLAP for other in boxes):
      return top, left
  return None


def _box(place: tuple[int, int], opaque: np.ndarray) -> tuple[int, int, int, int]:
  rows, columns = _inside(opaque)
  top, left = place
  return top + rows.start, left + columns.start, top + rows.stop, left + columns.stop


def _shared(a: Any, b: Any) -> float:
  """Share of the smaller box that lies inside the other one."""
  inside = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
  return inside / min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def _resized(cutout: Cutout, side: float) -> Cutout:
  """A cutout whose longer side has `side` pixels, by bilinear interpolation."""
  height, width = cutout.opacity.shape
  factor = side / max(height, width)
  shape = max(1, round(height * factor)), max(1, round(width * factor))
  rows, columns = (_weights(n, m) for n, m in zip((height, width), shape, strict=True))
  opacity = rows @ cutout.opacity @ columns.T
  if cutout.color is None:
    return dataclasses.replace(cutout, opacity=opacity)
  color = np.einsum('ia,abc,jb->ijc', rows, cutout.color.astype(np.float32), columns)
  return Cutout(cutout.label, opacity, color)


def _weights(old: int, new: int) -> np.ndarray:
  """The matrix of bilinear interpolation from `old` to `new` pixels, averaging when it shrinks."""
  center = (np.arange(new) + 0.5) * old / new - 0.5
  reach = max(1.0, old / new)
  weights = np.maximum(0, 1 - np.abs(center[:, None] - np.arange(old)[None]) / reach)
  return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
