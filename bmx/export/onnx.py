"""ONNX models, by jax2onnx: for runtimes outside of jax."""

import importlib.util
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import HostBatch, Task, Variables
from bmx.export.program import function
from bmx.parallel import Layout, use

NAME = 'model.onnx'
SCRIPT = 'experiments/export/onnx.py'


def check_libraries() -> None:
  """Raises InputError if jax2onnx, onnx or onnxruntime is not installed."""
  absent = [k for k in ('jax2onnx', 'onnx', 'onnxruntime') if importlib.util.find_spec(k) is None]
  if absent:
    raise InputError(
      f'export.format=onnx: expected the libraries {", ".join(absent)}, which ask for other '
      f'versions than bmx does; python {SCRIPT} RUN makes an environment for them and exports there'
    )


def write(
  folder: pathlib.Path, task: Task, weights: Variables, inputs: Mapping[str, Any], layout: Layout
) -> None:
  """Writes the forward pass of a task, its weights inside, as FOLDER/model.onnx.

  Args:
    folder: that is there.
    task: of plain weights.
    weights: of the task.
    inputs: abstract, with symbolic sizes; see `program.abstract_inputs`.
    layout: of one device.

  Raises:
    InputError: an operation that jax2onnx cannot convert.
  """
  for name in ('jax2onnx', 'onnx_ir'):  # lines on plugins whose libraries are not installed
    logging.getLogger(name).setLevel(logging.ERROR)
  from jax2onnx import to_onnx  # type: ignore

  flat, call, names = tree.named(weights), function(task), list(inputs)

  def forward(*arrays: Any) -> tuple[Any, ...]:
    with use(layout):
      return tuple(call(flat, dict(zip(names, arrays, strict=True))).values())

  with use(layout):
    returned = jax.eval_shape(lambda batch: call(flat, batch), dict(inputs))
  try:
    to_onnx(forward, inputs=list(inputs.values()), input_names=names, output_names=list(returned),
            return_mode='file', output_path=str(folder / NAME))  # fmt: skip
  except Exception as error:  # of many kinds
    raise InputError(
      f'task.model={type(task.model).__name__}: expected a model that jax2onnx converts; it needs '
      f'tokens of a fixed length (--export.length=N): {type(error).__name__}: {str(error)[:300]}'
    ) from error


def outputs(folder: pathlib.Path, batches: Sequence[HostBatch]) -> list[HostBatch]:
  """Returns the outputs of FOLDER/model.onnx by onnxruntime."""
  import onnxruntime  # type: ignore

  session = onnxruntime.InferenceSession(str(folder / NAME), providers=['CPUExecutionProvider'])
  names = [output.name for output in session.get_outputs()]
  return [dict(zip(names, session.run(None, batch), strict=True)) for batch in batches]
