"""Data as functions of the step: which examples, and their rows.

Position p = step·B + row counts examples from the start of the run; it is in epoch p // size, which
has a permutation of its own, so batches cross the edges of epochs and nothing needs to be
remembered.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bmx.core import streams
from bmx.core.errors import InputError
from bmx.core.types import Batch, Rows, metadata_of

RESIDENT_BYTES = 1 << 30  # arrays up to this are held on the device


def keep(batch: Batch) -> Batch:
  return batch


class Shuffled:
  """The order of examples: a new permutation each epoch, or file order once."""

  size: int
  batch_size: int
  seed: int
  train: bool
  info: dict[str, Any]

  @property
  def metadata(self):
    return metadata_of(self.info)

  def order(self, step: int) -> np.ndarray:
    return self.orders(step, 1)[0]

  def orders(self, step: int, n: int) -> np.ndarray:
    positions = step * self.batch_size + np.arange(n * self.batch_size, dtype=np.int64)
    epochs, places = np.divmod(positions, self.size)
    if self.train:
      cuts = np.searchsorted(epochs, np.arange(epochs[0] + 1, epochs[-1] + 1))
      parts = np.split(places, cuts)
      shuffled = [self._permutation(int(epochs[0]) + i)[p] for i, p in enumerate(parts)]
      places = np.concatenate(shuffled)
    return self.example(epochs, places).reshape(n, self.batch_size)

  def example(self, epochs: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The examples that have these numbers in these epochs."""
    return numbers

  @functools.cached_property
  def _permutation(self) -> Callable[[int], np.ndarray]:
    def permutation(epoch):
      return streams.generator(self.seed, streams.PERMUTATION, epoch).permutation(self.size)

    return functools.lru_cache(maxsize=2)(permutation)  # a batch sees two epochs at most edges


@dataclasses.dataclass
class ArrayData(Shuffled):
  """Examples held as arrays.

  Attributes:
    arrays: name -> [N, ...]; floats must be finite.
    info: facts that can be checked against a model ('classes', 'targets', ...).
    train: shuffled and augmented; otherwise read once, in order, as it is.
    augment: (rows, draws float64 [n, 4]) -> rows, on the host.
    finish: what is always done to a batch; works on numpy and on jax arrays.

  Raises:
    InputError: no examples, arrays of different lengths, NaN or infinity, labels outside the
      classes.
  """

  arrays: Rows
  info: dict[str, Any]
  batch_size: int
  seed: int = 0
  train: bool = True
  augment: Callable[[Rows, np.ndarray], Rows] | None = None
  finish: Callable[[Batch], Batch] = keep

  def __post_init__(self):
    check_arrays(self.arrays, self.info)
    self.size = len(next(iter(self.arrays.values())))
    self.arrays = {'weights': np.ones(self.size, np.float32)} | self.arrays
    one = self.finish({k: v[:1] for k, v in self.arrays.items()})
    self.spec = {
      k: jax.ShapeDtypeStruct((self.batch_size, *v.shape[1:]), v.dtype) for k, v in one.items()
    }

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> Rows:
    rows = {k: v[indices] for k, v in self.arrays.items()}
    if self.augment and self.train:
      rows = self.augment(rows, streams.draws(self.seed, streams.AUGMENTATION, positions))
    return self.finish(rows)

  def resident(self) -> Rows | None:
    small = sum(v.nbytes for v in self.arrays.values()) <= RESIDENT_BYTES
    return self.arrays if small and not (self.augment and self.train) else None

  def gather(self, arrays: Any, indices: Any) -> Batch:
    return self.finish({k: v[indices] for k, v in arrays.items()})


@dataclasses.dataclass
class SourceData(Shuffled):
  """Examples read when they are asked for, from a source with `__getitems__`.

  Attributes:
    decode: list of records -> rows.
  """

  source: Any
  decode: Callable[[list[Any]], Rows]
  info: dict[str, Any]
  batch_size: int
  seed: int = 0
  train: bool = True
  augment: Callable[[Rows, np.ndarray], Rows] | None = None
  finish: Callable[[Batch], Batch] = keep

  def __post_init__(self):
    self.size = len(self.source)
    if not self.size:
      raise InputError('the data set is empty')
    one = self.rows(np.zeros(1, np.int64), np.zeros(1, np.int64))
    self.spec = {
      k: jax.ShapeDtypeStruct((self.batch_size, *v.shape[1:]), v.dtype) for k, v in one.items()
    }

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> Rows:
    rows = self.decode(self.source.__getitems__([int(i) for i in indices]))
    check_arrays(rows, self.info)
    rows = {'weights': np.ones(len(indices), np.float32)} | rows
    if self.augment and self.train:
      rows = self.augment(rows, streams.draws(self.seed, streams.AUGMENTATION, positions))
    return self.finish(rows)

  def resident(self) -> Rows | None:
    return None

  def gather(self, arrays: Any, indices: Any) -> Batch:
    raise InputError('this data set is not held on the device')


def check_arrays(arrays: Rows, info: dict[str, Any]) -> None:
  """Raises InputError for what would train silently wrong."""
  lengths = {k: len(v) for k, v in arrays.items()}
  if not lengths or not min(lengths.values()):
    raise InputError('the data set is empty')
  if len(set(lengths.values())) > 1:
    raise InputError(f'arrays of different lengths: {lengths}')
  for name, array in arrays.items():
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
      where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
      raise InputError(
        f'{name} holds {array[where]} in example {where[0]}'
        f'{f", column {where[1]}" if len(where) > 1 else ""}; clean the data or drop the example'
      )
  if 'label' in arrays and info.get('classes'):
    label = arrays['label']
    bad = np.flatnonzero((label < 0) | (label >= info['classes']))
    if len(bad):
      raise InputError(
        f'label {int(label[bad[0]])} of example {int(bad[0])} is outside the {info["classes"]} '
        f'classes 0..{info["classes"] - 1}'
      )


def split_indices(size: int, split: str, holdout: float, known: tuple[str, ...]) -> np.ndarray:
  """Examples of 'train' or 'valid' where `holdout` is the share of 'valid'; 'all' is all, in order.

  Raises InputError for a name that is not in `known`.
  """
  if split not in known:
    raise InputError(f'unknown split {split!r}; known: {", ".join(known)}')
  if not 0 <= holdout < 1:
    raise InputError(f'holdout={holdout} is no share of a whole: 0 <= holdout < 1')
  if split == 'all' or (split == 'train' and not holdout):
    return np.arange(size)
  order = streams.generator(0, streams.SPLIT).permutation(size)
  held = round(size * holdout)
  if split == 'valid' and not held:
    raise InputError(f"split 'valid' is empty: set holdout (now {holdout}) to a share of {size}")
  return np.sort(order[:held] if split == 'valid' else order[held:])
