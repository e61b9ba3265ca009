"""Mode `train`."""

from bmx.core import errors
from bmx.modes import Request
from bmx.modes.start import open_experiment
from bmx.train import loop


def run(request: Request) -> int:
  """Trains to the last step, from the newest valid checkpoint of the run directory."""
  experiment, workdir = open_experiment(request)
  loop.run(experiment, workdir, began=request.began)
  return errors.DONE
