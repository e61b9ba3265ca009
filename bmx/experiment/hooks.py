"""Hooks of a config: parts that make functions of an event."""

from collections.abc import Mapping
from typing import Any

from bmx import config as recipes
from bmx.core.errors import InputError
from bmx.core.events import ChecksExperiment, Hook
from bmx.core.experiment import Experiment
from bmx.runtime.trackers import Tracker


def tracker(c: Mapping[str, Any], name: str, part: Mapping[str, Any]) -> Tracker:
  """Returns the writer `name`. Raises InputError if its callee makes no tracker."""
  made = recipes.build(part, f'writers.{name}')
  if not isinstance(made, Tracker):
    raise InputError(
      f'writers.{name}: {part["call"]} made {made!r}; expected a tracker such as '
      'bmx.runtime.trackers:WandB'
    )
  return made


def hook(c: Mapping[str, Any], name: str, part: Mapping[str, Any]) -> Hook:
  """The hook `name`: `every` is the hook's, its callee makes the function that gets the events.

  Raises InputError if `every` is not a number of steps, or the callee makes no function.
  """
  part = dict(part)
  every = part.pop('every', 0)
  if not isinstance(every, int) or every < 0:
    raise InputError(f'hooks.{name}.every={every!r}: expected a whole number of steps, at least 0')
  call = recipes.build(part, f'hooks.{name}', seed=c['seed'], batch_size=c['batch_size'])
  if not callable(call):
    raise InputError(
      f'hooks.{name}: {part["call"]} made {call!r}; expected a function of an event, such as an '
      'object with __call__(self, event)'
    )
  return Hook(every, call, name)


def check_hooks(experiment: Experiment) -> None:
  """Raises InputError naming a hook that cannot be called in a run of the experiment."""
  for name, one in experiment.hooks.items():
    if isinstance(one.call, ChecksExperiment):
      try:
        one.call.check_experiment(experiment)
      except InputError as error:
        raise InputError(f'hooks.{name}: {error}') from None
