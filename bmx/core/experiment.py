"""The values that define an experiment."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import optax

from bmx.core.data import Data
from bmx.core.events import Every, Hook, Selection
from bmx.core.images import ImageOptions
from bmx.core.types import GradFn, Schedule, Secret, Task


@dataclasses.dataclass(frozen=True)
class Eval:
  """A split to evaluate.

  Attributes:
    data: its batches.
    metrics: name -> host function of its predictions, for metrics that are not means.
  """

  data: Data
  metrics: Mapping[str, Callable[..., float]]


@dataclasses.dataclass(frozen=True)
class Experiment:
  """All values that a run needs; `bmx.experiment.build` makes them."""

  name: str
  config: dict[str, Any]  # the resolved config, as JSON holds it
  choices: Mapping[str, Any]  # words of computation, without 'auto': attention, dtype, remat, ...
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
  steps_per_call: int  # steps in one jitted call; 0 chooses
  watchdog: float  # seconds without a finished step before the run is ended; 0 is never
  generate: Mapping[str, Any]  # arguments of serve.text.Options
  images: ImageOptions  # the other words of `generate`
  weights: str  # folder that a new state's weights are read from; ''
  init: Callable[..., Any]  # (StateSpec, or this one's own) -> TrainState, placed
  rebuild: Callable[[Mapping[str, Any]], 'Experiment']  # the same with some config leaves changed
  writers: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # runtime.trackers.Tracker
  hooks: Mapping[str, Hook] = dataclasses.field(default_factory=dict)  # of the user, in order
  profile: Mapping[str, int] = dataclasses.field(default_factory=dict)  # start, steps of a trace
  secret: Secret | None = None  # of the noise of private training
  # Name -> host function of the completed steps, whose value is in every log line (ε of privacy).
  step_values: Mapping[str, Callable[[int], float]] = dataclasses.field(default_factory=dict)
