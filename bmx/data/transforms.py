"""Examples around examples: Map, Filter and Reorder."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from bmx.core.data import Composing, Digested, Examples, Resident, Spec, Stateful
from bmx.core.errors import InputError
from bmx.core.types import Batch, HostBatch, Metadata
from bmx.data.arrays import spec_of
from bmx.data.batches import composer_of

TOKENWISE = ('tokens', 'targets', 'weights', 'positions', 'segment_ids')  # int or float [T] each


class Around:
  """Examples around `inner`; a subclass inherits the members that it does not define.

  Indices keep their meaning, so the composition of a batch is the inner one's, too.
  """

  inner: Examples

  @property
  def size(self) -> int:
    """Number of examples."""
    return self.inner.size

  @property
  def metadata(self) -> Metadata:
    """Facts of the data set."""
    return self.inner.metadata

  @property
  def composer(self) -> Composing | None:
    """The inner examples that compose batches."""
    return composer_of(self.inner)

  def state(self) -> dict[str, Any]:
    """Everything fitted."""
    return self.inner.state() if isinstance(self.inner, Stateful) else {}

  def digest(self) -> str:
    """That of the inner examples; '' if they have none."""
    return self.inner.digest() if isinstance(self.inner, Digested) else ''


@dataclasses.dataclass(frozen=True)
class Map(Around):
  """Examples through a host function.

  Attributes:
    inner: the examples.
    function: (rows, positions int64 [n]) -> rows; random choices vary with positions only.
    names: array -> logical names of its dimensions, for arrays that the function adds.
  """

  inner: Examples
  function: Callable[[HostBatch, np.ndarray], HostBatch]
  names: Mapping[str, tuple[str | None, ...]] = dataclasses.field(default_factory=dict)

  @property
  def spec(self) -> dict[str, Spec]:
    """Arrays of one example, as the function returns them for the first one."""
    return self._spec

  @functools.cached_property
  def _spec(self) -> dict[str, Spec]:
    one = self.rows(np.zeros(1, np.int64), np.zeros(1, np.int64))
    known = {k: v.names for k, v in self.inner.spec.items()}
    return spec_of(one, known | dict(self.names))

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Rows of the inner examples, through the function."""
    return self.function(self.inner.rows(indices, positions), positions)


@dataclasses.dataclass(frozen=True)
class Filter(Around):
  """The examples that a predicate keeps; it reads all of them once, at the start.

  Attributes:
    inner: the examples.
    keep: rows -> bool [n].

  Raises:
    InputError: no example is kept.
  """

  inner: Examples
  keep: Callable[[HostBatch], np.ndarray]

  def __post_init__(self):
    if composer_of(self.inner) is not None:
      raise InputError('filter: expected examples that do not compose batches; filter their source')
    if not len(self.kept):
      raise InputError(f'filter {self.keep}: expected to keep at least one of {self.inner.size}')

  @functools.cached_property
  def kept(self) -> np.ndarray:
    """Indices of the inner examples, int64 [n]."""
    parts = np.array_split(np.arange(self.inner.size), max(1, self.inner.size // 1024))
    return np.concatenate([p[np.asarray(self.keep(self.inner.rows(p, p)), bool)] for p in parts])

  @property
  def size(self) -> int:
    """Number of kept examples."""
    return len(self.kept)

  @property
  def spec(self) -> dict[str, Spec]:
    """Arrays of one example."""
    return self.inner.spec

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Rows of kept examples."""
    return self.inner.rows(self.kept[indices], positions)


@dataclasses.dataclass(frozen=True)
class Reorder(Around):
  """Rows in another order along their 'length' dimension, with the original `positions`.

  Labels were shifted before, so every token keeps its own.

  Attributes:
    inner: the examples.
    order: int64 [T].

  Raises:
    InputError: an array of `TOKENWISE` whose dimension has another name.
  """

  inner: Examples
  order: np.ndarray

  def __post_init__(self):
    for name, spec in self.inner.spec.items():
      of_tokens = name in TOKENWISE and spec.shape[:1] == (len(self.order),)
      if of_tokens and spec.names[:1] != ('length',):
        raise InputError(
          f"spec[{name!r}].names={spec.names}: expected ('length',), since tokens are "
          'reordered over mesh.seq'
        )

  @property
  def spec(self) -> dict[str, Spec]:
    """Arrays of one example; `positions` are among them."""
    plain = Spec(self.inner.spec['tokens'].shape, np.dtype(np.int32), ('length',))
    return {'positions': plain} | self.inner.spec

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> HostBatch:
    """Reordered rows."""
    return self._reordered(self.inner.rows(indices, positions))

  def resident(self) -> HostBatch | None:
    """The inner examples' arrays."""
    return self.inner.resident() if isinstance(self.inner, Resident) else None

  def gather(self, arrays: Any, indices: Any) -> Batch:
    """Reordered rows of arrays on the device."""
    assert isinstance(self.inner, Resident)
    return self._reordered(self.inner.gather(arrays, indices))

  def _reordered(self, rows: Batch) -> Batch:
    length = len(self.order)
    plain = np.broadcast_to(np.arange(length, dtype=np.int32), (len(rows['tokens']), length))
    rows = {'positions': plain} | rows
    along = {k: v.batch_names for k, v in self.spec.items()}
    return {k: v[:, self.order] if along[k][1:2] == ('length',) else v for k, v in rows.items()}
