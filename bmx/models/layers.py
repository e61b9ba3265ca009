"""Layers of all models. Each parameter's dimensions are named where it is created."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core.errors import InputError
from bmx.models import weights
from bmx.ops.dense import contract
from bmx.ops.lookup import look_up
from bmx.ops.stored import dequantize, is_stored
from bmx.parallel import Stored, axes_of, gather, named, shard_map

Dtype = Any
Init = Callable[..., jax.Array]
Names = tuple[str | None, ...]


def gelu(x: jax.Array) -> jax.Array:
  """Computes the tanh approximation of GELU; of 16-bit arrays in float32, rounded once.

  There it is x · sigmoid(2z), the same function as x · (1 + tanh z) / 2: XLA computes it again in
  the backward pass, where it would write the tanh to memory and read it (experiments/bench/README).
  Source: Hendrycks and Gimpel 2016, section 2.
  """
  if x.dtype.itemsize > 2:
    return jax.nn.gelu(x, approximate=True)
  y = x.astype(jnp.float32)
  z = math.sqrt(2 / math.pi) * (y + 0.044715 * y * y * y)
  return (y * jax.nn.sigmoid(2 * z)).astype(x.dtype)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'relu': jax.nn.relu,
  'gelu': gelu,
  'gelu_exact': lambda x: jax.nn.gelu(x, approximate=False),
  'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),
  'silu': jax.nn.silu,
  'sigmoid': jax.nn.sigmoid,
  'tanh': jnp.tanh,
}


def activation(name: str, word: str = 'activation') -> Callable[[jax.Array], jax.Array]:
  """Returns the activation function of a name; raises InputError, naming `word`, if unknown."""
  if name not in ACTIVATIONS:
    raise InputError(f'{word}={name!r}: expected one of {", ".join(sorted(ACTIVATIONS))}')
  return ACTIVATIONS[name]


def check_sizes(**sizes: tuple[int, ...]) -> None:
  """Raises InputError if a layer has no units."""
  for name, values in sizes.items():
    if any(v < 1 for v in values):
      raise InputError(f'{name}={values}: expected at least 1')


def check_rate(dropout: float) -> None:
  """Raises InputError unless `dropout` is a rate, 0 <= dropout < 1."""
  if not 0 <= dropout < 1:
    raise InputError(f'dropout={dropout}: expected 0 <= dropout < 1')


def token_positions(tokens: jax.Array, positions: jax.Array | None, max_seq_len: int) -> jax.Array:
  """Returns the positions of tokens [B, T]: `positions`, or 0, 1, 2, ... int [B, T].

  Raises InputError for more tokens than a model of `max_seq_len` positions has; 0: no limit.
  """
  if max_seq_len and tokens.shape[1] > max_seq_len:
    raise InputError(
      f"a sequence of {tokens.shape[1]} tokens is longer than the model's {max_seq_len} positions"
    )
  if positions is not None:
    return positions
  return jnp.broadcast_to(jnp.arange(tokens.shape[1])[None, :], tokens.shape)


class Einsum(nn.Module):
  """The one contraction: `einsum(equation, x, kernel) + bias`.

  Interceptors (`flax.linen.intercept_methods`) find three places: `weight` (quantized or masked
  kernels), `product` (integer products, Hessians, norms of gradients) and `__call__` (adapters).

  Attributes:
    equation: 'btd,dnh->btnh': x's leading labels, then the contracted ones, which lead the kernel.
    shape: of the kernel.
    axes: a name for each dimension of the kernel.
    bias: over the output dimensions that come from the kernel; zero unless `bias_init` is given.
    kernel_init: default normal with variance 1 / fan in (LeCun).
  """

  equation: str
  shape: tuple[int, ...]
  axes: Names
  bias: bool = True
  kernel_init: Init | None = None
  bias_init: Init = nn.initializers.zeros_init()
  dtype: Dtype = jnp.float32

  def setup(self):
    fan_in = math.prod(self.shape[: self.contracted])
    init = self.kernel_init or nn.initializers.normal(fan_in**-0.5)
    self.stored = weights.stored_param(self, 'kernel', init, self.axes, self.shape)
    if self.bias:
      zeros, shape = named(self.bias_init, self._bias_axes), self.shape[self.contracted :]
      self.stored_bias = self.param('bias', zeros, shape, jnp.float32)

  @property
  def _dims(self) -> tuple[int, int]:
    """Numbers of leading and of contracted dimensions of the input."""
    inputs, weights = self.equation.split('->')[0].split(',')
    lead = len([c for c in inputs if c not in weights])
    return lead, len(inputs) - lead

  @property
  def contracted(self) -> int:
    """Number of leading dimensions of the kernel that the product sums over."""
    return self._dims[1]

  @property
  def _bias_axes(self) -> Names:
    return tuple('norm' if a == 'embed' else a for a in self.axes[self.contracted :])

  def weight(self) -> jax.Array:
    """Returns the kernel as the computation reads it: gathered, in `dtype`.

    A quantized kernel (collection 'quantized') is gathered as codes.
    """
    return weights.weight(self.stored, self.axes, range(self.contracted), self.dtype)

  def codes(self) -> dict[str, jax.Array]:
    """Returns the arrays of a quantized kernel as the computation reads them: gathered."""
    return weights.codes(self.stored, self.axes, range(self.contracted))

  def product(self, x: jax.Array, w: jax.Array) -> jax.Array:
    """Contracts an input with a kernel, both in `dtype`, by `equation`."""
    return contract(self.equation, x, w)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns the product with the kernel, plus the bias."""
    y = self.product(x.astype(self.dtype), self.weight())
    if self.bias:
      bias = gather(self.stored_bias.astype(self.dtype), self._bias_axes)
      y += bias.reshape((1,) * self._dims[0] + bias.shape)
    return y


class Embed(nn.Module):
  """A table of `size` rows; `pad` more rows are stored (so that axes divide) and never used."""

  size: int
  width: int
  axes: Names = ('vocab', 'embed')
  pad: int = 0
  table_init: Init | None = None
  dtype: Dtype = jnp.float32

  def setup(self):
    init = self.table_init or nn.initializers.normal(0.02)
    rows = self.size + self.pad

    def padded(key, shape, dtype):
      table = init(key, (self.size, self.width), dtype)  # the same values whatever the padding
      return jnp.pad(table, ((0, rows - self.size), (0, 0)))

    self.table = weights.stored_param(self, 'table', padded, self.axes, (rows, self.width))

  def __call__(self, ids: jax.Array) -> jax.Array:
    """Looks up ids int [B, T] -> [B, T, D]; NaN for an id outside the `size` rows.

    Each device looks up the rows that it has. The compiler alone would send the table's gradient
    whole, or by all-to-all.
    """
    if self.pad:
      ids = jnp.where(ids < self.size, ids, self.size + self.pad)
    return self.lookup(ids, self._rows())

  def lookup(self, ids: jax.Array, w: jax.Array) -> jax.Array:
    """Looks up ids int [B, T] in a table [V + pad, D] as it is stored -> [B, T, D]."""
    place, axes = Stored(self.axes), axes_of(self.axes[0] or '')

    def local(table, ids):
      table = place.fetch(table)
      if not axes:
        return look_up(table, ids)
      known = (ids >= 0) & (ids < table.shape[0] * jax.lax.axis_size(axes))
      ids -= jax.lax.axis_index(axes) * table.shape[0]
      mine = (ids >= 0) & (ids < table.shape[0])
      rows = jnp.take(table, ids.clip(0, table.shape[0] - 1), axis=0)
      others = jnp.where(known, 0, jnp.nan).astype(table.dtype)
      return jax.lax.psum(jnp.where(mine[..., None], rows, others[..., None]), axes)

    token = ('batch', 'length')
    out = (*token, self.axes[1])
    return shard_map(local, (place, token), out)(w, ids)

  def _rows(self) -> jax.Array:
    if is_stored(self.table):
      return dequantize(self.table, self.dtype)
    return self.table.astype(self.dtype)

  def weight(self) -> jax.Array:
    """Returns the table as `attend` reads it: gathered, in `dtype`, [V + pad, D]."""
    return gather(self.stored_weight(), self.axes)

  def stored_weight(self) -> jax.Array:
    """Returns the table in `dtype` as it is stored, [V + pad, D].

    Interceptors that change it change `attend` and chunked losses alike.
    """
    return self._rows()

  def product(self, x: jax.Array, w: jax.Array) -> jax.Array:
    """Multiplies x [B, T, D] with w [V, D] -> [B, T, V]."""
    return contract('btd,dv->btv', x, w.T)

  def attend(self, x: jax.Array) -> jax.Array:
    """Scores every row of the table: x [B, T, D] -> [B, T, V]."""
    return self.product(x.astype(self.dtype), self.weight())


class Norm(nn.Module):
  """Layer norm (Ba et al. 2016) or RMS norm (Zhang & Sennrich 2019) over the last dimension."""

  kind: str = 'layer'
  eps: float = 1e-5
  bias: bool = True
  dtype: Dtype = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    if self.kind not in ('layer', 'rms'):
      raise InputError(f"norm={self.kind!r}: expected 'layer' or 'rms'")
    width, ones, zeros = x.shape[-1:], nn.initializers.ones_init(), nn.initializers.zeros_init()
    y = x.astype(jnp.float32)
    if self.kind == 'layer':
      y -= y.mean(-1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.eps)
    row = (1,) * (x.ndim - 1) + width
    y *= self.param('scale', named(ones, ('norm',)), width, jnp.float32).reshape(row)
    if self.kind == 'layer' and self.bias:
      y += self.param('bias', named(zeros, ('norm',)), width, jnp.float32).reshape(row)
    return y.astype(self.dtype)
