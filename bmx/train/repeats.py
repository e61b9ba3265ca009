"""Steps that a killed private run repeats: with the same noise, so only with the same updates.

The noise of a step is a function of secret, run and step. Whoever sees two releases of a step that
have the same noise but were made at other weights has their difference without any noise.
"""

from collections.abc import Sequence
from typing import Any

import jax

from bmx.core.errors import InputError
from bmx.core.experiment import Experiment
from bmx.runtime.storage import Place

# Words that a resumed run may change and that change its updates, if only in their last bits.
UPDATES = ('steps', 'epochs', 'mesh', 'rules', 'compute', 'init')
UNSAVED = 'unsaved'  # in the directory of a private run while it may have steps that are not saved


def check(workdir: Place, changes: Sequence[tuple[str, Any, Any]]) -> None:
  """Raises InputError if a private run would repeat steps with other updates.

  Args:
    workdir: of a run that is resumed.
    changes: (word, before, now) of its config.
  """
  if not (workdir / UNSAVED).exists():
    return
  others = [f'  {k}: {old!r} there, {new!r} given' for k, old, new in changes
            if k.split('.')[0] in UPDATES]  # fmt: skip
  if others:
    raise InputError(
      f'--workdir={workdir}: expected the same config as its private run, which was killed: steps '
      'after its newest checkpoint are repeated with the same noise, which other weights would '
      'reveal; found differences:\n' + '\n'.join(others) + '\ngive the same config until the run '
      'has ended, or Ctrl-C has saved it, and change it then; or begin a new run in another '
      '--workdir, whose ε adds up'
    )


def begin(experiment: Experiment, workdir: Place) -> None:
  """Notes that a private run begins steps that are not saved."""
  if experiment.secret is not None and not jax.process_index():
    (workdir / UNSAVED).touch()


def end(experiment: Experiment, workdir: Place) -> None:
  """Notes that the last step that a private run has begun is saved."""
  if experiment.secret is not None and not jax.process_index():
    (workdir / UNSAVED).unlink(missing_ok=True)
