"""Examination of a whole state: no run saves or ends with one that is not finite."""

from bmx.core.errors import GuardStop
from bmx.train.guard import first_bad
from bmx.train.run import Event


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
