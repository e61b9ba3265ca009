"""The values that flow through the house, and the protocols by which rooms meet."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
import optax

from bmx.core.metrics import Metrics

Array = jax.Array
Variables = Mapping[str, Any]  # nested dicts of arrays
Batch = dict[str, Any]  # leading dimension B; the keys a task reads, and always `weights`
Rows = dict[str, np.ndarray]

# The gradient of the weighted *sum*, with the metrics and the new collections.
GradFn = Callable[[Variables, Variables, Batch, Array], tuple[Variables, Metrics, Variables]]
Schedule = Callable[[Any], Any]  # step -> learning rate


class Task(Protocol):
  """What is minimised: a frozen dataclass that holds the model and the constants of the loss."""

  @property
  def separable(self) -> bool:
    """False where examples see each other (batch norm, contrastive losses, expert balance)."""
    ...

  def init(self, key: Array, batch: Batch) -> Variables:
    """Linen variables: 'params' and other collections, in boxes that name their dimensions."""
    ...

  def loss(
    self, params: Variables, collections: Variables, batch: Batch, key: Array, *, train: bool
  ) -> tuple[Array, tuple[Metrics, Variables]]:
    """-> (weighted sum [], (metrics with 'loss', new collections))."""
    ...

  def predict(self, params: Variables, collections: Variables, batch: Batch) -> dict[str, Array]:
    """What the model says of each example, each array [B, ...]."""
    ...

  def view(self, params: Variables, collections: Variables) -> Variables:
    """The plain, merged weights, for export and interpretation."""
    ...

  def check(self, info: Mapping[str, Any]) -> None:
    """Raises InputError where the model cannot read data with these facts."""
    ...


@runtime_checkable
class Data(Protocol):
  """A data set as functions of the step; holds no iterator state."""

  @property
  def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    """One global batch."""
    ...

  @property
  def size(self) -> int:
    """Examples per epoch."""
    ...

  @property
  def batch_size(self) -> int: ...

  @property
  def info(self) -> dict[str, Any]:
    """vocab, length, classes, ...: what can be checked against a model."""
    ...

  def order(self, step: int) -> np.ndarray:
    """-> int64 [B], the examples of the global batch of a step."""
    ...

  def orders(self, step: int, n: int) -> np.ndarray:
    """-> int64 [n, B], those of n steps from `step` on."""
    ...

  def rows(self, indices: np.ndarray, positions: np.ndarray) -> Rows:
    """Host rows of any subset; positions are step·B + row."""
    ...

  def resident(self) -> Rows | None:
    """Arrays to hold on the device and gather from there; None where rows come from the host."""
    ...

  def gather(self, arrays: Any, indices: Any) -> Batch:
    """Rows of resident arrays, without randomness; the same code for numpy and for jax arrays."""
    ...


@dataclasses.dataclass(frozen=True)
class Every:
  """Steps between log lines, evaluations and checkpoints; 0 is only at the end."""

  log: int = 50
  eval: int = 0
  save: int = 0


@dataclasses.dataclass(frozen=True)
class Selection:
  """A metric to follow: 'eval/valid/loss', lower or higher is better, evaluations to wait."""

  metric: str = ''
  mode: str = 'min'
  patience: int = 0
  last: int = 2

  def better(self, value: float, best: float | None) -> bool:
    if best is None:
      return True
    return value < best if self.mode == 'min' else value > best


@dataclasses.dataclass(frozen=True)
class Eval:
  """A split to evaluate, and the metrics that are not means: host functions of its predictions, and
  of the data where they take two arguments."""

  data: Data
  metrics: Mapping[str, Callable[..., float]]


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Everything a run needs, as values; made by `bmx.experiment.build`."""

  name: str
  config: dict[str, Any]  # the resolved config, as JSON holds it
  choices: Mapping[str, Any]  # how it computes, every 'auto' settled: attention, dtype, remat, ...
  seed: int
  steps: int
  task: Task
  tx: optax.GradientTransformation
  schedule: Schedule
  grad_fn: GradFn
  data: Data
  evals: Mapping[str, Eval]
  layout: Any  # bmx.parallel.Layout: mesh, rules, compute
  every: Every
  stop: Selection
  keep: Selection
  ema: float
  guard: Mapping[str, Any]
  dispatch: int  # steps per jitted call; 0 chooses
  watchdog: float  # seconds without a finished step before the run is ended; 0 is never
  generate: Mapping[str, Any]  # how texts are made: the arguments of serve.text.Options
  weights: str  # the folder that a new state's weights are from; '' is none
  init: Callable[..., Any]  # (a train.state.Plan, or this one's own) -> TrainState, placed
  rebuild: Callable[[Mapping[str, Any]], 'Experiment']  # the same with some config leaves changed
