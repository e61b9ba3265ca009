"""When a run logs, evaluates, saves and calls hooks, and which metric it follows."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable


@dataclasses.dataclass(frozen=True)
class Every:
  """Steps between log lines, evaluations and checkpoints; 0: only at the end."""

  log: int = 50
  eval: int = 0
  save: int = 0


@dataclasses.dataclass(frozen=True)
class Selection:
  """A metric to follow: its name, whether lower or higher is better, the evaluations to wait."""

  metric: str = ''
  mode: str = 'min'
  patience: int = 0
  last: int = 2

  def better(self, value: float, best: float | None) -> bool:
    """Returns whether `value` improves on `best`.

    NaN and infinities never improve; a finite value improves on them.

    >>> Selection(mode='max').better(0.2, float('nan')), Selection().better(float('nan'), None)
    (True, False)
    """
    if not math.isfinite(value):
      return False
    if best is None or not math.isfinite(best):
      return True
    return value < best if self.mode == 'min' else value > best


@runtime_checkable
class ChecksExperiment(Protocol):
  """A function of an event that finds out before the training whether it can work."""

  def check_experiment(self, experiment: Any) -> None:
    """Raises InputError if the function cannot be called in a run of the experiment."""
    ...


@dataclasses.dataclass(frozen=True)
class Hook:
  """A function that the training loop calls at some steps, between two dispatches.

  Attributes:
    every: steps between calls; 0 calls at the end only; a tuple lists the steps. An integer calls
      at the last step too.
    call: event -> None, a `runtime.report.Section` or a list of them. The event is a
      `train.run.Event`: step, state, workdir, run, `write(scalars)`. It is called by every
      process of a run. If it is a `ChecksExperiment`, `bmx.experiment.build` checks it.
    name: unique within a run; `loop.json` lists it once the call has returned.
    reads_state: the loop waits for the device and passes the state; False: the event of a step
      may come one dispatch late and without its state.
    at_stop: called too where early stopping ends the run.
  """

  every: int | tuple[int, ...]
  call: Callable[[Any], Any]
  name: str = ''
  reads_state: bool = True
  at_stop: bool = True

  def due(self, step: int, steps: int) -> bool:
    """Returns whether the hook is called after `step` of `steps` steps.

    >>> [s for s in range(1, 11) if Hook(4, print).due(s, 10)]
    [4, 8, 10]
    """
    if isinstance(self.every, tuple):
      return step in self.every
    return step == steps or bool(self.every and step % self.every == 0)
