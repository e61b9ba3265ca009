"""Evaluation of a whole split: sums on the device, predictions for metrics that are not means."""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bmx.core import streams, tree
from bmx.core.data import Data
from bmx.core.errors import InputError
from bmx.core.experiment import Eval, Experiment
from bmx.core.metrics import Window, add
from bmx.core.types import HostBatch, Noise, Task, Variables
from bmx.parallel import Layout, jit, use
from bmx.runtime.report import Illustrating, Section
from bmx.train.feed import Feed
from bmx.train.state import TrainState, eval_variables

log = logging.getLogger('bmx')
DEPTH = 16  # batches a dispatch
Evaluation = Callable[[TrainState], dict[str, float]]
ILLUSTRATED = 10_000  # examples of a split whose predictions the report shows


@dataclasses.dataclass
class Evaluator:
  """One entry of `eval`: compiled at its first call, then called with one state after another."""

  name: str
  entry: Eval
  task: Task
  layout: Layout
  looped: bool = True  # several batches a dispatch
  illustrated: bool = False  # calls make sections of the report
  compile_seconds: float = 0.0

  def __post_init__(self) -> None:
    data = self.entry.data
    self.batches = -(-data.size // data.batch_size)
    self.feed = Feed(data, self.layout, min(DEPTH if self.looped else 1, self.batches))
    self.constants: Any = None
    self.program: Any = None  # not yet compiled
    self.predictor: Predictor | None = None
    self.shown: list[Section] = []

  def __call__(self, state: TrainState) -> dict[str, float]:
    """Returns {'eval/NAME/METRIC': value} of the whole split; pads its last batch with weight 0."""
    program = self.program or self._compile(state)
    depth, window = self.feed.depth, Window()
    late: list[Any] = []
    groups = [(s, min(depth, self.batches - s)) for s in range(0, self.batches, depth)]
    for (start, n), (group, _) in zip(groups, self.feed.groups(groups), strict=True):
      sums = program(eval_variables(state), self.constants, group, np.int32(start), np.int32(n))
      late.append(sums)
      if len(late) > 1:
        window.add(jax.device_get(late.pop(0)))
    window.add(jax.device_get(late.pop()))
    result = window.close()
    rows = None
    if self.entry.metrics:
      rows = self._rows(state, self.entry.data.size)
      result |= {name: fn(rows) for name, fn in self.entry.metrics.items()}
    if self.illustrated and isinstance(self.task, Illustrating):
      rows = self._rows(state, ILLUSTRATED) if rows is None else rows
      self.shown = self._illustrate(self.task, rows)
    return {f'eval/{self.name}/{k}': v for k, v in result.items()}

  def sections(self) -> list[Section]:
    """Returns what the task shows of the newest call."""
    return self.shown

  def _rows(self, state: TrainState, most: int) -> HostBatch:
    """Predictions and labels of the first examples, `most` of them."""
    if self.predictor is None:
      self.predictor = Predictor(self.entry.data, self.task, self.layout, self.constants)
    return {k: v[:most] for k, v in join(list(self.predictor(state, most))).items()}

  def _illustrate(self, task: Illustrating, rows: HostBatch) -> list[Section]:
    """Sections of the split; a failure is logged, as a picture must not end a training."""
    data, count = self.entry.data, len(next(iter(rows.values())))
    where = f'{self.name}, the first {count:,} examples' if count < data.size else self.name
    try:
      return [Section(f'{s.title} ({where})', s.html) for s in task.illustrate(rows, data)]
    except Exception as error:
      log.warning('eval.%s: the report shows no examples: %r', self.name, error)
      return []

  def _compile(self, state: TrainState) -> Any:
    began = time.perf_counter()
    self.constants = self.feed.constants()
    group, _ = next(self.feed.groups([(0, 1)]))
    everywhere = NamedSharding(self.layout.mesh, PartitionSpec())
    program = jit(self._dispatch, self.layout, out_shardings=everywhere)
    zero = np.int32(0)
    lowered = program.lower(eval_variables(state), self.constants, group, zero, zero)
    self.program = lowered.compile()
    self.compile_seconds = time.perf_counter() - began
    return self.program

  def _dispatch(self, variables, constants, group, start, n):
    data = self.entry.data

    def score(i):
      batch = mask_padding(data, self.feed.take(constants, group, i), start + i)
      return self.task.loss(variables, batch, eval_noise(), train=False).metrics

    if self.feed.depth == 1:
      return score(0)
    sums = jax.tree.map(lambda m: jnp.zeros(m.shape, m.dtype), jax.eval_shape(score, 0))
    return jax.lax.fori_loop(0, n, lambda i, sums: add(sums, score(i)), sums)


def eval_noise() -> Noise:
  """Returns the noise of every evaluation: the same one each time."""
  return Noise(jax.random.PRNGKey(streams.EVAL), jnp.zeros((), jnp.int32))


def mask_padding(data: Data, batch: dict[str, Any], step: Any) -> dict[str, Any]:
  """Sets the weights of the rows of a batch behind the end of the split to 0."""
  weights = batch['weights']
  real = step * data.batch_size + jnp.arange(data.batch_size) < data.size
  real = real.reshape((-1,) + (1,) * (weights.ndim - 1))
  return {**batch, 'weights': jnp.where(real, weights, 0.0)}


def evaluations(
  x: Experiment, looped: bool = True, illustrated: bool = False
) -> dict[str, Evaluation]:
  """Returns the evaluations of an experiment by name.

  Args:
    x: its `evals` hold data splits, and functions of the state.
    looped: several batches share one dispatch.
    illustrated: calls make sections of the report.
  """
  of = lambda name, entry: Evaluator(name, entry, x.task, x.layout, looped, illustrated)
  return {k: of(k, v) if isinstance(v, Eval) else v for k, v in x.evals.items()}


class Predictor:
  """Predictions of a split: compiled at the first call, then called with one state after another.

  Args:
    data: the split.
    task: makes the predictions.
    layout: mesh and rules.
    constants: resident arrays that are placed already; None places them.
  """

  def __init__(self, data: Data, task: Task, layout: Layout, constants: Any = None):
    self.data, self.task, self.feed = data, task, Feed(data, layout, 1)
    self.constants = self.feed.constants() if constants is None else constants
    self.program = jit(
      lambda v, constants, group: task.predict(
        v, self.feed.take(constants, group, 0), eval_noise()
      ),
      layout,
    )

  def __call__(self, state: TrainState, most: int = 0) -> Iterator[HostBatch]:
    """Yields the predictions of each batch, in file order, with its labels for metrics.

    Args:
      state: of the run.
      most: examples, rounded up to whole batches; 0 is all.
    """
    data = self.data
    batches = -(-min(data.size, most or data.size) // data.batch_size)
    for step, (group, _) in enumerate(self.feed.groups([(s, 1) for s in range(batches)])):
      out = self.program(eval_variables(state), self.constants, group)
      n = min(data.batch_size, data.size - step * data.batch_size)
      rows = {k: tree.fetch(v)[:n] for k, v in out.items()}
      yield rows | _labels(data, self.task, step)


def predictions(data: Data, task: Task, layout: Layout, state: TrainState) -> Iterator[HostBatch]:
  """Yields the predictions of every example, in file order, with its labels for metrics."""
  return Predictor(data, task, layout)(state)


def _labels(data: Data, task: Task, step: int) -> HostBatch:
  """Returns the labels for metrics of one batch of a split, without padding."""
  positions = np.arange(step * data.batch_size, min((step + 1) * data.batch_size, data.size))
  known = data.rows(data.indices(step)[0, : len(positions)], positions)
  return {k: known[k] for k in task.labels_for_metrics if k in known}


def rehearse(name: str, entry: Eval, task: Task, layout: Layout, variables: Variables) -> None:
  """Calls the metrics of an entry with its labels and predictions of 0, before any compilation.

  Finds errors that labels alone show: a single class, more classes than a metric reads, a constant
  target. Splits whose rows are read from a source are not read for this.

  Args:
    name: of the entry.
    entry: a split and its metrics.
    task: makes the predictions.
    layout: mesh and rules.
    variables: abstract.

  Raises:
    InputError: a metric refuses the labels. Other exceptions are logged: predictions of 0 may be
      their cause.
  """
  data = entry.data
  if not entry.metrics or data.resident() is None:
    return
  with use(layout):
    predict = lambda v, batch: task.predict(v, batch, eval_noise())
    shapes = jax.eval_shape(predict, variables, data.abstract)
  rows = {k: np.zeros((data.size, *s.shape[1:]), s.dtype) for k, s in shapes.items()}
  rows |= join([_labels(data, task, step) for step in range(-(-data.size // data.batch_size))])
  for metric, fn in entry.metrics.items():
    try:
      fn(rows)
    except InputError as error:
      raise InputError(f'eval.{name}: {metric}: {error}') from None
    except Exception as error:
      log.warning('eval.%s: %s raised for predictions of 0: %r', name, metric, error)


def join(parts: list[HostBatch]) -> HostBatch:
  """Concatenates the parts of a split. Raises InputError if there are none."""
  if not parts:
    raise InputError('predictions: expected at least one example')
  return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
