"""Weights of layers as they are stored: float32 parameters, or quantized kernels in their place."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.ops.stored import dequantize, is_stored, kind_of, stored_names
from bmx.parallel import gather, named

Names = tuple[str | None, ...]


def stored_param(
  module: nn.Module, name: str, init: Callable[..., Any], axes: Names, shape: tuple[int, ...]
) -> Any:
  """Returns a parameter of a module, or the kernel of the collection 'quantized' at its path.

  Args:
    module: bound, in `setup` or a compact method.
    name: of the parameter.
    init: its initializer.
    axes: a name for each of its dimensions.
    shape: of the parameter.
  """
  if module.has_variable('quantized', name):
    return module.get_variable('quantized', name)
  return module.param(name, named(init, axes), shape, jnp.float32)


def codes(w: Any, axes: Names, contracted: Sequence[int]) -> dict[str, jax.Array]:
  """Returns the arrays of a quantized kernel as the computation reads them: gathered."""
  names = stored_names(kind_of(w), axes, contracted)
  return {k: gather(v, names[k]) for k, v in w.items()}


def weight(w: Any, axes: Names, contracted: Sequence[int], dtype: Any) -> jax.Array:
  """Returns a stored weight as the computation reads it: gathered, in `dtype`.

  A quantized kernel is gathered as codes.

  Args:
    w: result of `stored_param`.
    axes: a name for each dimension.
    contracted: dimensions that the product sums over.
    dtype: of the computation.
  """
  if not is_stored(w):
    return gather(w.astype(dtype), axes)
  return dequantize(codes(w, axes, contracted), dtype)
