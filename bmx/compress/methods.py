"""Methods of quantization: kernels of a trained model -> the leaves that store them.

D inputs, F outputs, L layers.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bmx.compress import gptq as functions
from bmx.compress.quantize import Scheme
from bmx.core import tree
from bmx.core.types import Variables
from bmx.models.kernels import QUANTIZED, Kernel
from bmx.ops import stored
from bmx.parallel import Layout, jit

Leaf = dict[str, jax.Array]


class Layer(NamedTuple):
  """A kernel of one layer, and how it is stored.

  Attributes:
    kernel: of the contraction.
    kind: of the codes.
    group: inputs that share a scale, of 'int4' and 'nf4'.
  """

  kernel: Kernel
  kind: str
  group: int

  def store(self, w: jax.Array, **parts: jax.Array) -> Leaf:
    """Rounds a kernel to the nearest codes; `parts` are those of `ops.stored.quantize`."""
    return stored.quantize(w, self.kind, self.kernel.dims(w.ndim), self.group, **parts)

  def flat(self, w: jax.Array) -> jax.Array:
    """Returns a kernel as a matrix [D, F]."""
    return w.reshape(self.depth, -1)

  @property
  def depth(self) -> int:
    """Number of inputs, D."""
    return math.prod(self.kernel.shape[: self.kernel.contracted])


def nearest(layer: Layer, w: jax.Array, hessian: jax.Array) -> Leaf:
  """Rounds to the nearest codes."""
  return layer.store(w)


def gptq(layer: Layer, w: jax.Array, hessian: jax.Array) -> Leaf:
  """Rounds inputs in order, each correcting those behind it; see `compress.gptq.gptq`."""
  kind, shape = layer.kind, layer.kernel.shape
  cut = layer.kernel.contracted
  rounded, scales = functions.gptq(
    layer.flat(w),
    hessian,
    lambda rows: stored.scale_of(rows, kind, (0,))[0],
    lambda row, scale: stored.nearest(row / scale, kind) * scale,
    layer.group if kind in stored.PACKED else 0,
  )
  if kind in stored.PACKED:
    places = *shape[: cut - 1], shape[cut - 1] // layer.group, 1
  else:
    places = (1,) * cut
  return layer.store(rounded.reshape(shape), scale=scales.reshape(*places, *shape[cut:]))


def awq(layer: Layer, w: jax.Array, hessian: jax.Array) -> Leaf:
  """Scales inputs by a power of their magnitude before rounding; see `gptq.input_scales`."""
  shape, cut = layer.kernel.shape, layer.kernel.contracted
  rounded = lambda m: layer.flat(stored.dequantize(layer.store(m.reshape(shape))))
  factors = functions.input_scales(layer.flat(w), hessian, rounded)
  return layer.store(w, inputs=(1 / factors).reshape(*shape[:cut], *[1] * (len(shape) - cut)))


class Method(NamedTuple):
  """A way to round kernels.

  Attributes:
    store: (layer, kernel, Hessian [D, D]) -> leaf.
    calibrated: whether it reads the Hessian.
    input_scales: whether leaves have a factor of each input.
  """

  store: Callable[[Layer, jax.Array, jax.Array], Leaf]
  calibrated: bool = False
  input_scales: bool = False


METHODS = {
  'nearest': Method(nearest),
  'gptq': Method(gptq, calibrated=True),
  'awq': Method(awq, calibrated=True, input_scales=True),
}


def quantize(
  params: Variables,
  chosen: Mapping[str, Kernel],
  scheme: Scheme,
  method: Method,
  hessians: Mapping[str, jax.Array],
  layout: Layout,
) -> Variables:
  """Quantizes the chosen kernels of plain parameters, one after another.

  Args:
    params: plain parameters, placed.
    chosen: path of a parameter -> the weight.
    scheme: kind and group.
    method: of METHODS.
    hessians: of the inputs, see `calibrate.hessians`; weights without one are rounded to nearest.
    layout: mesh and rules.

  Returns:
    'params' without these kernels, and 'quantized'.
  """
  rest, codes, programs = tree.named(params), {}, {}
  for path, kernel in chosen.items():
    w = rest.pop(path)
    layer = Layer(kernel, scheme.kind_of(path), scheme.group)
    hessian = hessians.get(path.removesuffix('/kernel'))
    key = layer, w.shape, hessian is None
    if key not in programs:
      store = method.store if hessian is not None else _nearest(method, path)
      programs[key] = jit(functools.partial(_store, store, layer), layout)
    hessian = jnp.zeros(w.shape[:1]) if hessian is None else hessian
    leaf: Any = programs[key](w, hessian)
    codes |= {f'{path}/{name}': array for name, array in leaf.items()}
  return {'params': tree.nested(rest), QUANTIZED: tree.nested(codes)}


def _nearest(method: Method, path: str) -> Callable[[Layer, jax.Array, jax.Array], Leaf]:
  """Returns the rounding of a weight without a Hessian: a table, a convolution, an expert."""
  if not method.input_scales or path.endswith('/table'):
    return nearest

  def with_ones(layer: Layer, w: jax.Array, hessian: jax.Array) -> Leaf:
    cut = layer.kernel.dims(w.ndim)[-1] + 1
    return layer.store(w, inputs=jnp.ones(w.shape[:cut] + (1,) * (w.ndim - cut), jnp.float32))

  return with_ones


def _store(
  store: Callable[[Layer, jax.Array, jax.Array], Leaf],
  layer: Layer,
  w: jax.Array,
  hessian: jax.Array,
) -> Leaf:
  """Stores a kernel, or the kernels of a stack one after another."""
  if w.ndim == len(layer.kernel.shape):
    return store(layer, w, hessian)
  return jax.lax.map(lambda one: store(layer, *one), (w, hessian))
