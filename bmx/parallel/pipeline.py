"""Pipeline parallelism: stages over the leading (layer) axis of stacked parameters.

GPipe (Huang et al. 2019) as one loop: a buffer holds the input of each stage, all stages compute
at once under `vmap`, and a roll, which the compiler makes a collective-permute, passes it on.
M microbatches through S stages take M + S - 1 ticks, of which S - 1 are the bubble.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from bmx.core.errors import InputError
from bmx.parallel.sharding import current

AXIS = 'pipe'


def stages() -> int:
  """Returns the number of stages of the layout in context; 1 without one."""
  layout = current()
  return layout.mesh.shape[AXIS] if layout else 1


def pipeline(
  block: Callable[[Any, jax.Array, Any], tuple[Any, Any]],
  params: Any,
  x: Any,
  microbatches: int,
) -> tuple[Any, Any]:
  """Computes `depth` blocks in sequence, spread over the stages.

  Args:
    block: (parameters of a layer, number of this call, x) -> (x, aux); aux is a tree of scalars.
      The number is unique to each (layer, microbatch), so that noise can be keyed by it.
    params: leaves [L, ...], layer-major; 'layers' lies on the mesh axis 'pipe'.
    x: leaves [B, ...], the batch sharded as the layout says.
    microbatches: M, which divides B. Row i is in microbatch i mod M: a strided split moves no row
      of a sharded batch.

  Returns:
    (x, aux summed over layers, averaged over microbatches).

  Raises:
    InputError: layers or rows that do not divide.
  """
  n, m = stages(), microbatches
  depth = jax.tree.leaves(params)[0].shape[0]
  rows = jax.tree.leaves(x)[0].shape[0]
  if depth % n:
    raise InputError(f'{depth} layers are not divisible by mesh.pipe={n}')
  if rows % m:
    raise InputError(f'{rows} rows are not divisible by {m} microbatches of the pipeline')
  held = jax.tree.map(lambda w: w.reshape(n, depth // n, *w.shape[1:]), params)
  split = lambda a: _place(jnp.swapaxes(a.reshape(-1, m, *a.shape[1:]), 0, 1), None)
  x = jax.tree.map(split, x)
  layers = jnp.arange(depth).reshape(n, depth // n)

  def stage(params, layers, item, x):
    def one(carry, layer):
      x, total = carry
      weights, number = layer
      x, aux = block(weights, number * m + item, x)
      return (x, jax.tree.map(jnp.add, total, aux)), None

    weights = jax.tree.map(lambda w: w[0], params)
    shape = jax.eval_shape(lambda: block(weights, item, x)[1])
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)
    return jax.lax.scan(one, (x, zero), (params, layers))[0]

  # One stage input a tick is kept for the backward pass; the rest is computed again.
  stage = jax.vmap(jax.checkpoint(stage), spmd_axis_name=AXIS)

  def tick(carry, t):
    buffer, out, total = carry
    item = t - jnp.arange(n)  # the microbatch at each stage; outside 0..m-1 it is a bubble
    fresh = jax.tree.map(lambda a: a[jnp.minimum(t, m - 1)], x)
    buffer = jax.tree.map(lambda b, new: _place(jnp.roll(b, 1, 0).at[0].set(new), AXIS),
                          buffer, fresh)  # fmt: skip
    buffer, aux = stage(held, layers, item.clip(0, m - 1), buffer)
    buffer = jax.tree.map(lambda b: _place(b, AXIS), buffer)
    real = (item >= 0) & (item < m)
    total = jax.tree.map(lambda s, a: s + jnp.where(real, a, 0).sum(), total, aux)
    row = jnp.where(t >= n - 1, t - (n - 1), m)  # row m is the bin of early ticks
    put = lambda o, b: _place(jax.lax.dynamic_update_index_in_dim(o, b[-1], row, 0), None)
    return (buffer, jax.tree.map(put, out, buffer), total), None

  buffer = jax.tree.map(lambda a: jnp.zeros((n, *a.shape[1:]), a.dtype), x)
  out = jax.tree.map(lambda a: jnp.zeros((m + 1, *a.shape[1:]), a.dtype), x)
  aux = jax.eval_shape(stage, held, layers, jnp.zeros(n, jnp.int32), buffer)[1]
  total = jax.tree.map(lambda a: jnp.zeros((), a.dtype), aux)
  (_, out, total), _ = jax.lax.scan(tick, (buffer, out, total), jnp.arange(m + n - 1))
  back = lambda a: jnp.swapaxes(a[:m], 0, 1).reshape(rows, *a.shape[2:])
  return jax.tree.map(back, out), jax.tree.map(lambda a: a / m, total)


def _place(x: jax.Array, first: str | None) -> jax.Array:
  """Constrains arrays: dimension 1 on `first`, 2 on the batch's axes, 3 on the length's."""
  layout = current()
  if layout is None:
    return x
  names = ('batch', 'length')[: x.ndim - 1]
  parts = [layout.pspec([name], compute=True) for name in names]
  spec = PartitionSpec(first, *[p[0] if len(p) else None for p in parts])
  return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, spec))
