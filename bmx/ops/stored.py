"""Quantized kernels as they are stored: plain dicts that describe themselves.

    {'int8': int8 [*kernel], 'scale': float32 [1 over contracted dimensions, outputs]}
    {'fp8': float8_e4m3fn [*kernel], 'scale': likewise}
    {'int4' or 'nf4': uint8 [.., G, g / 2, ..], 'scale': float32 [.., G, 1, ..]}

The last contracted dimension of 'int4' and 'nf4' is cut into G groups of g elements that share a
scale; two codes are packed in a byte. Quantization is symmetric: zero stays zero. A stacked kernel
has its layer dimension in front, and so have codes and scale. 'inputs', float32 [inputs, 1 over
outputs], is a factor of each input beside them, if a kernel was scaled before it was rounded.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bmx.core.errors import InputError, did_you_mean

Stored = Mapping[str, jax.Array]
Names = tuple[str | None, ...]

# Dettmers et al. 2023, appendix E: quantiles of the normal distribution, with an exact zero.
NF4 = (
  -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
  -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
  0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
  0.7229568362236023, 1.0,
)  # fmt: skip
WHOLE = {'int8': 127.0, 'fp8': 448.0}  # kinds of one code a byte -> largest code
PACKED = {'int4': 7.0, 'nf4': 1.0}
KINDS = (*WHOLE, *PACKED)


def check_kind(kind: str) -> None:
  """Raises InputError for an unknown kind of stored kernel."""
  if kind not in KINDS:
    raise InputError(
      f'kind={kind!r}: expected one of {", ".join(KINDS)}{did_you_mean(kind, KINDS)}'
    )


def is_stored(x: Any) -> bool:
  """Returns whether a value is a quantized kernel."""
  return isinstance(x, Mapping) and 'scale' in x and any(kind in x for kind in KINDS)


def kind_of(stored: Stored) -> str:
  """Returns the kind of a quantized kernel."""
  return next(kind for kind in KINDS if kind in stored)


def quantize(
  w: jax.Array,
  kind: str,
  contracted: Sequence[int],
  group: int = 64,
  scale: jax.Array | None = None,
  inputs: jax.Array | None = None,
) -> dict[str, Any]:
  """Rounds a kernel to the nearest codes.

  Args:
    w: float [...].
    kind: of KINDS.
    contracted: dimensions that a product sums over.
    group: elements of the last contracted dimension that share a scale, for 'int4' and 'nf4'.
    scale: of the codes, as it is stored; None: the largest code is that of the largest weight.
    inputs: factors that `dequantize` multiplies each input's weights by, [inputs, 1 over outputs];
      w / inputs is rounded.

  Raises:
    InputError: an unknown kind; a group that is odd, below 4, or does not divide the dimension.
  """
  check_kind(kind)
  w = w.astype(jnp.float32)
  w = w if inputs is None else w / inputs
  own = {} if inputs is None else {'inputs': inputs}
  if kind in WHOLE:
    scale = scale_of(w, kind, contracted) if scale is None else scale
    dtype = jnp.int8 if kind == 'int8' else jnp.float8_e4m3fn
    return {kind: nearest(w / scale, kind).astype(dtype), 'scale': scale, **own}
  axis = contracted[-1]
  grouped = _split(w, axis, group)
  scale = scale_of(grouped, kind, (axis + 1,)) if scale is None else scale
  codes = grouped / scale
  numbers = jnp.round(codes).astype(jnp.int32) + 8 if kind == 'int4' else _nf4(codes)
  return {kind: _pack(numbers.clip(0, 15), axis + 1), 'scale': scale, **own}


def scale_of(w: jax.Array, kind: str, over: Sequence[int]) -> jax.Array:
  """Returns the scale at which the largest weight has the largest code; 1 over the dimensions."""
  peak = jnp.abs(w).max(tuple(over), keepdims=True)
  return jnp.where(peak > 0, peak, 1.0) / (WHOLE | PACKED)[kind]


def nearest(codes: jax.Array, kind: str) -> jax.Array:
  """Rounds numbers to the nearest codes of a kind, float32."""
  if kind == 'nf4':
    return jnp.asarray(NF4, jnp.float32)[_nf4(codes)]
  largest = (WHOLE | PACKED)[kind]
  codes = codes.clip(-largest, largest)
  if kind == 'fp8':
    return codes.astype(jnp.float8_e4m3fn).astype(jnp.float32)
  return jnp.round(codes)


def like(w: jax.Array, stored: Stored) -> dict[str, Any]:
  """Quantizes a kernel as another of its shape is stored, with the same factors of inputs."""
  kind, scale = kind_of(stored), stored['scale']
  group = 0
  if kind in WHOLE:
    over = [i for i, (n, m) in enumerate(zip(w.shape, scale.shape, strict=True)) if m == 1 < n]
  else:
    axis = packed_axis(stored)
    over, group = [axis - 1], 2 * stored[kind].shape[axis]
  return quantize(w, kind, over, group, inputs=stored.get('inputs'))


def dequantize(stored: Stored, dtype: Any = jnp.float32) -> jax.Array:
  """Returns the kernel that the codes stand for."""
  kind, scale = kind_of(stored), stored['scale']
  codes = stored[kind]
  if kind in WHOLE:
    w = codes.astype(jnp.float32) * scale
  else:
    axis = packed_axis(stored)
    numbers = _unpack(codes, axis)
    values = numbers - 8.0 if kind == 'int4' else jnp.asarray(NF4, jnp.float32)[numbers]
    shape = list(numbers.shape)
    shape[axis - 1 : axis + 1] = [shape[axis - 1] * shape[axis]]
    w = (values * scale).reshape(shape)
  return (w * stored['inputs'] if 'inputs' in stored else w).astype(dtype)


def product(equation: str, x: jax.Array, stored: Stored, contracted: int) -> jax.Array:
  """Multiplies rows that are rounded to the kernel's kind with its codes: float32.

  Each row of x has a scale of its own. The product is one of int8 with sums in int32, or of
  float8 with sums in float32.

  Args:
    equation: 'btd,dnh->btnh': x's leading labels, then the contracted ones, which lead the kernel.
    x: input.
    stored: the kernel, 'int8' or 'fp8'.
    contracted: number of contracted dimensions.
  """
  kind = kind_of(stored)
  lead = x.ndim - contracted
  x = x.astype(jnp.float32)
  if 'inputs' in stored:
    factors = stored['inputs'].reshape(stored['inputs'].shape[:contracted])
    x = x * factors.reshape((1,) * lead + factors.shape)
  rows = quantize(x, kind, tuple(range(lead, x.ndim)))
  sums = jnp.int32 if kind == 'int8' else jnp.float32
  y = jnp.einsum(equation, rows[kind], stored[kind], preferred_element_type=sums)
  outputs = stored['scale'].shape[contracted:]
  of_rows = rows['scale'].reshape(x.shape[:lead] + (1,) * len(outputs))
  return y.astype(jnp.float32) * of_rows * stored['scale'].reshape((1,) * lead + outputs)


def packed_axis(stored: Stored) -> int:
  """Returns the dimension of the codes whose elements are packed: the only one that `scale` lacks.

  Groups have at least 4 elements, so that it is longer than 1 in the codes.
  """
  codes, scale = stored[kind_of(stored)], stored['scale']
  shapes = zip(codes.shape, scale.shape, strict=True)
  return next(i for i, (n, m) in enumerate(shapes) if m == 1 and n > 1)


def stored_names(kind: str, names: Names, contracted: Sequence[int]) -> dict[str, Names]:
  """Names the dimensions of codes and scale, for their placement.

  Args:
    kind: of KINDS.
    names: of the kernel's dimensions.
    contracted: dimensions that a product sums over.
  """
  outputs = range(contracted[-1] + 1, len(names))
  inputs = tuple(None if i in outputs else name for i, name in enumerate(names))
  if kind in WHOLE:
    scale = tuple(None if i in contracted else name for i, name in enumerate(names))
    return {kind: names, 'scale': scale, 'inputs': inputs}
  cut = contracted[-1] + 1
  split = (*names[:cut], None, *names[cut:])
  return {kind: split, 'scale': split, 'inputs': inputs}


def _nf4(codes: jax.Array) -> jax.Array:
  """Returns the numbers of the nearest levels of NF4, int32."""
  middles = jnp.asarray((np.array(NF4[1:]) + np.array(NF4[:-1])) / 2, jnp.float32)
  return jnp.searchsorted(middles, codes).astype(jnp.int32)


def _split(w: jax.Array, axis: int, group: int) -> jax.Array:
  n = w.shape[axis]
  if group < 4 or group % 2:
    raise InputError(f'group={group}: expected an even number, at least 4')
  if n % group:
    raise InputError(
      f'group={group}: expected a divisor of {n}, dimension {axis} of a kernel {list(w.shape)}'
    )
  return w.reshape(*w.shape[:axis], n // group, group, *w.shape[axis + 1 :])


def _pack(numbers: jax.Array, axis: int) -> jax.Array:
  """Packs pairs of neighbors along a dimension, 0 <= number < 16, the first in the low bits."""
  even = jax.lax.slice_in_dim(numbers, 0, None, 2, axis)
  odd = jax.lax.slice_in_dim(numbers, 1, None, 2, axis)
  return (even | odd << 4).astype(jnp.uint8)


def _unpack(codes: jax.Array, axis: int) -> jax.Array:
  """Inverse of `_pack`, int32."""
  wide = codes.astype(jnp.int32)
  pairs = jnp.stack([wide & 15, wide >> 4], axis + 1)
  shape = list(codes.shape)
  shape[axis] *= 2
  return pairs.reshape(shape)
