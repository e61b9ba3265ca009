"""Outputs of modules by path: captured, replaced, or with something added.

A path names one layer, 'stack/block_3/attention', also where layers are stacked and computed by a
scan or a pipeline: their modules have the path 'stack/blocks/attention' (see `models.stack`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bmx.core import tree
from bmx.core.errors import InputError, did_you_mean
from bmx.core.types import Array, Batch, Out, Task, Variables
from bmx.models.stack import ONE, STACKED
from bmx.train.evaluate import eval_noise

PATCHES = 'patches'  # collection that the interceptor reads at the path of a module
VALUE, WHERE, ADDED = 'patch_value', 'patch_where', 'patch_added'
BLOCKS = STACKED.rstrip('/')


@dataclasses.dataclass(frozen=True)
class Patch:
  """A change of the output of a module; its arrays broadcast to the shape of the output.

  Attributes:
    value: replaces the output; None: the output stays.
    where: bool, the elements that `value` replaces; None: all of them.
    added: is added afterwards; None: nothing is.
  """

  value: Array | None = None
  where: Array | None = None
  added: Array | None = None


class Place(NamedTuple):
  """Where the output of a module is made.

  Attributes:
    own: path of the module itself.
    layer: its number in a stack of layers; None outside of one.
    depth: layers of the stack; 1 outside of one.
    output: shape and type of the output of one layer.
    kind: class of the module.
  """

  own: str
  layer: int | None
  depth: int
  output: jax.ShapeDtypeStruct
  kind: type


def forward(
  task: Task,
  variables: Variables,
  batch: Batch,
  *,
  patches: Mapping[str, Patch] | None = None,
  capture: Sequence[str] = (),
  collect: tuple[str, ...] = (),
) -> Out:
  """Calls a model as an evaluation does, with the outputs of some modules changed.

  A pipeline is then computed as a scan, see `models.stack`.

  Args:
    task: over the model; wrappers (adapters, quantization) are part of it.
    variables: 'params' and every other collection.
    batch: of examples.
    patches: path of a module -> change of its output.
    capture: paths of modules whose outputs are returned, patched ones as the patch leaves them.
    collect: collections that modules sow into.

  Returns:
    The outputs of 'logits'. `captured` has the paths of `capture` as they were given, and
    'COLLECTION/PATH' for `collect`.

  Raises:
    InputError: an unknown path; a module that is called more than once.
  """
  patches = patches or {}
  known = places(task, variables, batch) if patches or capture else {}
  for path in (*patches, *capture):
    if path not in known:
      raise InputError(f'{path!r}: expected the path of a module{did_you_mean(path, known)}')
  given = _collection(patches, known)
  paths = {*patches, *capture}  # a patched module that is called twice is refused by its capture
  with nn.intercept_methods(_intercept):
    out, _ = task.forward(
      {**variables, **given},
      batch,
      eval_noise(),
      train=False,
      method='logits',
      capture=tuple(sorted({f'^{known[path].own}$' for path in paths})),
      collect=collect,
      read=tuple(given),
    )
  found = {k: v for k, v in out.captured.items() if k.split('/')[0] in collect}
  for path in capture:
    own, layer = known[path].own, known[path].layer
    found[path] = out.captured[own] if layer is None else out.captured[own][layer]
  return Out(out.value, out.aux, found)


def places(task: Task, variables: Variables, batch: Batch) -> dict[str, Place]:
  """Returns the modules of a model in the order of their calls, those of layers one by one.

  Modules that return no array (or tuple that begins with one) and dropout are left out.
  """
  seen: dict[str, Place] = {}

  def look(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
    out = next_fun(*args, **kwargs)
    first, module = _first(out), context.module
    path = '/'.join(module.path)
    listed = context.method_name == '__call__' and not isinstance(module, nn.Dropout)
    if listed and isinstance(first, jax.Array) and path not in seen:
      output = jax.ShapeDtypeStruct(first.shape, first.dtype)
      seen[path] = Place(path, None, 1, output, type(module))
    return out

  def run(variables: Variables, batch: Batch) -> Any:
    collect = ('intermediates',)  # whose presence makes a scan of a pipeline
    with nn.intercept_methods(look):
      out, _ = task.forward(
        variables, batch, eval_noise(), train=False, method='logits', collect=collect
      )
    return out.value

  jax.eval_shape(run, variables, batch)
  result: dict[str, Place] = {}
  for path in seen:
    if path not in result and BLOCKS not in path.split('/'):
      result[path] = seen[path]
    elif BLOCKS in path.split('/') and _numbered(path, 0) not in result:
      result |= _layers(path, seen, variables)
  return result


def _layers(path: str, seen: Mapping[str, Place], variables: Variables) -> dict[str, Place]:
  """The modules of each layer of the stack that a module is in."""
  parts = path.split('/')
  stack = ''.join(f'{part}/' for part in parts[: parts.index(BLOCKS)])
  inside = [p for p in seen if f'{p}/'.startswith(f'{stack}{STACKED}')]
  depth = next(x.shape[0] for k, x in tree.named(variables).items() if f'{stack}{STACKED}' in k)
  return {
    _numbered(p, i): seen[p]._replace(layer=i, depth=depth) for i in range(depth) for p in inside
  }


def _numbered(path: str, layer: int) -> str:
  """'stack/blocks/attention', 3 -> 'stack/block_3/attention'."""
  return '/'.join(f'{ONE}{layer}' if part == BLOCKS else part for part in path.split('/'))


def _first(out: Any) -> Any:
  """The output of a module: the first one of a tuple (attention returns a cache beside it)."""
  return out[0] if isinstance(out, tuple) and out else out


def _collection(patches: Mapping[str, Patch], known: Mapping[str, Place]) -> dict[str, Any]:
  """Returns patches as a collection; below stacked layers, arrays have a dimension of layers."""
  flat: dict[str, Any] = {}
  for path, patch in patches.items():
    place = known[path]
    where = jnp.asarray(True) if patch.where is None else patch.where
    arrays = {} if patch.value is None else {VALUE: patch.value, WHERE: where}
    arrays |= {} if patch.added is None else {ADDED: patch.added}
    for leaf, array in arrays.items():
      name = f'{place.own}/{leaf}' if place.own else leaf
      dtype = bool if leaf == WHERE else place.output.dtype
      array = jnp.broadcast_to(jnp.asarray(array).astype(dtype), place.output.shape)
      if place.layer is None:
        flat[name] = array
      else:
        empty = jnp.zeros((place.depth, *place.output.shape), dtype)
        flat[name] = flat.get(name, empty).at[place.layer].set(array)
  return {PATCHES: tree.nested(flat)} if flat else {}


def _intercept(next_fun: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
  """Changes the output of a module that the collection has patches for."""
  out, module = next_fun(*args, **kwargs), context.module
  if context.method_name != '__call__' or module.scope is None:
    return out
  first = _first(out)
  if module.has_variable(PATCHES, VALUE):
    value, where = (module.get_variable(PATCHES, name) for name in (VALUE, WHERE))
    first = jnp.where(where, value, first)
  if module.has_variable(PATCHES, ADDED):
    first += module.get_variable(PATCHES, ADDED)
  if not isinstance(out, tuple) or not out:
    return first
  whole = (first, *out[1:])
  return whole if type(out) is tuple else type(out)(*whole)  # a NamedTuple keeps its names
