"""Adapters of a served model: every row of a batch has its own (Sheng et al. 2023, S-LoRA).

The collection 'adapters' holds, beside each kernel, the factors of all adapters: 'kernel_a'
[M, *contracted, r] and 'kernel_b' [M, r, *outputs], scaled. Adapter 0 is zero: the base alone.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bmx.core import tree
from bmx.core.types import Variables
from bmx.models.layers import Einsum
from bmx.models.stack import unstacked
from bmx.ops import lowrank
from bmx.parallel import Layout

ADAPTERS = 'adapters'


def stacked(own: Sequence[tuple[float, Variables]], dtype: Any, layout: Layout) -> Variables:
  """Returns the collection of the given adapters, numbers 1, 2, ..., on every device.

  Args:
    own: (scale, adapters), see `ops.lowrank`; their ranks and targets may differ.
    dtype: of the computation.
    layout: mesh and rules.
  """
  found = [_factors(scale, adapters) for scale, adapters in own]
  leaves: dict[str, Any] = {}
  for path in sorted({path for one in found for path in one}):
    there = [one.get(path) for one in found]
    rank = max(a.shape[-1] for a, _ in filter(None, there))
    a, b = next(filter(None, there))
    into = np.zeros((len(own) + 1, *a.shape[:-1], rank), np.float32)
    out = np.zeros((len(own) + 1, rank, *b.shape[1:]), np.float32)
    for number, pair in enumerate(there, 1):
      if pair is not None:
        into[number, ..., : pair[0].shape[-1]], out[number, : len(pair[1])] = pair
    leaves |= {f'{path}/{lowrank.A}': into, f'{path}/{lowrank.B}': out}
  place = lambda x: jax.device_put(x.astype(dtype), layout.sharding())
  return {ADAPTERS: tree.nested({name: place(leaf) for name, leaf in leaves.items()})}


def _factors(scale: float, adapters: Variables) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns path -> (A, scale · B) of layers one by one; singular values are multiplied in."""
  found = {}
  for path, parts in lowrank.by_path(unstacked(adapters)).items():
    a, b = (np.asarray(parts[name], np.float32) for name in (lowrank.A, lowrank.B))
    found[path] = a * np.asarray(parts.get(lowrank.SINGULAR, 1.0), np.float32), scale * b
  return found


def adapting(numbers: jax.Array) -> Any:
  """Context in which each row's adapter is added, where a model has the collection 'adapters'.

  Args:
    numbers: int32 [B], of the rows of the batch.
  """

  def intercept(next_fun, args, kwargs, context):
    module = context.module
    y = next_fun(*args, **kwargs)
    ours = isinstance(module, Einsum) and context.method_name == '__call__'
    if not ours or not module.has_variable(ADAPTERS, lowrank.A):
      return y
    factor = lambda name: jnp.take(module.get_variable(ADAPTERS, name), numbers, axis=0)
    x = args[0].astype(module.dtype)
    return y + lowrank.product_by_row(module.equation, x, factor(lowrank.A), factor(lowrank.B))

  return nn.intercept_methods(intercept)
