"""TrainState: one struct of arrays, and the placement of each of them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from bmx.core import streams, tree
from bmx.core.errors import InputError
from bmx.core.experiment import Experiment
from bmx.core.types import Array, GradFn, Noise, StatefulGradFn, Task, Variables, facts_of
from bmx.ops.attention import reference_attention
from bmx.ops.stored import PACKED, is_stored, kind_of, packed_axis
from bmx.optim.tables import WithTablesState
from bmx.parallel import Layout, jit, use
from bmx.parallel.sharding import is_named, like_params, param_pspecs, shardings, unbox


@struct.dataclass
class TrainState:
  """Arrays only: the values that influence the future and are not functions of (seed, step).

  Attributes:
    step: int32 [], completed steps.
    params: the parameters that the optimizer updates.
    opt_state: of the optax transform.
    collections: every other collection by name, constant ones included; {} for most models.
    key: uint32 [2], folded with the step, never split and stored.
    consecutive_skips: int32 [], consecutive updates that the guard rejected.
    grad_norm_ema: float32 [2], moving average of the gradient norm and the updates in it.
    ema: {'params': ..., 'batch_stats': ...}, moving averages; None without.
  """

  step: Array
  params: Variables
  opt_state: optax.OptState
  collections: Variables
  key: Array
  consecutive_skips: Array
  grad_norm_ema: Array
  ema: Variables | None = None


def variables_of(state: TrainState) -> Variables:
  """Returns the variables that training uses."""
  return {**state.collections, 'params': state.params}


def eval_variables(state: TrainState) -> Variables:
  """Returns the variables that evaluation, export and selection use: averages where they exist."""
  return {**variables_of(state), **(state.ema or {})}


def split_constant(state: Any, constant: tuple[str, ...]) -> tuple[TrainState, Variables]:
  """Splits a state -> (the state without its constant collections, the constant collections).

  No loop carries the constant collections and no branch selects them, so they are not copied.
  """
  fixed = {k: v for k, v in state.collections.items() if k in constant}
  rest = {k: v for k, v in state.collections.items() if k not in constant}
  return state.replace(collections=rest), fixed


def with_constant(state: Any, fixed: Variables) -> TrainState:
  """Inverse of `split_constant`."""
  return state.replace(collections={**state.collections, **fixed}) if fixed else state


@dataclasses.dataclass(frozen=True)
class StateSpec:
  """A state before its arrays exist: shapes first, placement second, arrays last.

  Attributes:
    abstract: TrainState of `jax.ShapeDtypeStruct`s with shardings.
    plain: abstract `Task.merged_params`, with shardings: the target of imported weights.
    create: (given, plain) -> TrainState, each array made where it is placed. `given` maps
      'COLLECTION/NAME' to arrays; `plain` maps names of `plain` to arrays, for `Task.take`.
  """

  abstract: TrainState
  plain: Variables
  create: Callable[..., TrainState]

  @property
  def shardings(self) -> Any:
    """The sharding of every leaf."""
    return jax.tree.map(lambda x: x.sharding, self.abstract)

  @property
  def variables(self) -> Variables:
    """Abstract variables: 'params' and every collection."""
    return variables_of(self.abstract)


def abstract_params(task: Task, layout: Layout) -> Any:
  """Returns the abstract, placed parameters of a token model: the target of imported weights."""
  shape = layout.devices, layout.mesh.shape['seq']  # every layout divides it
  ids = jax.ShapeDtypeStruct(shape, jnp.int32)
  weights = jax.ShapeDtypeStruct(shape, jnp.float32)
  batch = {'tokens': ids, 'targets': ids, 'weights': weights}
  return plan_state(task, optax.identity(), batch, layout).abstract.params


def plan_state(
  task: Task,
  tx: optax.GradientTransformation,
  batch: Mapping[str, jax.ShapeDtypeStruct],
  layout: Layout,
  *,
  seed: int = 0,
  ema: float = 0.0,
  grad_fn: GradFn | None = None,
) -> StateSpec:
  """Plans shapes and placement of the state of a task under an optimizer.

  Args:
    task: the objective.
    tx: the optimizer.
    batch: abstract arrays [B, ...] of one batch.
    layout: mesh and rules.
    seed: of the run.
    ema: decay of the moving averages; 0 keeps none.
    grad_fn: its own collections, if it has any, are part of the state.

  Raises:
    InputError: rules that do not fit (see `Layout.pspec`), a regex that matches no parameter,
      two owners of one collection, an average of sparse tables, or an optimizer other than
      `with_tables` for them.
  """
  sparse = facts_of(task.model).sparse_tables
  if ema and sparse:
    raise InputError(f'ema={ema}: expected 0 with sparse tables, whose average is a dense update')

  def boxed_variables(key):
    zeros = {k: jnp.zeros(v.shape, v.dtype) for k, v in batch.items()}
    return dict(task.init(Noise(key, jnp.zeros((), jnp.int32)), zeros))

  def variables(key):
    made = unbox(boxed_variables(key))
    own = grad_fn.init(made) if isinstance(grad_fn, StatefulGradFn) else {}
    twice = set(own) & set(made)
    if twice:
      raise InputError(f'collection {sorted(twice)[0]!r}: expected one owner, task or GradFn')
    return made | own

  def create(given=None, plain=None):
    key = jax.random.PRNGKey(seed)
    new = variables(jax.random.fold_in(key, streams.INIT))
    if plain:
      merged = tree.map_named(lambda name, old: plain.get(name, old), task.merged_params(new))
      new = dict(task.take(new, merged))
    if given:
      new = tree.map_named(lambda name, old: given.get(name, old), new)
    params = new.pop('params')
    zero = jnp.zeros((), jnp.int32)
    kept = {'params': params} | {k: new[k] for k in task.averaged if k in new}
    average = jax.tree.map(jnp.copy, kept) if ema else None
    norm = jnp.zeros(2, jnp.float32)
    return TrainState(zero, params, tx.init(params), new, key, zero, norm, average)

  with (
    reference_attention()
  ):  # shapes and names depend on no kernel; what does not fit the mesh is named first
    boxed = jax.eval_shape(boxed_variables, jax.random.PRNGKey(0))
  params = param_pspecs(boxed.pop('params'), layout)
  with use(layout):
    abstract = jax.eval_shape(create)
  if sparse and not isinstance(abstract.opt_state, WithTablesState):
    raise InputError(
      f'optimizer: expected bmx.optim.tables:with_tables around all else, since the model looks up '
      f'{", ".join(sparse)} sparsely; other optimizers update wrong rows'
    )
  nowhere = PartitionSpec()
  named = tree.named(boxed, is_leaf=is_named)

  def place(name, leaf):
    box: Any = named.get(name)
    return layout.pspec(box.names, leaf.shape, _said(name)) if is_named(box) else nowhere

  collections = tree.map_named(place, abstract.collections)
  everything = {**collections, 'params': params}
  make: Any = TrainState  # of specs, for now
  specs = make(
    step=nowhere,
    params=params,
    opt_state=like_params(abstract.opt_state, abstract.params, params),
    collections=collections,
    key=nowhere,
    consecutive_skips=nowhere,
    grad_norm_ema=nowhere,
    ema={k: everything[k] for k in abstract.ema} if ema else None,
  )
  at = shardings(specs, layout.mesh)
  placed = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  abstract = jax.tree.map(placed, abstract, at)
  plain = _plain(task, abstract, layout)
  return StateSpec(abstract, plain, jit(create, layout, out_shardings=at))


def state_spec(x: Experiment) -> StateSpec:
  """Plans shapes and placement of the state of an experiment."""
  return plan_state(
    x.task, x.tx, x.data.abstract, x.layout, seed=x.seed, ema=x.ema, grad_fn=x.grad_fn
  )


def _said(name: str) -> str:
  """Names a leaf in messages: codes with the word that their number of groups follows from."""
  packed = name.rpartition('/')[2] in PACKED
  return f'{name} (another group=N makes another number of groups of inputs)' if packed else name


def _kernel(stored: Mapping[str, Any]) -> tuple[tuple[int, ...], NamedSharding]:
  """Returns shape and placement of the kernel that abstract codes stand for."""
  kind = kind_of(stored)
  codes = stored[kind]
  shape, spec = list(codes.shape), list(codes.sharding.spec)
  if kind in PACKED:
    axis = packed_axis(stored)
    spec = (spec + [None] * len(shape))[: len(shape)]
    shape[axis - 1 : axis + 1] = [2 * shape[axis - 1] * shape[axis]]
    del spec[axis]
  return tuple(shape), NamedSharding(codes.sharding.mesh, PartitionSpec(*spec))


def _plain(task: Task, abstract: TrainState, layout: Layout) -> Variables:
  """Returns the abstract merged parameters, placed as the variables of equal name and shape."""
  variables = variables_of(abstract)
  with use(layout), reference_attention():
    merged = jax.eval_shape(task.merged_params, variables)
  known = {}
  leaves = jax.tree_util.tree_flatten_with_path(variables, is_leaf=is_stored)[0]
  for keys, leaf in leaves:
    _, *path = jax.tree_util.keystr(keys, simple=True, separator='/').split('/')
    shape, at = _kernel(leaf) if is_stored(leaf) else (leaf.shape, leaf.sharding)
    known.setdefault(('/'.join(path), shape), at)
    known.setdefault(('/'.join(path[1:]), shape), at)  # a part of 'params', such as 'trained'
  everywhere = layout.sharding()

  def place(name, leaf):
    at = known.get((name, leaf.shape), everywhere)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at)

  return tree.map_named(place, merged)
