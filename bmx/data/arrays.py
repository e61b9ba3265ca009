"""Examples held as arrays, or read on demand from a source."""

import dataclasses
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core import streams
from bmx.core.data import Spec
from bmx.core.errors import InputError
from bmx.core.types import Batch, HostBatch, Metadata
from bmx.data.digests import digest_arrays
from bmx.data.images.augment import Augmentation, augmentation
from bmx.data.images.normalization import Normalise, with_normalization
from bmx.data.images.pictures import Pixels, pixels_state
from bmx.runtime.fetch import fetch

RESIDENT_BYTES = 1 << 30  # arrays up to this size are held on the device
# What an archive of others may raise: damage, items beyond memory, encryption, other compression.
UNREADABLE = (
  ValueError, OSError, EOFError, KeyError, MemoryError, OverflowError, RuntimeError,
  zipfile.BadZipFile, zlib.error,
)  # fmt: skip
ARCHIVE_KEYS = ('image', 'x', 'label', 'y', 'frame')


def unchanged(batch: Batch) -> Batch:
  """Returns the batch."""
  return batch


@dataclasses.dataclass
class ArrayData:
  """Examples held as arrays.

  Attributes:
    arrays: name -> [N, ...]; floats must be finite.
    metadata: facts that are checked against a model ('num_classes', 'num_targets', ...).
    seed: of augmentation.
    train: whether examples are augmented.
    augment: (rows, random) -> rows, on the host, see `data.images.augment`.
    preprocess: function of every batch; works on numpy and on jax arrays.
    names: array -> logical names of the dimensions of one example, see `Spec`.
    fitted: result of `state`, see `core.data.Stateful`.
    described: result of `describe` for each example, see `core.data.Described`.

  Raises:
    InputError: no examples, arrays of different lengths, NaN or infinity, labels that are not one
      class each.
  """

  arrays: HostBatch
  metadata: Metadata
  seed: int = 0
  train: bool = True
  augment: Augmentation | None = None
  preprocess: Callable[[Batch], Batch] = unchanged
  names: dict[str, tuple[str | None, ...]] = dataclasses.field(default_factory=dict)
  fitted: dict[str, Any] = dataclasses.field(default_factory=dict)
  described: Sequence[dict[str, Any]] = ()

  def __post_init__(self):
    check_arrays(self.arrays, self.metadata)
    self.metadata = with_normalization(self.metadata, self.preprocess)
    self.size = len(next(iter(self.arrays.values())))
    self.arrays = {'weights': np.ones(self.size, np.float32)} | self.arrays
    self.spec = spec_of(self.rows(np.zeros(1, np.int64), np.zeros(1, np.int64)), self.names)

  def state(self) -> dict[str, Any]:
    """Returns the values that were fitted to the data."""
    return self.fitted

  def describe(self, indices: np.ndarray) -> list[dict[str, Any]]:
    """What the examples are to people; {} where nothing is known."""
    return [dict(self.described[int(i)]) if self.described else {} for i in indices]

  def digest(self) -> str:
    """Returns the SHA-256 of the arrays."""
    return digest_arrays(self.arrays)

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Returns rows of examples, augmented by position in training."""
    rows = {k: v[indices] for k, v in self.arrays.items()}
    if self.augment and self.train:
      rows = self.augment(rows, streams.Draws(self.seed, positions))
    return self.preprocess(rows)

  def resident(self) -> HostBatch | None:
    """Returns the arrays, if they are small and not augmented."""
    small = sum(v.nbytes for v in self.arrays.values()) <= RESIDENT_BYTES
    return self.arrays if small and not (self.augment and self.train) else None

  def gather(self, arrays: Any, indices: Any) -> Batch:
    """Gathers rows of the arrays on the device."""
    return self.preprocess({k: v[indices] for k, v in arrays.items()})


@dataclasses.dataclass
class SourceData:
  """Examples read on demand, from a source with `__getitems__`.

  Attributes:
    source: records by number.
    decode: list of records -> rows.
    metadata: see `ArrayData`.
    seed: of augmentation.
    train: whether examples are augmented.
    augment: see `ArrayData`.
    preprocess: see `ArrayData`.
    names: see `ArrayData`.
    fitted: see `ArrayData`.
  """

  source: Any
  decode: Callable[[list[Any]], HostBatch]
  metadata: Metadata
  seed: int = 0
  train: bool = True
  augment: Augmentation | None = None
  preprocess: Callable[[Batch], Batch] = unchanged
  names: dict[str, tuple[str | None, ...]] = dataclasses.field(default_factory=dict)
  fitted: dict[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    self.size = len(self.source)
    self.metadata = with_normalization(self.metadata, self.preprocess)
    if not self.size:
      raise InputError('the data set is empty: expected at least one example')
    self.spec = spec_of(self.rows(np.zeros(1, np.int64), np.zeros(1, np.int64)), self.names)

  def state(self) -> dict[str, Any]:
    """Returns the values that were fitted to the data."""
    return self.fitted

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Reads, decodes, augments and preprocesses rows."""
    rows = self.decode(self.source.__getitems__([int(i) for i in indices]))
    check_arrays(rows, self.metadata)
    rows = {'weights': np.ones(len(indices), np.float32)} | rows
    if self.augment and self.train:
      rows = self.augment(rows, streams.Draws(self.seed, positions))
    return self.preprocess(rows)


def spec_of(
  one: HostBatch, names: dict[str, tuple[str | None, ...]] | None = None
) -> dict[str, Spec]:
  """Returns the spec of the arrays of one example."""
  names = names or {}
  return {k: Spec(v.shape[1:], np.dtype(v.dtype), names.get(k, ())) for k, v in one.items()}


def check_arrays(arrays: HostBatch, metadata: Metadata) -> None:
  """Raises InputError for arrays that would give wrong results without an error."""
  lengths = {k: len(v) for k, v in arrays.items()}
  if not lengths or not min(lengths.values()):
    raise InputError('the data set is empty: expected at least one example')
  if len(set(lengths.values())) > 1:
    raise InputError(f'arrays of different lengths: {lengths}; expected one length')
  for name, array in arrays.items():
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
      where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
      raise InputError(
        f'{name} holds {array[where]} in example {where[0]}'
        f'{f", column {where[1]}" if len(where) > 1 else ""}: expected finite numbers; clean the '
        'data or drop the example'
      )
  if 'weights' in arrays and (arrays['weights'] < 0).any():
    where = int(np.argwhere(arrays['weights'] < 0)[0][0])
    raise InputError(f'weights of example {where}: expected at least 0')
  if 'label' in arrays and metadata.get('num_classes'):
    check_labels(arrays['label'], metadata['num_classes'])


def check_labels(label: np.ndarray, classes: int) -> None:
  """Raises InputError if a label is not one class, 0 to `classes` - 1, for each example."""
  if label.ndim != 1:
    raise InputError(f'label of shape {label.shape}: expected one class for each example, [N]')
  bad = np.flatnonzero((label < 0) | (label >= classes))
  if len(bad):
    raise InputError(
      f'label {int(label[bad[0]])} of example {int(bad[0])}: expected one of the {classes} classes '
      f'0..{classes - 1}'
    )


def split_indices(size: int, split: str, holdout: float, known: tuple[str, ...]) -> np.ndarray:
  """Returns the examples of 'train' or 'valid', int64 [n]; `holdout` is the share of 'valid'.

  'all' returns all of them, in order.

  Raises InputError for a split that is not `known` or is empty.
  """
  if split not in known:
    raise InputError(f'split={split!r}: expected one of {", ".join(known)}')
  if not 0 <= holdout < 1:
    raise InputError(f'holdout={holdout}: expected 0 <= holdout < 1')
  if split == 'all' or (split == 'train' and not holdout):
    return np.arange(size)
  order = streams.generator(0, streams.SPLIT).permutation(size)
  held = round(size * holdout)
  if split == 'valid' and not held:
    raise InputError(f'holdout={holdout}: expected a share of {size} that holds an example')
  return np.sort(order[:held] if split == 'valid' else order[held:])


def arrays(
  path: str = '',
  classes: int = 0,
  split: str = 'all',
  holdout: float = 0.0,
  scale: float = 1.0,
  crop: int = 0,
  flip: bool = False,
  augment: Augmentation | None = None,
  given: Mapping[str, Any] | None = None,
  fitted: Mapping[str, Any] | None = None,
  seed: int = 0,
  train: bool = True,
) -> ArrayData:
  """Reads a numpy archive (.npz) with arrays named `image` or `x`, and `label` or `y`.

  `frame` [N, 4] of images that were resized holds the scale of their rows and columns, and the
  height and width of their originals, see `data.images.coco`.

  Args:
    path: of the archive.
    classes: number of classes of `label`; 0: the largest label plus one.
    split: 'all', 'train' or 'valid'.
    holdout: share of 'valid'.
    scale: divisor of images.
    crop: pixels of padding of a random crop in training.
    flip: left-right flips in training.
    augment: further augmentation in training, such as `bmx.data.images.augment:augment`.
    given: the arrays themselves, instead of `path`.
    fitted: `state()` of the training data, whose names of classes count; images of bytes are
      normalized as its images are.
    seed: of augmentation.
    train: whether examples are augmented.

  Raises:
    InputError: the file is missing or is not an archive of such arrays.
  """
  if not path and given is None:
    raise InputError('data.path: expected a numpy archive (.npz), such as --data.path=digits.npz')
  found = _archive(path) if path else {k: np.asarray(v) for k, v in (given or {}).items()}
  source = path or 'the given data'
  if not found or set(found) - set(ARCHIVE_KEYS):
    raise InputError(
      f'{source} holds {sorted(found)}: expected arrays named {", ".join(ARCHIVE_KEYS)}'
    )
  metadata: dict[str, Any] = {'source': source}
  if names := (fitted or {}).get('class_names'):
    metadata |= {'class_names': tuple(names), 'num_classes': len(names)}
  for name, array in found.items():
    found[name] = _numeric(name, array, source)
  if 'label' in found:
    found['label'] = found['label'].astype(np.int32)
    metadata.setdefault('num_classes', classes or int(found['label'].max(initial=0)) + 1)
  if 'y' in found:
    found['y'] = found['y'].astype(np.float32).reshape(len(found['y']), -1)
    metadata['num_targets'] = found['y'].shape[1]
  check_arrays(found, metadata)
  chosen = split_indices(len(next(iter(found.values()))), split, holdout, ('all', 'train', 'valid'))
  found = {k: v[chosen] for k, v in found.items()}
  operations, state = augmentation(crop, flip, augment), {}
  if 'image' not in found:
    if operations is not None:
      raise InputError(f'{source} has no images: leave crop, flip and augment out')
    return ArrayData(found, metadata, seed, train)
  preprocess = Normalise(scale)
  if found['image'].dtype == np.uint8:
    state = dict(fitted or {}) or pixels_state(found['image'].shape[1:], scale)
    kept = state.get('pixels') or state.get('whole')  # of annotated images
    preprocess = Pixels.restore(kept).normalise if kept else preprocess
  return ArrayData(found, metadata, seed, train, operations, preprocess, fitted=state)


def _archive(path: str) -> HostBatch:
  place = fetch(path)
  if not place.is_file():
    raise InputError(f'no file {path}')
  try:
    with open(place, 'rb') as file, zipfile.ZipFile(file):
      file.seek(0)
      archive = np.load(file, allow_pickle=False)
      return {k: archive[k] for k in archive.files}
  except UNREADABLE as error:
    raise InputError(f'{path} is not a numpy archive (.npz): {error}') from None


def _numeric(name: str, array: np.ndarray, path: str) -> np.ndarray:
  """Converts an array of an archive for jax. Raises InputError if it has no rows of numbers."""
  if array.ndim == 0 or array.dtype.kind not in 'biuf':
    raise InputError(f'{path}: {name} is {array.dtype} {array.shape}; expected numbers [N, ...]')
  if name == 'label' and (array.ndim != 1 or (array != np.round(array)).any()):
    raise InputError(
      f'{path}: label is {array.dtype} {array.shape}; expected whole numbers, shape [N]'
    )
  if name == 'image' and array.ndim != 4:
    raise InputError(f'{path}: image has shape {array.shape}; expected [N, I, J, C]')
  return array.astype(np.float32) if array.dtype == np.float64 else array
