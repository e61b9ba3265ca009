"""Click models over one block of field embeddings: Wide & Deep, DeepFM, DCN-v2."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import Facts
from bmx.models.layers import Dtype, Einsum, Names, check_rate, check_sizes
from bmx.models.mlp import MLP
from bmx.models.tables import Table
from bmx.parallel import constrain, gather, named

MULTIPLE = 128  # rows of a table are rounded up to it, so that the axes of a mesh divide them


def rounded(rows: int) -> int:
  """Returns the rows that a table of `rows` stores; those behind are never looked up."""
  return -(-rows // MULTIPLE) * MULTIPLE


class FieldEmbeddings(nn.Module):
  """Embeddings of all fields: a vector times each number, and a row for each category.

  The categories of all columns share one table; column i begins behind the rows of those before.

  Attributes:
    field_sizes: categories of each column.
    num_numeric: columns of numbers.
    width: of an embedding, D.
    axes: logical names of rows and width.
    stddev: of the normal distribution that embeddings are drawn from.
    dtype: of the result.
  """

  field_sizes: tuple[int, ...]
  num_numeric: int
  width: int
  axes: Names = ('vocab', 'embed')
  stddev: float = 0.01
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, ids: jax.Array) -> jax.Array:
    """Embeds x float [B, N] and ids int [B, F] -> [B, N + F, D]."""
    parts = []
    if self.num_numeric:
      axes = (None, self.axes[1])
      init = named(nn.initializers.normal(self.stddev), axes)
      vectors = self.param('numeric', init, (self.num_numeric, self.width), jnp.float32)
      parts.append(x.astype(self.dtype)[..., None] * gather(vectors.astype(self.dtype), axes)[None])
    if self.field_sizes:
      starts = np.cumsum([0, *self.field_sizes[:-1]]).astype(np.int32)
      size = rounded(sum(self.field_sizes))
      table = Table(size, self.width, self.axes, self.stddev, self.dtype, name='categories')
      parts.append(table(ids + starts[None]))
    return constrain(jnp.concatenate(parts, 1), 'batch', None, 'act_embed')


class ClickModel(nn.Module):
  """Base of the click models: a subclass adds terms to the logit in `__call__`.

  Attributes:
    field_sizes: categories of each column, of the data.
    num_numeric: columns of numbers, of the data.
    width: of an embedding, D.
    widths: units of the hidden layers of the perceptron.
    dropout: share of its hidden units that training drops.
    stddev: of the normal distribution that embeddings are drawn from.
    sparse: tables get gradients of the rows of a batch alone (see `optim.tables`); False: dense
      gradients, which any optimizer takes.
    dtype: of the computation.
  """

  field_sizes: tuple[int, ...]
  num_numeric: int
  width: int = 16
  widths: tuple[int, ...] = (256, 128)
  dropout: float = 0.0
  stddev: float = 0.01
  sparse: bool = True
  dtype: Dtype = jnp.float32

  @property
  def blocks(self) -> dict[str, int]:
    """Name of each block of fields -> width of its embeddings."""
    return {'embed': self.width}

  @property
  def facts(self) -> Facts:
    """Facts of the model."""
    rows = sum(self.field_sizes)
    tables = tuple(f'{name}/categories/table' for name in self.blocks) if rows else ()
    padded = (rounded(rows) - rows) * sum(self.blocks.values())
    return Facts(num_outputs=1, padded_parameters=padded, sparse_tables=tables * self.sparse)

  def embeddings(self, x: jax.Array, ids: jax.Array) -> jax.Array:
    """Embeds the fields -> [B, N + F, D]. Raises InputError for sizes that are not the data's."""
    check_sizes(width=(self.width,), field_sizes=self.field_sizes)
    check_rate(self.dropout)
    if not self.num_numeric and not self.field_sizes:
      raise InputError('field_sizes=(): expected at least one column, or num_numeric above 0')
    if sum(self.field_sizes) >= 2**31:
      raise InputError(f'field_sizes: {sum(self.field_sizes):,} rows: expected below {2**31:,}')
    given, expected = (x.shape[-1], ids.shape[-1]), (self.num_numeric, len(self.field_sizes))
    if given != expected:
      raise InputError(f'x and ids have {given} columns: expected num_numeric={expected[0]} and '
                       f'{expected[1]} field_sizes')  # fmt: skip
    return self._fields('embed', ('vocab', 'embed'))(x, ids)

  def linear(self, x: jax.Array, ids: jax.Array) -> jax.Array:
    """Sums a weight for each category and each number -> [B, 1]."""
    return self._fields('linear', ('vocab', None))(x, ids).sum(1)

  def deep(self, x: jax.Array, train: bool) -> jax.Array:
    """Applies the perceptron: [B, ...] -> [B, 1]."""
    return MLP(1, self.widths, dropout=self.dropout, dtype=self.dtype, name='deep')(x, train=train)

  def _fields(self, name: str, axes: Names) -> FieldEmbeddings:
    width = self.blocks[name]
    return FieldEmbeddings(self.field_sizes, self.num_numeric, width, axes, self.stddev, self.dtype,
                  name=name)  # fmt: skip


class WideDeep(ClickModel):
  """Wide & Deep: a linear model of all categories and numbers, plus a perceptron of embeddings.

  Crosses of columns are columns of the data (`data.clicks.clicks`), and belong to both parts.

  Source: Cheng et al. 2016, section 3.
  """

  @property
  def blocks(self) -> dict[str, int]:
    return {'embed': self.width, 'linear': 1}

  @nn.compact
  def __call__(self, x: jax.Array, ids: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps x float [B, N] and ids int [B, F] to logits [B, 1]."""
    return self.linear(x, ids) + self.deep(self.embeddings(x, ids), train)


class DeepFM(ClickModel):
  """DeepFM: a factorization machine and a perceptron of the same embeddings.

  Source: Guo et al. 2017, equations 1 to 4.
  """

  @property
  def blocks(self) -> dict[str, int]:
    return {'embed': self.width, 'linear': 1}

  @nn.compact
  def __call__(self, x: jax.Array, ids: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps x float [B, N] and ids int [B, F] to logits [B, 1]."""
    v = self.embeddings(x, ids)
    return self.linear(x, ids) + pairwise(v)[:, None] + self.deep(v, train)


class DCN(ClickModel):
  """DCN-v2: layers of explicit crosses of all embeddings, and a perceptron.

  Attributes:
    crosses: number of layers of crosses.
    rank: of their matrices; 0: full.
    structure: 'stacked': the perceptron reads the crosses; 'parallel': it reads the embeddings.

  Source: Wang et al. 2021, equations 1 and 2, figure 1.
  """

  crosses: int = 2
  rank: int = 0
  structure: str = 'stacked'

  @nn.compact
  def __call__(self, x: jax.Array, ids: jax.Array, *, train: bool = False) -> jax.Array:
    """Maps x float [B, N] and ids int [B, F] to logits [B, 1]."""
    if self.structure not in ('stacked', 'parallel'):
      raise InputError(f"structure={self.structure!r}: expected 'stacked' or 'parallel'")
    check_sizes(crosses=(self.crosses,), rank=(self.rank or 1,))
    v = self.embeddings(x, ids)
    first = y = v.reshape(v.shape[0], -1)
    for i in range(self.crosses):
      y = first * self._product(y, f'cross_{i}') + y
    if self.structure == 'stacked':
      return self.deep(y, train)
    head = Einsum('bd,df->bf', (y.shape[1], 1), ('embed', None), False, name='head')
    return head(y) + self.deep(v, train)

  def _product(self, y: jax.Array, name: str) -> jax.Array:
    """Multiplies [B, D] with a matrix [D, D], of a low rank or full, and adds a bias."""
    size = y.shape[1]
    dense = lambda n, m, axes, bias, part: Einsum(
      'bd,df->bf', (n, m), axes, bias, dtype=self.dtype, name=f'{name}{part}'
    )
    if not self.rank:
      return dense(size, size, ('embed', None), True, '')(y)
    down = dense(size, self.rank, ('embed', None), False, '_down')(y)
    return dense(self.rank, size, (None, 'embed'), True, '_up')(down)


def pairwise(v: jax.Array) -> jax.Array:
  """Sums the products of all pairs of embeddings, in linear time: [B, M, D] -> [B].

  Σ_{i<j} v_i · v_j = ½ Σ_d ((Σ_i v_id)² - Σ_i v_id²).

  Source: Rendle 2010, lemma 3.1.
  """
  return 0.5 * (jnp.square(v.sum(1)) - jnp.square(v).sum(1)).sum(-1)
