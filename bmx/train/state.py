"""TrainState: one struct of arrays, and where each of them lives."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import PartitionSpec

from bmx.core import streams, tree
from bmx.core.types import Array, Task, Variables
from bmx.ops.attention import as_xla
from bmx.parallel import Layout, jit, use
from bmx.parallel.sharding import is_named, like_params, param_pspecs, shardings, unbox


@struct.dataclass
class TrainState:
  """Arrays only; what influences the future and is not a function of (seed, step)."""

  step: Array  # int32 []: completed steps
  params: Variables  # what the optimizer sees
  opt_state: optax.OptState
  collections: Variables  # every other linen collection; {} for most models
  key: Array  # uint32 [2]: folded with the step, never split and stored
  skips: Array  # int32 []: consecutive updates that the guard refused
  norm: Array  # float32 [2]: running mean of the gradient norm, accepted updates behind it
  ema: Variables | None = None  # exponential moving average of params


def eval_params(state: TrainState) -> Variables:
  """The weights that evaluation, export and selection use."""
  return state.params if state.ema is None else state.ema


@dataclasses.dataclass(frozen=True)
class Plan:
  """A state before there is one: shapes first, placement second, arrays last.

  Attributes:
    abstract: TrainState of `jax.ShapeDtypeStruct`s with shardings.
    create: () -> TrainState, each array made where it belongs; create(given), a dict of
      name -> array, takes these parameters.
  """

  abstract: TrainState
  create: Callable[..., TrainState]

  @property
  def shardings(self) -> Any:
    return jax.tree.map(lambda x: x.sharding, self.abstract)


def abstract_params(task: Task, layout: Layout) -> Any:
  """Shapes and places of the parameters of a model of tokens: what weights are read into."""
  shape = layout.devices, layout.mesh.shape['seq']  # which every layout divides
  ids = jax.ShapeDtypeStruct(shape, jnp.int32)
  weights = jax.ShapeDtypeStruct(shape, jnp.float32)
  spec = {'tokens': ids, 'targets': ids, 'weights': weights}
  return plan_state(task, optax.identity(), spec, layout).abstract.params


def plan_state(
  task: Task,
  tx: optax.GradientTransformation,
  spec: dict[str, jax.ShapeDtypeStruct],
  layout: Layout,
  *,
  seed: int = 0,
  ema: float = 0.0,
) -> Plan:
  """Shapes and places of the state of a task under an optimizer.

  Raises:
    InputError: rules that do not fit (see `Layout.pspec`), a regex that matches no parameter.
  """

  def variables(key):
    batch = {k: jnp.zeros(v.shape, v.dtype) for k, v in spec.items()}
    return dict(task.init(key, batch))

  def create(given=None):
    key = jax.random.PRNGKey(seed)
    collections = unbox(variables(jax.random.fold_in(key, streams.INIT)))
    params = collections.pop('params')
    if given:  # before the optimizer sees them: some keep a copy
      params = tree.map_named(lambda name, new: given.get(name, new), params)
    zero = jnp.zeros((), jnp.int32)
    average = jax.tree.map(jnp.copy, params) if ema else None
    norm = jnp.zeros(2, jnp.float32)
    return TrainState(zero, params, tx.init(params), collections, key, zero, norm, average)

  with as_xla():  # shapes and names depend on no kernel; what does not fit the mesh is named first
    boxed = jax.eval_shape(variables, jax.random.PRNGKey(0))
  params = param_pspecs(boxed.pop('params'), layout)
  with use(layout):
    abstract = jax.eval_shape(create)
  nowhere = PartitionSpec()
  make: Any = TrainState  # of specs, for now
  specs = make(
    step=nowhere,
    params=params,
    opt_state=like_params(abstract.opt_state, abstract.params, params),
    collections=tree.map_named(
      lambda name, x: layout.pspec(x.names, x.value.shape, name) if is_named(x) else nowhere,
      boxed,
      is_leaf=is_named,
    ),
    key=nowhere,
    skips=nowhere,
    norm=nowhere,
    ema=params if ema else None,
  )
  at = shardings(specs, layout.mesh)
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, at
  )
  return Plan(abstract, jit(create, layout, out_shardings=at))
