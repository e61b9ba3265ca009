"""Large embedding tables whose gradient is a few rows."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.ops.lookup import look_up
from bmx.parallel import named


class Table(nn.Module):
  """An embedding table for categories by the million, looked up once in a forward pass.

  The model lists its path in `Facts.sparse_tables`; then its gradient is `SparseRows`, and a step
  costs what the rows of a batch cost (see `optim.tables`).

  Attributes:
    size: rows, V.
    width: of a row, D.
    axes: logical names of the two dimensions.
    stddev: of the normal distribution that rows are drawn from.
    dtype: of the result.
  """

  size: int
  width: int
  axes: tuple[str | None, ...] = ('vocab', 'embed')
  stddev: float = 0.02
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, ids: jax.Array) -> jax.Array:
    """Looks up ids int [B, ...] -> [B, ..., D]; NaN for an id outside the table.

    Raises InputError if it is called twice: concatenate the ids instead.
    """
    init = named(nn.initializers.normal(self.stddev), self.axes)
    table = self.param('table', init, (self.size, self.width), jnp.float32)
    flat = ids.reshape(-1)
    if self.has_variable('row_ids', 'table'):
      raise InputError(f'table {"/".join(self.path)}: expected one call; concatenate the ids')
    if not self.is_initializing():
      self.sow('row_ids', 'table', flat)
    if self.has_variable('rows', 'table'):
      rows = self.get_variable('rows', 'table')
    else:
      rows = look_up(table, flat)
    return rows.astype(self.dtype).reshape(*ids.shape, self.width)
