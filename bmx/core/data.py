"""Protocols of data: examples, their optional abilities, and their batches."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np

from bmx.core.types import Batch, HostBatch, Metadata


class Spec(NamedTuple):
  """One array of one example, without the batch dimension.

  Attributes:
    shape: of one example.
    dtype: numpy dtype.
    names: a logical dimension name (see `core.layout.RULES`) or None for each dimension of `shape`;
      () leaves all of them without a name. The batch dimension always comes first, as 'batch'.
  """

  shape: tuple[int, ...]
  dtype: Any
  names: tuple[str | None, ...] = ()

  @property
  def batch_names(self) -> tuple[str | None, ...]:
    """Names of the batched array: 'batch' first."""
    return ('batch', *(self.names or (None,) * len(self.shape)))

  def batched(self, batch_size: int) -> jax.ShapeDtypeStruct:
    """The array of a whole batch: [B, *shape]."""
    return jax.ShapeDtypeStruct((batch_size, *self.shape), self.dtype)


class Examples(Protocol):
  """A data set, as users write it. The protocols below declare further abilities."""

  @property
  def size(self) -> int:
    """Number of examples."""
    ...

  @property
  def metadata(self) -> Metadata:
    """Facts: vocab_size, length, num_classes, class_names, num_targets, source, ..."""
    ...

  @property
  def spec(self) -> dict[str, Spec]:
    """The arrays of one example."""
    ...

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Returns examples `indices` int64 [n]; random choices vary with `positions` int64 [n] only."""
    ...


@runtime_checkable
class Resident(Protocol):
  """Examples that may be held on the device."""

  def resident(self) -> HostBatch | None:
    """Arrays to gather from; None if rows come from the host."""
    ...

  def gather(self, arrays: Any, indices: Any) -> Batch:
    """Gathers rows of these arrays, without randomness; the same code for numpy and jax arrays."""
    ...


@runtime_checkable
class Composing(Protocol):
  """Examples that compose their batches themselves (mixtures, windows, Poisson sampling)."""

  def indices(self, positions: np.ndarray, batch_size: int) -> tuple[np.ndarray, Any]:
    """Composes batches: positions int64 [n] -> (indices int64 [n], weights float32 [n] or None)."""
    ...


@runtime_checkable
class Continuing(Composing, Protocol):
  """Examples whose batches can continue each other, for models that carry state."""

  @property
  def contiguous(self) -> bool:
    """Whether, in training, each row of a batch continues the same row of the batch before."""
    ...


@runtime_checkable
class Wrapping(Protocol):
  """Examples around examples, which may compose batches."""

  @property
  def composer(self) -> Composing | None:
    """The examples inside that compose batches; None if there are none."""
    ...


@runtime_checkable
class Sampling(Protocol):
  """Examples that draw each batch at random, from a secret (Poisson sampling)."""

  @property
  def expected(self) -> float:
    """Examples of a batch, on average; the other rows have weight 0."""
    ...

  def keyed(self, run: str) -> Examples:
    """Returns the examples with the draws of the run of this name."""
    ...


@runtime_checkable
class Stateful(Protocol):
  """Examples with preprocessing that was fitted to them."""

  def state(self) -> dict[str, Any]:
    """Fitted values (means, categories, class names, tokenizer), as JSON holds them."""
    ...


@runtime_checkable
class Digested(Protocol):
  """Examples that can detect changes of their content."""

  def digest(self) -> str:
    """Returns the SHA-256 of the content, hexadecimal."""
    ...


@runtime_checkable
class Presenting(Protocol):
  """Examples whose predictions are read in other units than the rows of a batch (questions)."""

  def present(self, predictions: HostBatch) -> list[dict[str, Any]]:
    """Maps predictions of all rows, in order, to one JSON object for each unit."""
    ...


@runtime_checkable
class Described(Protocol):
  """Examples that say what each of them is to people: its text, columns that are not inputs."""

  def describe(self, indices: np.ndarray) -> list[dict[str, Any]]:
    """Returns a JSON object for each of the examples `indices` int64 [n]."""
    ...


@runtime_checkable
class Outlined(Protocol):
  """Examples read as they are needed, whose labels and lengths are known at the start."""

  def outline(self) -> HostBatch:
    """Returns those arrays of all examples [N, ...], for checks before training; {} if unknown."""
    ...


@runtime_checkable
class Readable(Protocol):
  """A task whose predictions have names: of classes, of their probabilities."""

  def readable(self, rows: HostBatch, metadata: Metadata) -> list[dict[str, Any]]:
    """Returns predictions of n rows -> n JSON objects, named as the data's metadata name them."""
    ...


class Data(Protocol):
  """Batches of examples as functions of the step, see `data.batches.Batches`."""

  @property
  def examples(self) -> Examples: ...

  @property
  def size(self) -> int: ...

  @property
  def batch_size(self) -> int: ...

  @property
  def metadata(self) -> Metadata: ...

  @property
  def spec(self) -> dict[str, Spec]: ...

  @property
  def abstract(self) -> dict[str, jax.ShapeDtypeStruct]: ...

  @property
  def expected(self) -> float: ...

  @property
  def weighted(self) -> bool: ...

  def indices(self, step: int, n: int = 1) -> np.ndarray: ...

  def compose(self, step: int, n: int) -> tuple[np.ndarray, np.ndarray | None]: ...

  def keyed(self, run: str) -> 'Data': ...

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch: ...

  def resident(self) -> HostBatch | None: ...

  def gather(self, arrays: Any, indices: Any) -> Batch: ...
