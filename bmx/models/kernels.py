"""The kernels of a model: which there are, and trees in which some of them are quantized."""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.models.layers import Einsum
from bmx.models.moe import MoE
from bmx.ops import stored
from bmx.parallel.sharding import Named, is_named

QUANTIZED = 'quantized'  # the collection that holds stored kernels, at the paths of the parameters


class Kernel(NamedTuple):
  """The kernel of an `Einsum`.

  Attributes:
    equation: of the contraction.
    shape: of one layer's kernel; a stacked one has a layer dimension in front.
    axes: names of its dimensions.
    contracted: number of its leading dimensions that the product sums over.
  """

  equation: str
  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  contracted: int

  def dims(self, ndim: int) -> tuple[int, ...]:
    """Returns the contracted dimensions of an array of `ndim` dimensions, stacked or not."""
    lead = ndim - len(self.shape)
    return tuple(range(lead, lead + self.contracted))


class Recorded(dict[str, Kernel]):
  """Path of a module -> its kernel.

  Attributes:
    others: path -> class of a module with a kernel that interceptors do not reach.
  """

  def __init__(self):
    super().__init__()
    self.others: dict[str, str] = {}

  def matching(self, targets: str) -> dict[str, Kernel]:
    """Returns the kernels whose path a regex matches anywhere.

    Raises InputError naming the candidates, or the layers that cannot be intercepted.
    """
    try:
      regex = re.compile(targets)
    except re.error as error:
      raise InputError(f'targets={targets!r}: expected a regular expression: {error}') from None
    found = {path: kernel for path, kernel in self.items() if regex.search(path)}
    if found:
      return found
    stock = {path: name for path, name in self.others.items() if regex.search(path)}
    if stock:
      path, name = next(iter(stock.items()))
      raise InputError(
        f'targets={targets!r}: expected layers of bmx.models.layers (Einsum); {path} is a {name}, '
        'which cannot be intercepted'
      )
    names = '\n  '.join([*self, *self.others][:40])
    raise InputError(f'targets={targets!r}: expected a regex that matches a kernel of:\n  {names}')


@contextlib.contextmanager
def recorded() -> Iterator[Recorded]:
  """Context in which every called `Einsum` is recorded; use it around `Task.init` or a call."""
  found = Recorded()

  def record(next_fun, args, kwargs, context):
    module = context.module
    result = next_fun(*args, **kwargs)
    if context.method_name != '__call__' or module.scope is None:
      return result
    path = '/'.join(module.path)
    if isinstance(module, Einsum):
      found[path] = Kernel(module.equation, module.shape, module.axes, module.contracted)
    elif isinstance(module, MoE):
      found.others |= {f'{path}/{name}': 'kernel of MoE' for name in module.kernels}
    elif module.has_variable('params', 'kernel'):
      found.others[path] = type(module).__name__
    return result

  with nn.intercept_methods(record):
    yield found


def split(
  params: Any,
  kernels: Mapping[str, Kernel],
  kind: str,
  group: int = 64,
  input_scales: bool = False,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Quantizes kernels of parameters, boxed with names or not.

  Args:
    params: of the model.
    kernels: path -> the kernel to quantize.
    kind: of `ops.stored.KINDS`.
    group: see `ops.stored.quantize`.
    input_scales: adds factors of 1 for the inputs of each kernel.

  Returns:
    The parameters without these kernels, and the collection QUANTIZED.

  Raises:
    InputError: see `ops.stored.quantize`; names the kernel.
  """
  rest, codes = {}, {}
  for name, leaf in tree.named(params, is_leaf=is_named).items():
    kernel = kernels.get(name.removesuffix('/kernel')) if name.endswith('/kernel') else None
    if kernel is None:
      rest[name] = leaf
      continue
    w = leaf.value if is_named(leaf) else leaf
    dims = kernel.dims(w.ndim)
    ones = jnp.ones(w.shape[: dims[-1] + 1] + (1,) * (w.ndim - dims[-1] - 1), jnp.float32)
    try:
      parts = stored.quantize(w, kind, dims, group, inputs=ones if input_scales else None)
    except InputError as error:
      raise InputError(f'{name}: {error}') from None
    if is_named(leaf):
      names = stored.stored_names(kind, leaf.names, dims)
      parts = {k: Named(v, names[k]) for k, v in parts.items()}
    codes |= {f'{name}/{k}': v for k, v in parts.items()}
  return tree.nested(rest), tree.nested(codes)


def split_like(params: Any, quantized: Any) -> tuple[dict[str, Any], dict[str, Any]]:
  """Quantizes the kernels of plain parameters that a collection QUANTIZED has, as it stores them.

  Returns:
    The parameters without these kernels, and the new collection.
  """
  plain = tree.named(params)
  codes = {path: stored.like(plain.pop(path), leaf) for path, leaf in leaves(quantized).items()}
  return tree.nested(plain), tree.nested(codes)


def leaves(quantized: Any) -> dict[str, Any]:
  """Returns the stored kernels of a collection QUANTIZED: path of the parameter -> leaf."""
  found = jax.tree_util.tree_flatten_with_path(quantized, is_leaf=stored.is_stored)[0]
  return {jax.tree_util.keystr(k, simple=True, separator='/'): leaf for k, leaf in found}


def join(params: Any, quantized: Any, dtype: Any = jnp.float32) -> dict[str, Any]:
  """Inverse of `split`, but for the rounding: returns plain parameters."""
  kernels = {path: stored.dequantize(leaf, dtype) for path, leaf in leaves(quantized).items()}
  return tree.nested(tree.named(params) | kernels)
