"""Images with annotated objects: boxes and masks that are resized with their image."""

import concurrent.futures
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bmx.core import streams
from bmx.core.errors import InputError
from bmx.core.types import HostBatch, Metadata
from bmx.data.arrays import ArrayData, spec_of
from bmx.data.files import THREADS, readable
from bmx.data.images import masks
from bmx.data.images.annotations import Annotated, Annotations, Item, inside
from bmx.data.images.augment import Augmentation
from bmx.data.images.boxes import padded
from bmx.data.images.pictures import Pixels

log = logging.getLogger('bmx')


def blank(kind: str, pixels: Pixels, most: int) -> HostBatch:
  """One example of zeros, as `AnnotatedData.rows` returns it."""
  side = pixels.shape[:2]
  frame = np.ones((1, 4), np.float32)
  made: HostBatch = {'image': np.zeros((1, *pixels.shape), np.float32), 'frame': frame}
  made['weights'] = np.ones(1, np.float32)
  if kind == 'boxes':
    made |= _boxes([()], {}, frame, most)
  if kind == 'masks':
    made |= {
      'mask': np.zeros((1, *side), np.int32),
      'mask_weights': np.zeros((1, *side), np.float32),
    }
  return made


@dataclasses.dataclass
class AnnotatedData:
  """Images with annotations, decoded by threads as they are needed.

  Attributes:
    found: images with their objects.
    kind: 'boxes', 'masks', or '' without either.
    pixels: how files become arrays.
    names: of the classes, in the order of their numbers.
    most: boxes of an image, M; 0: the largest number.
    metadata: facts.
    invalid: 'refuse' or 'drop' masks that cannot be read.
    seed: of augmentation.
    train: whether examples are augmented.
    augment: see `bmx.data.images.augment`.
  """

  found: Annotations
  kind: str
  pixels: Pixels
  names: tuple[str, ...]
  most: int
  metadata: Metadata
  invalid: str = 'refuse'
  seed: int = 0
  train: bool = True
  augment: Augmentation | None = None

  def __post_init__(self):
    counts = [len(image.items) for image in self.found.images]
    largest = max(counts, default=0)
    if self.most and largest > self.most:
      name = self.found.images[int(np.argmax(counts))].name
      raise InputError(f'most={self.most}: expected at least {largest}, the boxes of {name}')
    self.boxes = self.most or max(1, largest)
    self.numbers = {name: i for i, name in enumerate(self.names)}
    unknown = [i.name for image in self.found.images for i in image.items
               if i.name not in self.numbers]  # fmt: skip
    if unknown:
      raise InputError(
        f'{self.found.source}: category {unknown[0]!r}: expected one of the training data, '
        f'{", ".join(self.names)}'
      )
    self.pool = concurrent.futures.ThreadPoolExecutor(THREADS, 'annotated')
    one = blank(self.kind, self.pixels, self.boxes)
    self.spec = spec_of(self._finished(one, np.zeros(1, np.int64)))

  @property
  def size(self) -> int:
    """Number of images."""
    return len(self.found.images)

  def state(self) -> dict[str, Any]:
    """Class names, how files become arrays, and whether boxes or masks are learned."""
    return {'class_names': list(self.names), 'whole': self.pixels.state(), 'kind': self.kind}

  def describe(self, indices: np.ndarray) -> list[dict[str, Any]]:
    """The names of files."""
    return [{'file': self.found.images[int(i)].name} for i in indices]

  def digest(self) -> str:
    """Returns the SHA-256 of the names of files and their objects, not of their pixels."""
    return hashlib.sha256(repr(self.found.images).encode()).hexdigest()

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Reads, decodes and augments rows; any number of threads gives the same."""
    return self._finished(self._arrays([int(i) for i in indices]), positions)

  def decoded(self) -> ArrayData:
    """Returns the examples in memory."""
    every = np.arange(self.size)
    return ArrayData(
      self._arrays(every.tolist()), self.metadata, self.seed, self.train, self.augment,
      self.pixels.normalise, fitted=self.state(), described=self.describe(every),
    )  # fmt: skip

  def readable(self) -> 'AnnotatedData':
    """Decodes all files once, and returns the examples without those that cannot be read."""
    images = self.found.images
    of = lambda number: self._open(images[number])
    kept = readable(of, self.size, self.pool, 'skip', self.found.source, 'an image')
    failed = self.size - len(kept)
    metadata = {**self.metadata, 'unreadable': failed} if failed else self.metadata
    return dataclasses.replace(
      self,
      found=dataclasses.replace(self.found, images=tuple(images[i] for i in kept)),
      metadata=metadata,
    )

  def _finished(self, rows: HostBatch, positions: np.ndarray) -> HostBatch:
    if self.augment is not None and self.train:
      rows = self.augment(rows, streams.Draws(self.seed, positions))
    return self.pixels.normalise(rows)

  def _arrays(self, numbers: list[int]) -> HostBatch:
    """The images `numbers`, their frames and labels, before augmentation."""
    chosen = [self.found.images[i] for i in numbers]
    n, (height, width, _) = len(chosen), self.pixels.shape
    image, frame = np.empty((n, *self.pixels.shape), np.uint8), np.empty((n, 4), np.float32)
    mask = np.zeros((n, height, width), np.int32) if self.kind == 'masks' else None
    weights = np.zeros((n, height, width), np.float32)

    def fill(row: int) -> None:
      picture = self._open(chosen[row])
      image[row], frame[row] = fitted_in(picture, self.pixels)
      if mask is not None:
        mask[row], weights[row] = self._mask(chosen[row], picture, frame[row])

    list(self.pool.map(fill, range(n)))
    made: HostBatch = {'image': image, 'weights': np.ones(n, np.float32), 'frame': frame}
    if mask is not None:
      made |= {'mask': mask, 'mask_weights': weights}
    if self.kind == 'boxes':
      made |= _boxes([a.items for a in chosen], self.numbers, frame, self.boxes)
    return made

  def _open(self, image: Annotated) -> Any:
    """Decodes an image. Raises InputError if it has another size than its annotations say."""
    path = self.found.root / image.name
    try:
      data = path.read_bytes()
    except OSError as error:
      raise InputError(f'{path} cannot be read ({error.strerror or error})') from None
    picture = self.pixels.open(data, str(path))
    size = picture.size[1], picture.size[0]
    if image.size is not None and image.size != size:
      raise InputError(
        f'{path} has {size[1]} × {size[0]} pixels, its annotations {image.size[1]} × '
        f'{image.size[0]}; correct width and height in {self.found.source}'
      )
    if image.size is None:
      for item in image.items:
        inside(item, size, f'{self.found.source}: annotation {item.number} of {image.name}')
    return picture

  def _mask(
    self, image: Annotated, picture: Any, frame: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """The class and the weight of each pixel of the input; large objects lie behind small ones."""
    size = picture.size[1], picture.size[0]
    mask, weights = np.zeros(size, np.int32), np.ones(size, np.float32)
    for item in sorted(image.items, key=lambda item: -item.area):
      where = f'{self.found.source}: annotation {item.number} of {image.name}'
      try:
        pixels = masks.decode(item.segmentation, size, where)
      except InputError as error:
        if self.invalid == 'refuse':
          raise InputError(f'{error}; correct it, or set --data.invalid=drop') from None
        log.warning('dropped: %s', error)
        continue
      weights[pixels] = 0.0 if item.crowd else 1.0
      mask[pixels] = 0 if item.crowd else self.numbers[item.name]
    place = _nearest(size, frame)
    side = self.pixels.shape[:2]
    result = np.zeros(side, np.int32), np.zeros(side, np.float32)
    part = slice(len(place[0])), slice(len(place[1]))
    result[0][part], result[1][part] = mask[np.ix_(*place)], weights[np.ix_(*place)]
    return result


def fitted_in(picture: Any, pixels: Pixels) -> tuple[np.ndarray, np.ndarray]:
  """Resizes an image of Pillow to the upper left of the inputs, keeping its shape.

  Returns:
    uint8 [I, J, C], and the scale of rows and columns with the original height and width, [4].
  """
  from PIL import Image

  rows, columns, channels = pixels.shape
  width, height = picture.size
  scale = min(rows / height, columns / width)
  new = max(1, min(rows, round(height * scale))), max(1, min(columns, round(width * scale)))
  resized = picture.resize((new[1], new[0]), Image.Resampling.BILINEAR)
  color = np.round(255 * np.asarray(pixels.mean)).astype(np.uint8)
  result = np.broadcast_to(color, (rows, columns, channels)).copy()
  result[: new[0], : new[1]] = np.asarray(resized).reshape(*new, channels)
  return result, np.array([new[0] / height, new[1] / width, height, width], np.float32)


def _nearest(size: tuple[int, int], frame: np.ndarray) -> list[np.ndarray]:
  """Rows and columns of the original that are nearest to those of the input."""
  new = [max(1, round(side * float(scale))) for side, scale in zip(size, frame, strict=False)]
  return [
    np.minimum(((np.arange(n) + 0.5) * side / n).astype(int), side - 1)
    for n, side in zip(new, size, strict=True)
  ]


def _boxes(
  items: list[tuple[Item, ...]], numbers: Mapping[str, int], frame: np.ndarray, most: int
) -> HostBatch:
  """The boxes of images, in pixels of the inputs; areas are those of the originals."""
  scales = np.tile(frame[:, :2], 2).astype(np.float64)
  boxes = [np.array([i.box for i in some]).reshape(-1, 4) * scale
           for some, scale in zip(items, scales, strict=True)]  # fmt: skip
  made = padded(boxes, [np.array([numbers[i.name] for i in some], int) for some in items], most)
  reads: dict[str, Callable[[Item], float]]
  reads = {'box_crowd': lambda i: i.crowd, 'box_area': lambda i: i.area}
  for name, of in reads.items():
    made[name] = np.zeros(made['box_weights'].shape, np.float32)
    for row, some in enumerate(items):
      made[name][row, : len(some)] = [of(i) for i in some]
  return made
