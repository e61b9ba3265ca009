"""Training: state, step, loop, checkpoints, evaluation and the run directory.

The package itself can be called: `bmx.train(experiment, workdir)` trains. A function of that name
in `bmx` would be replaced by this package at its first import.
"""

import sys
import types
from typing import Any


class _Training(types.ModuleType):
  def __call__(self, experiment: Any, workdir: Any) -> Any:
    """Trains an experiment in a run directory; resumes a run that the directory holds.

    Args:
      experiment: an Experiment of `bmx.build`.
      workdir: run directory; it is created if it does not exist.

    Returns:
      The run's summary: final metrics, steps, seconds.

    Raises:
      InputError: `workdir` holds another run.
    """
    from bmx.train import loop

    return loop.run(experiment, workdir)


sys.modules[__name__].__class__ = _Training
