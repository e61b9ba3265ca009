"""Calibration: second moments of the inputs of each layer, over batches of the training data."""

import math
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core import streams
from bmx.core.errors import InputError
from bmx.core.types import Batch, Noise, Task, Variables
from bmx.models.layers import Einsum
from bmx.parallel import Layout, jit
from bmx.train.feed import Feed

HESSIANS, INPUTS = 'hessians', 'inputs'


def hessians(
  task: Task, variables: Variables, batches: Iterable[Batch], layout: Layout
) -> dict[str, jax.Array]:
  """Sums x xᵀ over the inputs x of each `Einsum`: the Hessian of its squared error but for 2.

  The square root of its diagonal is the norm of each input. Positions of padding count too.

  Args:
    task: without quantized kernels or adapters.
    variables: of the task.
    batches: of the training data, placed.
    layout: mesh and rules.

  Returns:
    Path of the module -> float32 [D, D], [L, D, D] of a stack; D is the product of the contracted
    dimensions.

  Raises:
    InputError: no batches, or a layer that is called twice.
  """
  noise = Noise(jax.random.PRNGKey(streams.EVAL), jnp.zeros((), jnp.int32))

  def sums(variables, batch, total):
    prepared = task.prepare(batch, noise.fold(streams.PREPARE), train=True)
    with nn.intercept_methods(_sow_moments):
      out, _ = task.forward(variables, prepared, noise, train=False, collect=(HESSIANS,))
    mine = lambda path: path.removeprefix(f'{HESSIANS}/').removesuffix(f'/{INPUTS}')
    found = {mine(k): v for k, v in out.captured.items() if k.startswith(f'{HESSIANS}/')}
    return jax.tree.map(jnp.add, total, found) if total else found

  run = jit(sums, layout)
  total: Any = {}
  for batch in batches:
    total = run(variables, batch, total)
  if not total:
    raise InputError('calibration: expected at least one batch of training data, and a layer')
  return total


def _sow_moments(next_fun, args, kwargs, context):
  """Interceptor: every product with a kernel adds the second moments of its input."""
  module = context.module
  if context.method_name == 'product' and isinstance(module, Einsum):
    x = args[0].astype(jnp.float32)
    rows = x.reshape(-1, math.prod(x.shape[x.ndim - module.contracted :]))
    module.sow(HESSIANS, INPUTS, rows.T @ rows)
  return next_fun(*args, **kwargs)


def batches(data: Any, layout: Layout, examples: int) -> Iterable[Batch]:
  """Yields whole batches of training data, in the order of training, of at least `examples`.

  Args:
    data: `core.data.Data` that was read, not described by a run.
    layout: mesh and rules.
    examples: their number, rounded up to batches.
  """
  feed = Feed(data, layout, 1)
  constants = feed.constants()
  take = jit(lambda constants, group: feed.take(constants, group, 0), layout)
  steps = [(step, 1) for step in range(-(-examples // data.batch_size))]
  for group, _ in feed.groups(steps):
    yield take(constants, group)
