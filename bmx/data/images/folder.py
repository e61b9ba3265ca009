"""Images in files: a folder with a folder for each class, or a table of files and classes."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core import streams
from bmx.core.data import Examples, Spec
from bmx.core.types import HostBatch, Metadata
from bmx.data.arrays import RESIDENT_BYTES, ArrayData, spec_of
from bmx.data.classes import class_line, encode_classes, warn_unseen
from bmx.data.files import THREADS, check_unreadable, readable
from bmx.data.images.augment import Augmentation, apart, augmentation
from bmx.data.images.listing import Listing, listing
from bmx.data.images.normalization import with_normalization
from bmx.data.images.pictures import Pixels
from bmx.data.shapes import shapes

log = logging.getLogger('bmx')


def images(
  path: str = '',
  size: int = 64,
  channels: int = 3,
  short: int = 0,
  split: str = 'all',
  holdout: float = 0.0,
  file: str = 'file',
  label: str = 'label',
  classes: tuple[str, ...] = (),
  mean: tuple[float, ...] = (0.485, 0.456, 0.406),
  std: tuple[float, ...] = (0.229, 0.224, 0.225),
  background: tuple[int, ...] = (255, 255, 255),
  crop: int = 0,
  flip: bool = False,
  augment: Augmentation | None = None,
  unreadable: str = 'refuse',
  fitted: Mapping[str, Any] | None = None,
  read: bool = True,
  seed: int = 0,
  train: bool = True,
) -> Examples:
  """Reads files of images -> `image`, and `label` where their classes are known.

  Images are resized so that they cover a square of `size`, bilinearly with antialiasing, and their
  center is cropped. Sets of up to 1 GiB of pixels are decoded once, at the start; larger ones by
  threads, as they are needed. A resized crop (`augment.scale`) is taken of the original image, so
  its files are decoded each time.

  Args:
    path: folder with a folder of images for each class, or with such folders in train, valid and
      test; a table (.csv, .jsonl, .parquet) of files and classes; an image, or a folder of images,
      to predict.
    size: rows and columns of the inputs, in pixels.
    channels: 1 (gray) or 3 (RGB).
    short: pixels of the short side before the center is cropped; 0: `size`.
    split: 'all', 'train', 'valid' or 'test'.
    holdout: share of 'valid', unless there is a folder for it.
    file: column of a table with the path of an image, relative to the table.
    label: column of a table with the class.
    classes: names in the order of the model's outputs; () is sorted.
    mean: of pixels scaled to 0..1, for all channels or one each; default: of ImageNet.
    std: of the same.
    background: color behind transparent pixels: red, green, blue, 0 to 255.
    crop: pixels of padding of a random crop in training.
    flip: left-right flips in training.
    augment: further augmentation in training, such as `bmx.data.images.augment:augment`.
    unreadable: 'refuse' files that cannot be read, or 'skip' them and list their names.
    fitted: `state()` of the training data, whose classes and sizes count.
    read: False returns shapes only.
    seed: of augmentation.
    train: whether examples are augmented.

  Raises:
    InputError: a file that cannot be read as an image (its name), a class without images, other
      classes than those of the training data, no image at all.
  """
  check_unreadable(unreadable)
  colors = [v if len(v) == channels else (sum(v) / len(v),) for v in (mean, std)]
  pixels = Pixels((size, size, channels), short, colors[0], colors[1], background)
  if fitted and 'pixels' in fitted:
    pixels = Pixels.restore(fitted['pixels'])
  if not read:
    spec = {'image': Spec(pixels.shape, np.dtype(np.float32))}
    spec |= {'label': Spec((), np.dtype(np.int32))}
    return shapes(spec, shape=pixels.shape, **_facts(classes))
  known = tuple((fitted or {}).get('class_names', ()))
  predicted = not train and split == 'all' and unreadable == 'skip'
  found = listing(path, split, holdout, file, label, classes, known, predicted)
  if train and not fitted:
    log.info('%s: %s', path, class_line(found.class_names, found.labels))
    warn_unseen(found.class_names, found.labels, path)
  metadata = {'shape': pixels.shape, 'source': f'{path}, {split}', **_facts(found.class_names)}
  metadata = with_normalization(metadata, pixels.normalise)
  operations = augmentation(crop, flip, augment)
  data = FolderData(found, pixels, metadata, seed, train, operations)
  if data.resized is None and data.bytes <= RESIDENT_BYTES:
    return data.decoded(unreadable)
  return data.readable() if unreadable == 'skip' else data


def _facts(names: Sequence[str]) -> dict[str, Any]:
  return {'num_classes': len(names), 'class_names': tuple(names)} if names else {}


@dataclasses.dataclass
class FolderData:
  """Images that are decoded by threads as they are needed.

  Attributes:
    files: names and classes.
    pixels: how files become arrays.
    metadata: facts.
    seed: of augmentation.
    train: whether examples are augmented.
    augment: (rows, random) -> rows, see `data.images.augment`.
  """

  files: Listing
  pixels: Pixels
  metadata: Metadata
  seed: int = 0
  train: bool = True
  augment: Augmentation | None = None

  def __post_init__(self):
    self.labels = encode_classes(self.files.labels, self.files.class_names, self.files.source)
    self.resized, self.rest = apart(self.augment) if self.train else (None, None)
    self.pool = concurrent.futures.ThreadPoolExecutor(THREADS, 'images')

  @property
  def size(self) -> int:
    """Number of files."""
    return len(self.files.names)

  @property
  def bytes(self) -> int:
    """Memory that all pixels take."""
    return self.size * int(np.prod(self.pixels.shape))

  @property
  def spec(self) -> dict[str, Spec]:
    """Arrays of one example."""
    return self._spec

  @functools.cached_property
  def _spec(self) -> dict[str, Spec]:
    blank = {'image': np.zeros((1, *self.pixels.shape), np.uint8)}
    blank |= {k: v[:1] for k, v in self.labels.items()} | {'weights': np.ones(1, np.float32)}
    return spec_of(self._finished(blank, streams.Draws(self.seed, np.zeros(1, np.int64))))

  def state(self) -> dict[str, Any]:
    """Class names, and how files become arrays."""
    names = {'class_names': list(self.files.class_names)} if self.files.class_names else {}
    return names | {'pixels': self.pixels.state()}

  def describe(self, indices: np.ndarray) -> list[dict[str, Any]]:
    """The names of files."""
    return [{'file': self.files.names[int(i)]} for i in indices]

  def digest(self) -> str:
    """Returns the SHA-256 of names, classes and sizes of the files, in bytes."""
    total = hashlib.sha256()
    for name, label in zip(self.files.names, self.files.labels, strict=True):
      total.update(f'{name}\n{label}\n{self.files.size_of(name)}\n'.encode())
    return total.hexdigest()

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Reads, decodes, crops and augments rows; any number of threads gives the same."""
    image = np.empty((len(indices), *self.pixels.shape), np.uint8)

    def fill(row: int) -> None:
      picture = self._open(int(indices[row]))
      image[row] = self._cut(picture, positions[row : row + 1])

    list(self.pool.map(fill, range(len(indices))))
    rows = {'image': image, 'weights': np.ones(len(indices), np.float32)}
    rows |= {k: v[indices] for k, v in self.labels.items()}
    return self._finished(rows, streams.Draws(self.seed, positions))

  def _open(self, number: int) -> Any:
    name = self.files.names[number]
    return self.pixels.open(self.files.read(name), self.files.path_of(name))

  def _cut(self, picture: Any, position: np.ndarray) -> np.ndarray:
    if self.resized is None:
      return self.pixels.center(picture)
    width, height = picture.size
    sides = np.array([height]), np.array([width])
    part = self.resized.parts(*sides, streams.Draws(self.seed, position))[0]
    return self.pixels.part(picture, part)

  def _finished(self, rows: HostBatch, random: streams.Draws) -> HostBatch:
    rows = self.rest(rows, random) if self.rest is not None else rows
    return self.pixels.normalise(rows)

  def decoded(self, unreadable: str) -> ArrayData:
    """Returns the examples in memory, without files that cannot be read if they are skipped."""
    image = np.empty((self.size, *self.pixels.shape), np.uint8)

    def fill(number: int) -> None:
      image[number] = self.pixels.center(self._open(number))

    data, kept = self._checked(fill, unreadable)
    arrays = {'image': image[kept] if len(kept) < self.size else image, **data.labels}
    described = data.describe(np.arange(data.size))
    return ArrayData(
      arrays, data.metadata, data.seed, data.train, data.augment, data.pixels.normalise,
      fitted=data.state(), described=described,
    )  # fmt: skip

  def readable(self) -> 'FolderData':
    """Decodes all files once, and returns the examples without those that cannot be read."""
    return self._checked(self._open, 'skip')[0]

  def _checked(
    self, call: Callable[[int], object], unreadable: str
  ) -> tuple['FolderData', np.ndarray]:
    """Calls a function of the number of each file, by threads; skips or refuses files that fail.

    Returns the examples that remain, and their numbers.
    """
    args = self.size, self.pool, unreadable, self.files.source, 'an image'
    kept = readable(call, *args)
    failed = self.size - len(kept)
    if not failed:
      return self, kept
    metadata = {**self.metadata, 'unreadable': failed}
    return dataclasses.replace(self, files=self.files.take(kept), metadata=metadata), kept
