"""Examination at marks: of a whole state, which must be finite, and of a window's targets."""

import logging

from bmx.core.errors import GuardStop
from bmx.train.guard import first_bad
from bmx.train.run import Event

log = logging.getLogger('bmx')


def examine(event: Event) -> None:
  """Raises GuardStop if any number of the state is not finite; waits for a save in progress.

  The guard examines what leads to an update; this finds what the update itself made. A state that
  has been saved at this step has been examined.
  """
  run = event.run
  if run.checkpoints.saved == event.step or bool(run.finite(event.state)):
    return
  name = first_bad(event.state)
  run.checkpoints.wait()
  kept = run.checkpoints.steps()
  advice = 'start again in another --workdir'
  if kept:
    advice += f' from step {max(kept)}, with --config.init.path={event.workdir}'
  raise GuardStop(
    f'THE STATE OF STEP {event.step} IS NOT FINITE and is not saved: first {name}. An update '
    f'overflowed, though loss, gradient and new collections were finite. Checkpoints kept: '
    f'{kept or "none"}; lower the learning rate or set --config.optimizer.clip, and {advice}'
  )


def check_targets(event: Event) -> None:
  """Warns of the steps since the last log line whose loss counted nothing: they trained nothing."""
  without, steps = event.run.window.sums.pop('without_target', (0, 0))
  if without:
    log.warning(
      'NO TARGET in %d of the %d steps to step %d: their loss counted nothing, and their gradient '
      'was 0. Check the weights of the examples, and what the task masks or leaves out',
      without, steps, event.step,
    )  # fmt: skip
