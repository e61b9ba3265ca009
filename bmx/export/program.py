"""The forward pass of a task as one program for CPU, GPU and TPU (StableHLO, by jax.export).

The batch is symbolic, and so is the length of tokens unless it is fixed: one program serves every
size. Weights are arguments, a flat dict of arrays by name.
"""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from bmx.core import tree
from bmx.core.data import Spec
from bmx.core.errors import InputError
from bmx.core.types import Array, Batch, Task, Variables, facts_of
from bmx.parallel import Layout, jit, use
from bmx.train.evaluate import eval_noise

PLATFORMS = ('cpu', 'cuda', 'tpu')
BATCH, LENGTH = 'b', 't'
LARGEST = 2**31 - 1
Outputs = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Signature:
  """The arrays that a program reads and returns, and the limits of their sizes.

  Attributes:
    inputs: name -> {'shape': sizes and names of symbolic ones, 'dtype'}.
    outputs: likewise.
    most: symbolic size -> its largest value.
  """

  inputs: Mapping[str, Any]
  outputs: Mapping[str, Any]
  most: Mapping[str, int]


class _Recorded(dict[str, Any]):
  """A batch that records the names of the arrays that are read, in `names`."""

  def __init__(self, arrays: Mapping[str, Any], names: set[str]):
    super().__init__(arrays)
    self.names = names

  def __getitem__(self, name: str) -> Any:
    self.names.add(name)
    return super().__getitem__(name)

  def get(self, name: str, default: Any = None) -> Any:
    self.names.add(name)
    return super().get(name, default)


def outputs_of(task: Task, variables: Variables, batch: Batch) -> Outputs:
  """Returns what a task computes of a batch: raw outputs, and predictions that need no labels.

  Floats are float32. A single raw output is 'logits', several are 'logits', 'logits_1', ...
  """
  out, _ = task.forward(variables, batch, eval_noise(), train=False, method='logits')
  parts = [x for x in jax.tree.leaves(out.value) if x is not None]
  raw = {f'logits_{i}' if i else 'logits': x for i, x in enumerate(parts)}
  try:
    found = raw | task.postprocess(out.value, batch)
  except InputError:  # predictions that need labels: the likelihood of given tokens
    found = raw
  floating = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
  return {k: x.astype(jnp.float32) if floating(x) else x for k, x in found.items()}


def inputs_of(
  task: Task, variables: Variables, spec: Mapping[str, Spec], layout: Layout
) -> dict[str, Spec]:
  """Returns the arrays of an example that the forward pass of a task reads; labels are left out."""
  given = {k: v for k, v in spec.items() if k not in task.labels_for_metrics}
  names: set[str] = set()
  trace = lambda variables, arrays: outputs_of(task, variables, _Recorded(arrays, names))
  with use(layout):
    jax.eval_shape(trace, variables, {k: v.batched(1) for k, v in given.items()})
  return {k: v for k, v in given.items() if k in names}


def export(
  task: Task, variables: Variables, inputs: Mapping[str, Spec], layout: Layout, length: int = 0
) -> tuple[bytes, Signature]:
  """Exports the forward pass of a task.

  Args:
    task: of plain weights, whose model computes with operations that every platform has.
    variables: abstract.
    inputs: see `inputs_of`.
    layout: of one device.
    length: of tokens; 0: symbolic.

  Returns:
    The program, f(weights by name, inputs by name) -> outputs by name, serialized; its signature.

  Raises:
    InputError: `length` is beyond the positions of the model; a model that cannot be traced with
      symbolic sizes; flatbuffers is not installed.
  """
  if importlib.util.find_spec('flatbuffers') is None:
    raise InputError(
      'export.format=bmx: expected the library flatbuffers, with which jax writes programs; '
      "pip install -e '.[export]'"
    )
  abstract, most = abstract_inputs(task, inputs, length)
  flat = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in tree.named(variables).items()}
  program = jit(function(task), layout).jitted
  try:
    made = jax.export.export(program, platforms=PLATFORMS)(flat, abstract)
  except (InputError, MemoryError):
    raise
  except Exception as error:  # jax and models raise many kinds for a size that is not a number
    fix = '' if length else '; fix the length with --export.length=N, if that is what it needs'
    raise InputError(
      f'task.model={type(task.model).__name__}: expected a model that can be traced with a batch '
      f'and a length of any size{fix}: {type(error).__name__}: {_first_line(error)}'
    ) from error
  returned = jax.tree.unflatten(made.out_tree, made.out_avals)
  return bytes(made.serialize()), Signature(described(abstract), described(returned), most)


def function(task: Task) -> Callable[[Mapping[str, Array], Batch], Outputs]:
  """Returns f(weights by name, inputs by name) -> outputs by name."""
  return lambda weights, batch: outputs_of(task, tree.nested(weights), batch)


def abstract_inputs(
  task: Task, inputs: Mapping[str, Spec], length: int = 0
) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, int]]:
  """Returns abstract inputs with symbolic sizes, and the largest value of each of these.

  Raises InputError if `length` is beyond the positions of the model.
  """
  limit, most = facts_of(task.model).max_seq_len, {BATCH: LARGEST}
  if length < 0 or (limit and length > limit):
    raise InputError(
      f'export.length={length}: expected at most {limit}, the positions of the model; 0 exports '
      'every length'
    )
  if not length and any('length' in v.names for v in inputs.values()):
    most[LENGTH] = limit or LARGEST
  bounds = [f'{k}>=1' for k in most] + [f'{k}<={v}' for k, v in most.items() if v < LARGEST]
  sizes = jax.export.symbolic_shape(', '.join(most), constraints=bounds)
  symbols = dict(zip(most, sizes, strict=True))

  row = inputs.get('tokens')

  def shape(spec: Spec) -> tuple[Any, ...]:
    # The context of a question has one value a token and no name: a mesh does not reorder it.
    along = row is not None and spec.shape == row.shape
    names = spec.names or (row.names if row and along else (None,) * len(spec.shape))
    own = [
      symbols.get(LENGTH, length) if name == 'length' else n
      for n, name in zip(spec.shape, names, strict=True)
    ]
    return (symbols[BATCH], *own)

  return {k: jax.ShapeDtypeStruct(shape(v), v.dtype) for k, v in inputs.items()}, most


def described(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Returns shapes and dtypes as JSON holds them; a symbolic size is its name."""
  plain = lambda n: n if isinstance(n, int) else str(n)
  return {
    k: {'shape': [plain(n) for n in v.shape], 'dtype': v.dtype.name} for k, v in arrays.items()
  }


def _first_line(error: Exception) -> str:
  return str(error).strip().partition('\n')[0][:300]
