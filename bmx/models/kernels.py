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
from bmx.models.convolution import Conv
from bmx.models.layers import Einsum, Embed
from bmx.models.moe import MoE
from bmx.ops import stored
from bmx.parallel.sharding import Named, is_named, unbox

QUANTIZED = 'quantized'  # the collection that holds stored kernels, at the paths of the parameters


class Kernel(NamedTuple):
  """The kernel of an `Einsum`, or another weight that can be quantized.

  Attributes:
    equation: of the contraction; '' of other weights.
    shape: of one layer's kernel; a stacked one has a layer dimension in front.
    axes: names of its dimensions.
    contracted: number of its dimensions that the product sums over.
    first: the first of them; 0 of an `Einsum`.
  """

  equation: str
  shape: tuple[int, ...]
  axes: tuple[str | None, ...]
  contracted: int
  first: int = 0

  def dims(self, ndim: int) -> tuple[int, ...]:
    """Returns the contracted dimensions of an array of `ndim` dimensions, stacked or not."""
    lead = ndim - len(self.shape) + self.first
    return tuple(range(lead, lead + self.contracted))


class Recorded(dict[str, Kernel]):
  """Path of a module -> its kernel.

  Attributes:
    others: path -> class of a module with a kernel that interceptors do not reach.
    weights: path of a parameter -> the weight, of all that can be quantized: kernels of `Einsum`,
      `Conv` and `MoE`, tables of `Embed`.
  """

  def __init__(self):
    super().__init__()
    self.others: dict[str, str] = {}
    self.weights: dict[str, Kernel] = {}

  def matching(self, targets: str) -> dict[str, Kernel]:
    """Returns the kernels whose path a regex matches anywhere.

    Raises InputError naming the candidates, or the layers that cannot be intercepted.
    """
    return self._matching(self, targets)

  def quantizable(self, targets: str) -> dict[str, Kernel]:
    """Returns the weights but tables whose path a regex matches anywhere; '' is all.

    The path of a kernel is that of its module, as pruning and adapters match it.

    Raises InputError as `matching` does; for '', if a layer cannot be intercepted.
    """
    stock = [path for path in self.others if not {path, f'{path}/kernel'} & set(self.weights)]
    if stock and not targets:
      raise InputError(
        f'{stock[0]} is a {self.others[stock[0]]}, which cannot be intercepted: expected layers of '
        'bmx.models.layers; name the kernels to quantize with targets=REGEX'
      )
    kernels = {k: v for k, v in self.weights.items() if k not in self.tables}
    return self._matching(kernels, targets)

  @property
  def tables(self) -> dict[str, Kernel]:
    """The tables among `weights`."""
    return {k: v for k, v in self.weights.items() if k.endswith('/table')}

  def _matching(self, candidates: Mapping[str, Kernel], targets: str) -> dict[str, Kernel]:
    try:
      regex = re.compile(targets)
    except re.error as error:
      raise InputError(f'targets={targets!r}: expected a regular expression: {error}') from None
    where = {path: path.removesuffix('/kernel') for path in candidates}
    found = {path: candidates[path] for path, at in where.items() if regex.search(at)}
    if found:
      return found
    stock = {path: name for path, name in self.others.items() if regex.search(path)}
    if stock:
      path, name = next(iter(stock.items()))
      raise InputError(
        f'targets={targets!r}: expected layers of bmx.models.layers (Einsum); {path} is a {name}, '
        'which cannot be intercepted'
      )
    names = '\n  '.join([*where.values(), *self.others][:40])
    raise InputError(f'targets={targets!r}: expected a regex that matches a kernel of:\n  {names}')


@contextlib.contextmanager
def recorded() -> Iterator[Recorded]:
  """Context in which every called `Einsum` is recorded; use it around `Task.init` or a call."""
  found = Recorded()

  def record(next_fun, args, kwargs, context):
    module = context.module
    result = next_fun(*args, **kwargs)
    if context.method_name not in ('__call__', 'attend') or module.scope is None:
      return result
    path = '/'.join(module.path)
    if isinstance(module, Einsum):
      found[path] = Kernel(module.equation, module.shape, module.axes, module.contracted)
      found.weights[f'{path}/kernel'] = found[path]
    elif isinstance(module, MoE):
      found.others |= {f'{path}/{name}': 'kernel of MoE' for name in module.kernels}
    elif module.has_variable('params', 'kernel'):
      found.others[path] = type(module).__name__
    found.weights |= {f'{path}/{k}': v for k, v in _others(module).items()}
    return result

  with nn.intercept_methods(record):
    yield found


def _others(module: nn.Module) -> dict[str, Kernel]:
  """Returns the weights of a module other than `Einsum`: name of a parameter -> the weight."""
  found: Any = module.variables.get('params', {})
  shape = lambda name: unbox(found[name]).shape
  if isinstance(module, Embed):
    return {'table': Kernel('', shape('table'), module.axes, 1, first=1)}
  if isinstance(module, Conv):
    return {'kernel': Kernel('', shape('kernel'), module.axes, 3)}
  if isinstance(module, MoE):
    return {name: Kernel('', shape(name), (), 1, first=1) for name in module.kernels}
  return {}


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
    kernels: path of a parameter, or of the `Einsum` that has it -> the kernel to quantize.
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
    kernel = kernels.get(name) or kernels.get(name.removesuffix('/kernel'))
    if kernel is None:
      rest[name] = leaf
      continue
    w = leaf.value if is_named(leaf) else leaf
    dims = kernel.dims(w.ndim)
    ones = jnp.ones(w.shape[: dims[-1] + 1] + (1,) * (w.ndim - dims[-1] - 1), jnp.float32)
    try:
      parts = stored.quantize(w, kind, dims, group, inputs=ones if input_scales else None)
    except InputError as error:
      raise InputError(f'{name}: {error}; or name other kernels with targets=REGEX') from None
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
