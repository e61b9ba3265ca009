"""Decisions of the loop as functions of values: ends of dispatches, best step, early stopping."""

import dataclasses
import logging
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bmx.core.errors import InputError
from bmx.core.events import Hook, Selection
from bmx.core.typed import fits

log = logging.getLogger('bmx')
Group = tuple[int, int]  # (first step, number of steps)


@dataclasses.dataclass
class LoopState:
  """The host's part of the state, saved beside the device's; equal on all processes.

  Attributes:
    window: name -> [sum, count] of the log window that is still open.
    best: metric -> best value so far; `stop METRIC` for early stopping.
    best_step: step of the best value of keep.metric.
    waited: evaluations since stop.metric improved.
    stopped: early stopping has ended the run.
    metrics_length: bytes of metrics.jsonl.
    seconds: wall time, over all starts.
    spent: the same by part, see `runtime.account`.
    compile_seconds: over all starts.
    last: newest value of every metric.
    rate: [step, learning rate of the update before it] of the newest log line; [] before one.
    evaluation: metrics of the newest evaluation.
    done: names of the hooks that have returned at the step of the checkpoint.
    joules: energy by its source, over all starts, see `runtime.energy`.
    forecast: of the whole run, see `train.energy`.
  """

  window: dict[str, list[float]] = dataclasses.field(default_factory=dict)
  best: dict[str, float] = dataclasses.field(default_factory=dict)
  best_step: int | None = None
  waited: int = 0
  stopped: bool = False
  metrics_length: int = 0
  seconds: float = 0.0
  compile_seconds: float = 0.0
  last: dict[str, float] = dataclasses.field(default_factory=dict)
  rate: list[float] = dataclasses.field(default_factory=list)
  evaluation: dict[str, float] = dataclasses.field(default_factory=dict)
  done: list[str] = dataclasses.field(default_factory=list)
  spent: dict[str, float] = dataclasses.field(default_factory=dict)
  joules: dict[str, float] = dataclasses.field(default_factory=dict)
  forecast: dict[str, float] = dataclasses.field(default_factory=dict)


def loop_state(values: Mapping[str, Any], where: str) -> LoopState:
  """Returns the LoopState that a checkpoint holds.

  Args:
    values: its fields; fields that are absent have their defaults.
    where: the checkpoint, for the message.

  Raises:
    InputError: an unknown field, or a value of another type.
  """
  hints = typing.get_type_hints(LoopState)
  for name, value in values.items():
    if name not in hints or not fits(value, hints[name]):
      raise InputError(
        f'{where}: {name}={value!r:.40}: expected the state of a run; choose another with --step'
      )
  return LoopState(**values)


def groups(step: int, steps: int, hooks: Sequence[Hook], depth: int) -> Iterator[Group]:
  """Yields runs of at most `depth` steps from `step` on; none crosses a step where a hook is due.

  >>> list(groups(0, 10, [Hook(4, print)], 3))
  [(0, 3), (3, 1), (4, 3), (7, 1), (8, 2)]
  """
  while step < steps:
    edge = min([steps, step + depth, *(_next_due(hook, step, steps) for hook in hooks)])
    yield step, edge - step
    step = edge


def _next_due(hook: Hook, step: int, steps: int) -> int:
  if isinstance(hook.every, tuple):
    return min((s for s in hook.every if s > step), default=steps)
  return step - step % hook.every + hook.every if hook.every else steps


def decide(loop: LoopState, stop: Selection, keep: Selection, step: int) -> None:
  """Updates best values, the best step and `stopped` from the newest evaluation."""
  if stop.metric:
    name, value = f'stop {stop.metric}', _value(loop, stop)
    better = stop.better(value, loop.best.get(name))
    loop.waited = 0 if better else loop.waited + 1
    if better:
      loop.best[name] = value
    loop.stopped = loop.waited >= max(stop.patience, 1)
    if loop.stopped:
      log.info('stopping early: %s did not improve in %d evaluations', stop.metric, loop.waited)
  if keep.metric:
    value = _value(loop, keep)
    if keep.better(value, loop.best.get(keep.metric)):
      loop.best[keep.metric], loop.best_step = value, step


def _value(loop: LoopState, selection: Selection) -> float:
  value = loop.evaluation.get(selection.metric, math.nan)
  if not math.isfinite(value):
    log.warning('%s is %s or missing in this evaluation: it is never best', selection.metric, value)
  return value


def stays_stopped(loop: LoopState, stop: Selection) -> bool:
  """Whether a resumed run that had stopped early is still stopped under `stop`.

  Another metric, none, or a longer patience continues the run.
  """
  followed = bool(stop.metric) and f'stop {stop.metric}' in loop.best
  return loop.stopped and followed and loop.waited >= max(stop.patience, 1)
