"""Placement of arrays: names of dimensions, one table of rules, and the resulting shardings.

A parameter's dimensions are named once, where it is created. `Layout.rules` says on which mesh axes
a named dimension is *stored*, `Layout.compute` where it is while it is *used* (by default the same,
without `fsdp` on parameters). Errors name the array: an unknown name, two dimensions on one axis,
an indivisible dimension.
"""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from flax import struct
from flax.core import meta
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bmx.core import tree
from bmx.core.data import Spec
from bmx.core.errors import InputError, did_you_mean
from bmx.core.layout import RULES

Names = Sequence[str | None]
ACTIVATIONS = ('batch', 'length', 'norm_length', 'act_embed', 'expert_batch')
ACCIDENT = 0.02  # share of parameter bytes that may be replicated because nothing divides them


@dataclasses.dataclass(frozen=True)
class Layout:
  """A mesh and two tables: placement of named dimensions in storage, and in computation."""

  mesh: Mesh
  rules: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=lambda: dict(RULES))
  compute: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    object.__setattr__(self, 'rules', RULES | dict(self.rules))
    default = {
      name: axes if name in ACTIVATIONS else tuple(a for a in axes if a != 'fsdp')
      for name, axes in self.rules.items()
    }
    object.__setattr__(self, 'compute', default | dict(self.compute))
    for name, axes in [*self.rules.items(), *self.compute.items()]:
      for axis in axes:
        if axis not in self.mesh.shape:
          raise InputError(f'rules.{name}={axes}: no mesh axis {axis!r}'
                           f'{did_you_mean(axis, self.mesh.shape)}')  # fmt: skip

  @property
  def devices(self) -> int:
    return self.mesh.size

  def pspec(
    self, names: Names, shape: Sequence[int] | None = None, what: str = 'an array', compute=False
  ) -> PartitionSpec:
    """Returns the PartitionSpec of an array whose dimensions have these names (None replicates).

    Raises:
      InputError: unknown name; two dimensions on one mesh axis; a dimension its axes do not divide.
    """
    rules, used, parts = (self.compute if compute else self.rules), {}, []
    for i, name in enumerate(names):
      if name is not None and name not in rules:
        raise InputError(
          f'{what}: unknown dimension name {name!r} in {tuple(names)}{did_you_mean(name, rules)}'
        )
      axes = tuple(a for a in rules[name] if self.mesh.shape[a] > 1) if name else ()
      for axis in axes:
        if axis in used:
          raise InputError(
            f'{what}: dimensions {used[axis]!r} and {name!r} of {tuple(names)} both lie on mesh '
            f'axis {axis!r}; set --config.rules.{name}="()" or another axis'
          )
        used[axis] = name
      n = math.prod(self.mesh.shape[a] for a in axes)
      if shape is not None and shape[i] % n:
        raise InputError(
          f'{what}: dimension {i} ({name!r}) of shape {tuple(shape)} is not divisible by '
          f'{" × ".join(f"{a}={self.mesh.shape[a]}" for a in axes)}; change the size, the mesh, or '
          f'--config.rules.{name}'
        )
      parts.append(axes if len(axes) > 1 else axes[0] if axes else None)
    while parts and parts[-1] is None:
      parts.pop()  # one spelling a placement: P('data', None) and P('data') are different keys
    return PartitionSpec(*parts)

  def sharding(self, *names: str | None) -> NamedSharding:
    return NamedSharding(self.mesh, self.pspec(names))

  def batch(self, spec: Mapping[str, Spec], batch_size: int) -> dict[str, NamedSharding]:
    """Shardings of the arrays [B, ...] of a batch, by the names of their dimensions."""
    place = lambda k, v: self.pspec(v.batch_names, (batch_size, *v.shape), f'batch[{k!r}]')
    return {k: NamedSharding(self.mesh, place(k, v)) for k, v in spec.items()}


_layout: contextvars.ContextVar[Layout | None] = contextvars.ContextVar('layout', default=None)


def current() -> Layout | None:
  """Returns the layout in context; None without one."""
  return _layout.get()


@contextlib.contextmanager
def use(layout: Layout | None) -> Iterator[None]:
  """Context that sets the layout of `constrain` and `gather`."""
  token = _layout.set(layout)
  try:
    yield
  finally:
    _layout.reset(token)


class jit:
  """The only jit in bmx: one program for one layout.

  jax's trace cache does not see our rules, so every call makes a new `jax.jit`, and the rules are
  entered inside the traced function.
  """

  def __init__(self, fn: Callable[..., Any], layout: Layout, **options: Any):
    def traced(*args):
      with use(layout):
        return fn(*args)

    self.layout = layout
    self.jitted = jax.jit(traced, **options)

  def __call__(self, *args: Any) -> Any:
    with jax.set_mesh(self.layout.mesh):
      return self.jitted(*args)

  def lower(self, *args: Any) -> Any:
    with jax.set_mesh(self.layout.mesh):
      return self.jitted.lower(*args)


class Named(struct.PyTreeNode, meta.AxisMetadata[Any]):
  """A parameter with the names of its dimensions, between `Task.init` and the abstract state.

  Linen's own box constrains the value where it is unboxed, by rules of its own; this one only
  names.
  """

  value: Any
  names: tuple[str | None, ...] = struct.field(pytree_node=False)

  def unbox(self) -> Any:
    return self.value

  def replace_boxed(self, val: Any) -> 'Named':
    return self.replace(value=val)

  def add_axis(self, index: int, params: dict[Any, Any]) -> 'Named':
    names = list(self.names)
    names.insert(index, params[meta.PARTITION_NAME])
    return self.replace(names=tuple(names))

  def remove_axis(self, index: int, params: dict[Any, Any]) -> 'Named':
    return self.replace(names=self.names[:index] + self.names[index + 1 :])


def named(init: Callable[..., jax.Array], names: Names) -> Callable[..., Any]:
  """Returns an initializer whose result carries the names of its dimensions."""
  return lambda *args: Named(init(*args), tuple(names))


def is_named(x: Any) -> bool:
  """Returns whether a value is `Named`."""
  return isinstance(x, Named)


def unbox(variables: Any) -> Any:
  """Replaces each `Named` of a tree by its value."""
  return jax.tree.map(lambda x: x.value if is_named(x) else x, variables, is_leaf=is_named)


def param_pspecs(params: Any, layout: Layout) -> Any:
  """Returns the PartitionSpecs of abstract, boxed parameters.

  Leaves of stock linen modules carry no names: they get FSDP on their largest divisible dimension.

  Raises:
    InputError: see `Layout.pspec`; and if more than 2 % of the parameters' bytes would be
      replicated only because no dimension divides.
  """
  accidents: dict[str, int] = {}

  def place(name, leaf):
    if is_named(leaf):
      return layout.pspec(leaf.names, leaf.value.shape, name)
    n = layout.mesh.shape['fsdp']
    fitting = [(size, -i) for i, size in enumerate(leaf.shape) if n > 1 and size % n == 0]
    if not fitting:
      accidents[name] = tree.nbytes(leaf) if n > 1 else 0
      return PartitionSpec()
    return PartitionSpec(*[None] * -max(fitting)[1], 'fsdp')

  specs = tree.map_named(place, params, is_leaf=is_named)
  total = tree.nbytes(unbox(params))
  if sum(accidents.values()) > ACCIDENT * total:
    worst = sorted(accidents, key=lambda k: -accidents[k])[:5]
    raise InputError(
      f"{sum(accidents.values()) / total:.1%} of the parameters' bytes have no dimension that "
      f'fsdp={layout.mesh.shape["fsdp"]} divides and would be replicated: {", ".join(worst)}; '
      'name their dimensions, change their sizes, or lower --config.mesh.fsdp'
    )
  return specs


def like_params(leaves: Any, params: Any, specs: Any) -> Any:
  """Returns the PartitionSpecs of optimizer state.

  A leaf whose path ends as a parameter's does, and has its shape, is placed like the parameter;
  every other leaf is replicated.
  """
  shapes = {k: v.shape for k, v in tree.named(params).items()}
  places = tree.named(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))

  def place(name, leaf):
    parts = name.split('/')
    for i in range(len(parts)):
      suffix = '/'.join(parts[i:])
      if suffix in shapes and shapes[suffix] == leaf.shape:
        return places[suffix]
    return PartitionSpec()

  return tree.map_named(place, leaves)


def shardings(specs: Any, mesh: Mesh) -> Any:
  """Converts PartitionSpecs to shardings of a mesh."""
  return jax.tree.map(
    lambda s: NamedSharding(mesh, s), specs, is_leaf=lambda x: isinstance(x, PartitionSpec)
  )
