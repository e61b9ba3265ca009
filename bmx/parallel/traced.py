"""Placement inside a traced program: constraints on activations, gathering of stored weights."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import NamedSharding

from bmx.core.errors import InputError
from bmx.parallel.sharding import Names, current, use


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """Constrains an activation to the compute rules of its dimensions.

  Returns x itself without a layout or on one device.
  """
  layout = current()
  if layout is None or layout.devices == 1:
    return x
  if len(names) != x.ndim:
    raise InputError(f'constrain: {len(names)} names {names} for an array of shape {x.shape}')
  spec = layout.pspec(names, x.shape, 'an activation', compute=True)
  return jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, spec))


def gather(w: jax.Array, names: Names) -> jax.Array:
  """Gathers a stored weight for the computation; its gradient is reduced to the stored placement.

  This is the whole of FSDP: all-gather forward, reduce-scatter backward. A plain constraint would
  be its own transpose, and all-reduce whole gradients.
  """
  layout = current()
  if layout is None or layout.devices == 1:
    return w
  stored, used = layout.pspec(names, w.shape), layout.pspec(names, w.shape, compute=True)
  if stored == used:
    return w
  at = lambda x, spec: jax.lax.with_sharding_constraint(x, NamedSharding(layout.mesh, spec))

  @jax.custom_vjp
  def move(w):
    return at(w, used)

  move.defvjp(lambda w: (at(at(w, stored), used), None), lambda _, g: (at(g, stored),))
  return move(w)


def axes_of(name: str) -> tuple[str, ...]:
  """Returns the mesh axes that cut a named dimension in computation; () without a layout."""
  layout = current()
  if layout is None or not name:
    return ()
  return tuple(a for a in layout.compute[name] if layout.mesh.shape[a] > 1)


@dataclasses.dataclass(frozen=True)
class Stored:
  """An argument of `shard_map` in its stored placement; `fn` calls `fetch` on it."""

  names: Names

  def fetch(self, w: jax.Array) -> jax.Array:
    """Gathers one device's part for the computation: `gather`, inside a shard_map.

    Its transpose adds and scatters the gradients of all devices.
    """
    layout = current()
    if layout is None or layout.devices == 1:
      return w
    # libtpu 0.0.42 cannot move a scattered sum out of a loop of micro-batches, and fails where it
    # tries (RET_CHECK in while_loop_all_reduce_code_motion); behind a barrier it does not try.
    w = jax.lax.optimization_barrier(w)
    for i, name in enumerate(self.names):
      stored, used = (table[name] if name else () for table in (layout.rules, layout.compute))
      for axis in reversed([a for a in stored if a not in used and layout.mesh.shape[a] > 1]):
        w = jax.lax.all_gather(w, axis, axis=i, tiled=True)
    return w


def shard_map(fn: Callable[..., Any], places: Sequence[Names | Stored], out: Any) -> Any:
  """Applies `fn` to each device's part of its arguments, cut by the compute rules of their names.

  Without a layout, or on one device, it is `fn` itself.

  Args:
    fn: of one device's parts.
    places: the names of the dimensions of each argument, or `Stored` with them.
    out: those of the result, or a tuple of such if there are several.
  """
  layout = current()
  if layout is None or layout.devices == 1:
    return fn

  def call(*args):
    specs = tuple(
      layout.pspec(place.names, x.shape, 'an operand')
      if isinstance(place, Stored)
      else layout.pspec(place, x.shape, 'an operand', compute=True)
      for place, x in zip(places, args, strict=True)
    )
    several = isinstance(out[0], tuple)
    at = tuple(layout.pspec(o, compute=True) for o in (out if several else (out,)))
    return jax.shard_map(
      fn, mesh=layout.mesh, in_specs=specs, out_specs=at if several else at[0], check_vma=False
    )(*args)

  return call


@contextlib.contextmanager
def per_example() -> Iterator[None]:
  """Context of the layout of one example, for functions under `jax.vmap` over the batch.

  The mesh axes of the batch belong to `vmap` (its `spmd_axis_name`), so no dimension of a single
  example or of a parameter lies on them: parameters are gathered whole. The other axes (tensor and
  sequence parallelism) keep their rules. Nothing changes without a layout.
  """
  layout = current()
  if layout is None:
    yield
    return
  taken = layout.compute['batch']
  rules = {k: tuple(a for a in axes if a not in taken) for k, axes in layout.compute.items()}
  with use(dataclasses.replace(layout, rules=rules, compute=rules)):
    yield


def vmap_examples(fn: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
  """Vectorizes a function of one example over the batch, on the mesh in context.

  Args:
    fn: of arrays of one example, without the batch dimension; also of a gradient:
      `vmap_examples(jax.grad(loss), (None, 0))(params, rows)`.
    in_axes: as of `jax.vmap`.

  Returns:
    The function of a batch; each result has the batch as its first dimension, cut as 'batch' is.
    It raises InputError for experts without a capacity, which jax does not vectorize.
  """

  def one(*args):
    with per_example():
      return fn(*args)

  def call(*args):
    axes = axes_of('batch')
    try:
      return jax.vmap(one, in_axes, spmd_axis_name=axes if axes else None)(*args)
    except NotImplementedError as error:
      if 'ragged_dot' not in str(error):
        raise
      raise InputError(
        'capacity_factor=0 (experts that drop no token): expected above 0 for functions of single '
        f'examples, such as their gradients ({error}); set --config.task.model.capacity_factor=1.25'
      ) from None

  return call


def one_device() -> bool:
  """Returns whether no mesh of several devices is in context, so that any reshape is free."""
  mesh = jax.sharding.get_abstract_mesh()
  return mesh.empty or mesh.size == 1


def platform() -> str:
  """Returns the platform of the devices being compiled for: 'cpu', 'gpu' or 'tpu'."""
  layout = current()
  return layout.mesh.devices.flat[0].platform if layout else jax.default_backend()
