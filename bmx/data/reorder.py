"""Tokens of a row in another order, as a layout wants them: to tokens, labels and all together."""

import dataclasses
from typing import Any

import jax
import numpy as np

from bmx.core.layout import ALONG_LENGTH
from bmx.core.types import Batch, Data, Rows, metadata_of


@dataclasses.dataclass(frozen=True)
class Reordered:
  """`inner`, its rows [B, T] in the order `places` int64 [T], with the `positions` they had.

  Labels were shifted before, so every token keeps its own.
  """

  inner: Data
  places: np.ndarray

  @property
  def size(self) -> int:
    return self.inner.size

  @property
  def batch_size(self) -> int:
    return self.inner.batch_size

  @property
  def info(self) -> dict[str, Any]:
    return self.inner.info

  @property
  def metadata(self):
    return metadata_of(self.info)

  @property
  def tokenizer(self) -> Any:
    return getattr(self.inner, 'tokenizer', None)

  @property
  def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    return {'positions': jax.ShapeDtypeStruct(self._shape, np.int32)} | self.inner.spec

  @property
  def _shape(self) -> tuple[int, ...]:
    return self.inner.spec['tokens'].shape

  def order(self, step: int) -> np.ndarray:
    return self.inner.order(step)

  def orders(self, step: int, n: int) -> np.ndarray:
    return self.inner.orders(step, n)

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> Rows:
    return self._reorder(self.inner.rows(indices, positions))

  def resident(self) -> Rows | None:
    return self.inner.resident()

  def gather(self, arrays: Any, indices: Any) -> Batch:
    return self._reorder(self.inner.gather(arrays, indices))

  def _reorder(self, rows: Batch) -> Batch:
    length = self._shape[1]
    plain = np.broadcast_to(np.arange(length, dtype=np.int32), (len(rows['tokens']), length))
    rows = {'positions': plain} | rows
    along = lambda k, v: k in ALONG_LENGTH and v.ndim > 1
    return {k: v[:, self.places] if along(k, v) else v for k, v in rows.items()}
