"""Batches of examples as functions of the step, without state.

Position p = step·B + row counts examples from the start of the run. It is in epoch p // size, which
has a permutation of its own, so a batch may cross the boundary of two epochs.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bmx.core import streams
from bmx.core.data import Composing, Examples, Resident, Sampling, Spec, Wrapping
from bmx.core.errors import InputError
from bmx.core.types import Batch, HostBatch, Metadata


@functools.lru_cache(maxsize=32)  # data sets and sources
def permutations(seed: int, size: int, stream: int) -> Callable[[int], np.ndarray]:
  """Returns a function: epoch -> order of its examples, int64 [size]; it caches the last two."""

  def permutation(epoch: int) -> np.ndarray:
    return streams.generator(seed, stream, epoch).permutation(size)

  return functools.lru_cache(maxsize=2)(permutation)


def in_order(
  positions: np.ndarray, size: int, seed: int, train: bool, stream: int = streams.PERMUTATION
) -> np.ndarray:
  """Returns the examples at positions: a new permutation each epoch in training, else file order.

  Args:
    positions: int64 [n], ascending.
    size: number of examples.
    seed: of the run.
    train: whether the order is shuffled.
    stream: of random numbers, see `core.streams`.

  Returns:
    Indices, int64 [n].
  """
  epochs, places = np.divmod(positions, size)
  if not train or not len(positions):
    return places
  cuts = np.searchsorted(epochs, np.arange(epochs[0] + 1, epochs[-1] + 1))
  parts = np.split(places, cuts)
  first, permutation = int(epochs[0]), permutations(seed, size, stream)
  return np.concatenate([permutation(first + i)[p] for i, p in enumerate(parts)])


def check_weights(weights: np.ndarray, numbers: np.ndarray) -> None:
  """Raises InputError naming an example whose weight is negative or is not finite.

  Args:
    weights: [n, ...].
    numbers: of the examples, int64 [n].
  """
  bad = ~((weights >= 0) & np.isfinite(weights))
  if bad.any():
    row, *place = np.argwhere(bad)[0]
    raise InputError(
      f'weights={weights[(row, *place)]} of example {numbers[row]}: expected a finite number, at '
      'least 0'
    )


def nothing(rows: HostBatch, numbers: np.ndarray) -> None:
  """Checks nothing."""


def composer_of(examples: Examples) -> Composing | None:
  """Returns the examples that compose batches: these, or inner ones; None if there are none."""
  if isinstance(examples, Wrapping):
    return examples.composer
  return examples if isinstance(examples, Composing) else None


@dataclasses.dataclass(frozen=True)
class Batches:
  """The batches of a run over any examples.

  Attributes:
    examples: a data set.
    batch_size: global, B.
    seed: of the order.
    train: a new permutation each epoch; otherwise examples are read once, in file order.
    check: (rows, numbers of the examples) -> None, see `core.types.ChecksRows`.

  Raises:
    InputError: `batch_size` below 1, a data set without examples.
  """

  examples: Examples
  batch_size: int
  seed: int = 0
  train: bool = True
  check: Callable[[HostBatch, np.ndarray], None] = nothing

  def __post_init__(self):
    if self.batch_size < 1:
      raise InputError(f'batch_size={self.batch_size}: expected at least 1')
    if self.examples.size < 1:
      raise InputError('the data set is empty: expected at least one example')

  @property
  def size(self) -> int:
    """Examples per epoch."""
    return self.examples.size

  @property
  def metadata(self) -> Metadata:
    """Facts of the data set."""
    return self.examples.metadata

  @property
  def spec(self) -> dict[str, Spec]:
    """Arrays of one example; `weights` are among them."""
    spec = dict(self.examples.spec)
    return spec if 'weights' in spec else spec | {'weights': Spec((), np.dtype(np.float32))}

  @property
  def abstract(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Arrays [B, ...] of one batch."""
    return {k: v.batched(self.batch_size) for k, v in self.spec.items()}

  @property
  def expected(self) -> float:
    """Examples of a batch, on average: its rows, unless the examples draw fewer."""
    return self.examples.expected if isinstance(self.examples, Sampling) else self.batch_size

  def keyed(self, run: str) -> 'Batches':
    """Returns the batches of the run of this name, which differ if examples are drawn."""
    if not isinstance(self.examples, Sampling):
      return self
    return dataclasses.replace(self, examples=self.examples.keyed(run))

  @property
  def weighted(self) -> bool:
    """Whether the examples decide the weight of each row (Poisson sampling)."""
    return self.compose(0, 1)[1] is not None

  def indices(self, step: int, n: int = 1) -> np.ndarray:
    """The examples of n steps from `step` on: int64 [n, B]."""
    return self.compose(step, n)[0]

  def compose(self, step: int, n: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Composes n steps -> (examples int64 [n, B], weights float32 [n, B] or None)."""
    positions = step * self.batch_size + np.arange(n * self.batch_size, dtype=np.int64)
    shape = n, self.batch_size
    composer = composer_of(self.examples)
    if composer is not None:
      chosen, weights = composer.indices(positions, self.batch_size)
      return chosen.reshape(shape), None if weights is None else weights.reshape(shape)
    return in_order(positions, self.size, self.seed, self.train).reshape(shape), None

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Returns host rows of any examples; positions are step·B + row, both int64 [n]."""
    rows = self.examples.rows(indices, positions)
    rows = {'weights': np.ones(len(indices), np.float32)} | rows
    self._check(rows, indices)
    return rows

  def resident(self) -> HostBatch | None:
    """Arrays to hold on the device and gather from; None if rows come from the host."""
    arrays = self.examples.resident() if isinstance(self.examples, Resident) else None
    if arrays is not None:
      rows = {k: v for k, v in arrays.items() if len(v) == self.size}
      self._check(rows, np.arange(self.size))
    return arrays

  def _check(self, rows: HostBatch, numbers: np.ndarray) -> None:
    if 'weights' in rows:
      check_weights(rows['weights'], numbers)
    self.check(rows, numbers)

  def gather(self, arrays: Any, indices: Any) -> Batch:
    """Rows of resident arrays; the same code for numpy and for jax arrays."""
    assert isinstance(self.examples, Resident)
    return self.examples.gather(arrays, indices)
