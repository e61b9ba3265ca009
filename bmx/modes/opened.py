"""A run whose model is examined: its examples as batches, its outputs by name."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from bmx import experiment as experiments
from bmx.core import tree
from bmx.core.data import Data, Described, Stateful
from bmx.core.errors import InputError
from bmx.core.experiment import Experiment
from bmx.core.types import Array, Batch, HostBatch, Variables
from bmx.data.text.tokenizer import Bytes, Subwords, Tokenizer
from bmx.feedback import columns
from bmx.interpret.dense import chosen_class, is_dense, place_of, weights_of
from bmx.interpret.pictures import pieces
from bmx.interpret.subject import Subject, check_task, class_number
from bmx.models.detector import points
from bmx.modes import Request
from bmx.modes.predict import entry_of
from bmx.modes.start import open_experiment, open_run
from bmx.parallel import jit
from bmx.runtime.storage import Place
from bmx.runtime.writer import brief
from bmx.tasks.classification import BinaryClassification, Classification
from bmx.tasks.common import innermost
from bmx.tasks.detection import Detection
from bmx.tasks.language import CausalLM
from bmx.tasks.regression import Regression
from bmx.tasks.segmentation import Segmentation
from bmx.train.datafile import DataFile
from bmx.train.run import restored
from bmx.train.state import eval_variables


class Opened(NamedTuple):
  """A run and examples.

  Attributes:
    x: the experiment.
    workdir: of the run.
    data: the examples.
    variables: of the model, averages where the run keeps them.
    step: of the checkpoint.
    source: of the examples, for people.
    stored: what the run keeps of its training data; None where they were read.
  """

  x: Experiment
  workdir: Place
  data: Data
  variables: Variables
  step: int
  source: str
  stored: DataFile | None = None

  @property
  def state(self) -> Mapping[str, Any]:
    """Fitted values of the data: an encoder of columns, a tokenizer."""
    return self.data.examples.state() if isinstance(self.data.examples, Stateful) else {}

  @property
  def tokenizer(self) -> Tokenizer:
    """Tokenizer of the texts; bytes where the run keeps none."""
    text = self.state.get('tokenizer', '')
    return Subwords(text) if text else Bytes()

  def of(self, path: str) -> 'Opened':
    """Returns the same run with the examples of a file."""
    data = experiments.input_data(self.x, path, self.stored)
    return self._replace(data=data, source=path)

  def first(self, count: int) -> HostBatch:
    """Returns the first examples in their order, at most `count`."""
    n = min(count, self.data.size)
    size = self.data.batch_size
    steps = [self.data.indices(step)[0] for step in range(-(-n // size))]
    return self.data.rows(np.concatenate(steps)[:n], np.arange(n))

  def sample(self, most: int) -> HostBatch:
    """Returns at most `most` examples, drawn without replacement."""
    found = columns.sample(self.data, most, self.x.seed)
    return found.rows(np.arange(found.size), np.arange(found.size))

  def placed(self, rows: HostBatch) -> Batch:
    """Places rows as the layout says, padded with the last one to a number that it divides."""
    return place_rows(self.x, self.data, rows)

  def outputs(self, rows: HostBatch) -> np.ndarray:
    """Returns the outputs of examples, float32 [n, K] or [n, ..., K], see `Subject.outputs`."""
    x = self.x
    call = lambda variables, batch: Subject(x.task, variables, batch).outputs()
    program = jit(call, x.layout, out_shardings=x.layout.sharding())
    found = program(self.variables, self.placed(rows))
    return np.asarray(tree.fetch(found))[: len(rows['weights'])]


def place_rows(x: Experiment, data: Data, rows: HostBatch) -> Batch:
  """Places rows of data as the layout says, padded with the last one; see `Opened.placed`."""
  n, parts = len(rows['weights']), 1
  for axis in x.layout.rules['batch']:
    parts *= x.layout.mesh.shape[axis]
  size = -(-n // parts) * parts
  at = np.minimum(np.arange(size), n - 1)
  places = x.layout.batch(data.spec, size)
  return {
    k: jax.device_put(np.asarray(rows[k][at], spec.dtype), places[k])
    for k, spec in data.spec.items()
  }


def open_examples(request: Request, *, training: bool = False) -> Opened:
  """Opens a run with the examples of --input, or of its `eval` entry `test` or the first one.

  Args:
    request: the command.
    training: reads the training data too.

  Raises:
    InputError: several processes; a task without single outputs; no examples.
  """
  if jax.process_count() > 1:
    raise InputError('explain: expected one process')
  if training:
    (x, workdir), stored = open_experiment(request), None
  else:
    x, workdir, stored = open_run(request, evals=not request.input, labels=False)
  check_task(x.task)
  if request.input:
    data, source = experiments.input_data(x, request.input, stored), request.input
  elif x.evals:
    data, source = x.evals[entry_of(x)].data, f'eval.{entry_of(x)}'
  else:
    raise InputError('give --input=FILE: the config has no `eval` entry to explain')
  state, step = restored(x, workdir, request.step)
  return Opened(x, workdir, data, eval_variables(state), step, source, stored)


def target_of(opened: Opened, rows: HostBatch, outputs: np.ndarray, name: str) -> np.ndarray:
  """Returns the output of each example to explain, int32 [n]: the named one, or the largest.

  Outputs that have a place (tags, masks, boxes) get weights like them, see `dense.weights_of`.

  Args:
    opened: the run.
    rows: the examples.
    outputs: float [n, K] or [n, ..., K].
    name: class or number of an output; '' is the largest, of a regression the first.
  """
  names, task = tuple(map(str, opened.data.metadata.get('class_names', ()))), opened.x.task
  if name:
    classes = np.full(len(outputs), class_number(name, names, outputs.shape[-1]), np.int32)
    return weights_of(task, outputs, rows, classes) if is_dense(task) else classes
  if is_dense(task):
    ground = names.index('O') if 'O' in names else -1
    ground = 0 if isinstance(innermost(task), Segmentation) else ground
    return weights_of(task, outputs, rows, chosen_class(task, outputs, rows, ground))
  if isinstance(innermost(opened.x.task), Regression):
    return np.zeros(len(outputs), np.int32)
  return outputs.argmax(1).astype(np.int32)


def label_of(opened: Opened, output: int) -> str:
  """Returns the name of an output: of a class, a token, or a number."""
  if isinstance(innermost(opened.x.task), CausalLM):
    coder = opened.tokenizer
    return repr(coder.decode([output])) if output < coder.size else str(output)
  names = opened.data.metadata.get('class_names', ())
  return str(names[output]) if output < len(names) else str(output)


def titles(
  opened: Opened, rows: HostBatch, outputs: np.ndarray, target: np.ndarray | None = None
) -> list[str]:
  """Returns a line for each of the first examples: its number, its prediction, its label.

  Args:
    opened: the run.
    rows: the examples.
    outputs: of them.
    target: explained outputs of outputs that have a place; None: those of `target_of`.
  """
  task, found = innermost(opened.x.task), []
  placed = target_of(opened, rows, outputs, '') if target is None else target
  for i, row in enumerate(outputs):
    line = (
      _placed(opened, rows, i, row, placed[i]) if is_dense(task) else _prediction(opened, task, row)
    )
    said = f'{i + 1}: {line}'
    if 'label' in rows and isinstance(task, Classification | BinaryClassification):
      said += f', true {label_of(opened, int(rows["label"][i]))}'
    elif 'y' in rows:
      said += f', true {brief(float(rows["y"][i, 0]))}'
    found.append(said)
  described = opened.data.examples
  if isinstance(described, Described):
    about = described.describe(opened.data.indices(0)[0, : len(found)])
    found = [f'{t}, {pathlib.Path(a["file"]).name}' if 'file' in a else t
             for t, a in zip(found, about, strict=False)]  # fmt: skip
  return found


def _placed(opened: Opened, rows: HostBatch, i: int, row: np.ndarray, target: np.ndarray) -> str:
  """The class of an explained output, its place, and how sure the model is."""
  task = innermost(opened.x.task)
  at, k = place_of(target)
  name, value = label_of(opened, k), float(row.reshape(-1, row.shape[-1])[at, k])
  if isinstance(task, Segmentation):
    count = int((row.argmax(-1) == k).sum())
    return f'{name}, {count:,} of {row[..., 0].size:,} pixels'
  if isinstance(task, Detection):
    grid = points(rows['image'].shape[1:3], task.model.strides)
    down, right = grid.center[at]
    return f'{name}, box of row {down:.0f}, column {right:.0f} ({np.exp(value):.2f})'
  share = np.exp(value - row[at].max()) / np.exp(row[at] - row[at].max()).sum()
  piece = pieces(opened.tokenizer, rows['tokens'][i].tolist())[at].strip()
  said = f'{name} of token {at + 1}, {piece!r} ({share:.2f})'
  real = 'targets' in rows and rows['weights'][i, at] > 0
  return f'{said}, true {label_of(opened, int(rows["targets"][i, at]))}' if real else said


def _prediction(opened: Opened, task: Any, row: np.ndarray) -> str:
  if isinstance(task, Regression):
    return f'predicted {brief(float(task.mean + task.std * row[0]))}'
  best = int(row.argmax())
  logits = row * [0, 1] if isinstance(task, BinaryClassification) else row
  share = np.exp(logits - logits.max())
  kind = 'next token' if isinstance(task, CausalLM) else 'predicted'
  return f'{kind} {label_of(opened, best)} ({share[best] / share.sum():.2f})'


def host(values: Array) -> np.ndarray:
  """Fetches an array."""
  return np.asarray(tree.fetch(values))
