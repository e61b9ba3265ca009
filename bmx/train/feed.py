"""From data to the device: groups of steps, made ahead of time, placed where the layout says."""

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bmx.core.data import Data
from bmx.core.types import Batch, HostBatch
from bmx.parallel import Layout

# Make rows ahead of the loop; one core is left to it, and to XLA where the device is the CPU.
THREADS = min(2, max(1, (os.cpu_count() or 1) - 1))
Group = tuple[int, int]  # (first step, number of steps)
CHOSEN = 'row_weights'  # of a group: weights of rows that `Composing` examples decide


@dataclasses.dataclass(frozen=True)
class Feed:
  """What a dispatch of up to `depth` steps reads.

  Data that is held on the device gets its arrays once (`constants`) and then only the order of
  examples; other data gets its rows. `take` is the device's side: the batch of step i of a group.
  """

  data: Data
  layout: Layout
  depth: int

  def constants(self) -> Batch:
    """The resident arrays, on every device; {} where there are none."""
    arrays = self.data.resident() or {}
    everywhere = NamedSharding(self.layout.mesh, PartitionSpec())
    return {
      k: jax.make_array_from_callback(v.shape, everywhere, lambda i, v=v: v[i])
      for k, v in arrays.items()
    }

  def take(self, constants: Any, group: Batch, i: Any) -> Batch:
    """The batch of step i, as the layout wants it; inside the jitted dispatch."""
    item = {k: jax.lax.dynamic_index_in_dim(v, i, keepdims=False) for k, v in group.items()}
    chosen = item.pop(CHOSEN, None)
    batch = self.data.gather(constants, item['indices']) if constants else item
    if chosen is not None:
      weights = batch['weights']
      batch = {**batch, 'weights': weights * chosen.reshape(-1, *[1] * (weights.ndim - 1))}
    if self.layout.devices == 1:
      return batch
    at = self.layout.batch(self.data.spec, self.data.batch_size)
    return jax.lax.with_sharding_constraint(batch, at)

  def groups(self, groups: Sequence[Group]) -> Iterator[tuple[Batch, float]]:
    """Placed groups in order, each with the seconds that the caller waited for it.

    Rows are made by threads ahead of the loop, and stacked to `depth` whatever their number, so
    that one program serves every group.
    """
    if self.data.resident() is not None:
      for start, n in groups:
        began = time.perf_counter()
        yield self._composed(start, n), time.perf_counter() - began
      return
    source: Any = _Groups(self, groups)
    stream = iter(
      grain.MapDataset.source(source).to_iter_dataset(
        grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=2)
      )
    )
    for _ in groups:
      began = time.perf_counter()
      yield next(stream), time.perf_counter() - began

  def _composed(self, start: int, n: int) -> Batch:
    """Indices of a group [depth, B], and the weights of rows that the examples decide."""
    indices, weights = self.data.compose(start, n)
    arrays = {'indices': _filled(indices.astype(np.int32), self.depth)}
    if weights is not None:
      arrays[CHOSEN] = _filled(weights.astype(np.float32), self.depth)
    at = NamedSharding(self.layout.mesh, PartitionSpec(None, *self.layout.pspec(['batch'])))
    return {
      k: jax.make_array_from_callback(v.shape, at, lambda i, v=v: v[i]) for k, v in arrays.items()
    }

  def shardings(self) -> dict[str, NamedSharding]:
    """Of host-fed groups: the batch's, behind the dimension of steps."""
    batch = self.layout.batch(self.data.spec, self.data.batch_size)
    if self.data.weighted:
      batch[CHOSEN] = NamedSharding(self.layout.mesh, self.layout.pspec(['batch']))
    return {k: NamedSharding(s.mesh, PartitionSpec(None, *s.spec)) for k, s in batch.items()}

  def local_rows(self) -> slice:
    """The rows of the global batch that this process holds."""
    at = NamedSharding(self.layout.mesh, self.layout.pspec(['batch']))
    shape = (self.data.batch_size,)
    where: Any = at.addressable_devices_indices_map(shape)
    spans = [index[0].indices(shape[0])[:2] for index in where.values()]
    return slice(min(s[0] for s in spans), max(s[1] for s in spans))

  def place(self, rows: HostBatch) -> Batch:
    first = self.local_rows().start

    def at(name, index):
      step, row, *rest = index
      a, b, _ = row.indices(self.data.batch_size)
      return rows[name][(step, slice(a - first, b - first), *rest)]

    return {
      k: jax.make_array_from_callback(
        (self.depth, self.data.batch_size, *rows[k].shape[2:]), s, lambda index, k=k: at(k, index)
      )
      for k, s in self.shardings().items()
    }


class _Groups:
  """Group number -> its rows [depth, B, ...], of which this process makes its own."""

  def __init__(self, feed: Feed, groups: Sequence[Group]):
    self.feed, self.list, self.local = feed, list(groups), feed.local_rows()

  def __len__(self) -> int:
    return len(self.list)

  def __getitem__(self, number: Any) -> Batch:
    start, n = self.list[int(number)]
    data, depth = self.feed.data, self.feed.depth
    steps = np.arange(start, start + n)[:, None]
    positions = steps * data.batch_size + np.arange(data.batch_size)[self.local]
    # One call for all steps: in Python a call costs more than the rows of a small batch.
    indices, weights = data.compose(start, n)
    rows = data.rows(indices[:, self.local].ravel(), positions.ravel())
    rows = {k: v.reshape(*positions.shape, *v.shape[1:]) for k, v in rows.items()}
    if weights is not None:
      rows[CHOSEN] = weights[:, self.local].astype(np.float32)
    if n < depth:
      rows = {k: v[np.minimum(np.arange(depth), n - 1)] for k, v in rows.items()}
    return self.feed.place(rows)


def _filled(values: np.ndarray, depth: int) -> np.ndarray:
  """[n, B] -> [depth, B], zeros behind."""
  return np.concatenate([values, np.zeros((depth - len(values), *values.shape[1:]), values.dtype)])
