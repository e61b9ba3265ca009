"""Poisson sampling: every example is in a batch with one probability, independent of all others."""

import dataclasses
from typing import Any, Self

import numpy as np
from scipy.special import bdtrc

from bmx.core.data import Composing, Examples, Resident, Spec
from bmx.core.errors import InputError
from bmx.core.types import Batch, HostBatch
from bmx.data.batches import composer_of
from bmx.data.transforms import Around
from bmx.privacy.secret import Secret


@dataclasses.dataclass(frozen=True)
class SecretDraws(Around):
  """Training examples whose batches are drawn at random, from a secret; a subclass draws.

  A batch has a fixed number of rows; rows that a draw leaves free have weight 0.

  Attributes:
    inner: the examples.
    secret: of the draws.
  """

  inner: Examples
  secret: Secret

  def draw(self, number: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples of a batch and their weights, int64 and float32 [n], n <= rows."""
    raise NotImplementedError

  @property
  def spec(self) -> dict[str, Spec]:
    """Arrays of one example."""
    return self.inner.spec

  @property
  def composer(self) -> Composing:
    """Itself."""
    return self

  def keyed(self, run: str) -> Self:
    """Returns the examples with the draws of a run."""
    return dataclasses.replace(self, secret=self.secret.keyed(run))

  def digest(self) -> str:
    """A keyed digest: a plain one would confirm a guess of the examples."""
    inner = super().digest()
    return self.secret.digest(inner) if inner else ''

  def indices(self, positions: np.ndarray, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws batches: positions int64 [n] -> (indices int64 [n], weights float32 [n])."""
    numbers, places = np.divmod(positions, batch_size)
    found, weights = np.zeros(len(positions), np.int64), np.zeros(len(positions), np.float32)
    for number in np.unique(numbers):
      here = np.flatnonzero(numbers == number)
      drawn, real = self.draw(int(number), batch_size)
      taken = here[places[here] < len(drawn)]
      found[taken], weights[taken] = drawn[places[taken]], real[places[taken]]
    return found, weights

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Rows of the inner examples."""
    return self.inner.rows(indices, positions)


@dataclasses.dataclass(frozen=True)
class Poisson(SecretDraws):
  """Training examples that draw their batches at random, from a secret.

  A draw of more examples than rows keeps a random part of them: the accounting adds the probability
  of that to δ.

  Attributes:
    expected: examples of a batch, on average.

  Raises:
    InputError: fewer examples than `expected`; examples that compose their own batches.
  """

  expected: float

  def __post_init__(self):
    check_rate(self.expected, self.inner.size)
    if composer_of(self.inner) is not None:
      raise InputError(
        f'privacy: expected data of separate examples, which Poisson sampling draws; '
        f'{self.inner.metadata.get("source", "these data")} compose batches of their own (a '
        'mixture, or windows of a running text)'
      )

  def draw(self, number: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples of a step in random order, each with weight 1."""
    random, size = self.secret.generator(number), self.inner.size
    count = random.binomial(size, self.expected / size)
    drawn = random.choice(size, count, replace=False)[:rows]
    return drawn, np.ones(len(drawn), np.float32)

  def resident(self) -> HostBatch | None:
    """The inner examples' arrays."""
    return self.inner.resident() if isinstance(self.inner, Resident) else None

  def gather(self, arrays: Any, indices: Any) -> Batch:
    """Rows of arrays on the device."""
    assert isinstance(self.inner, Resident)
    return self.inner.gather(arrays, indices)


def check_rate(expected: float, size: int) -> None:
  """Raises InputError if a batch would hold more examples than there are."""
  if expected > size:
    raise InputError(
      f'batch_size={expected:g}: expected at most {size}, the examples of the training data; every '
      'one of them is in a batch with the probability batch_size / examples'
    )


def overflow(rows: int, expected: float, size: int) -> float:
  """Returns the probability that a draw has more examples than `rows`."""
  return float(bdtrc(rows, size, expected / size)) if rows < size else 0.0


def padded_rows(expected: float, size: int, most: float, multiple: int) -> int:
  """Returns the rows of a padded batch.

  Args:
    expected: examples of a batch, on average.
    size: examples of the training data.
    most: probability that a draw does not fit, at most.
    multiple: that the rows are of.
  """
  low, high = int(expected), size
  while low < high:
    middle = (low + high) // 2
    low, high = (low, middle) if overflow(middle, expected, size) <= most else (middle + 1, high)
  return -(-max(low, 1) // multiple) * multiple
