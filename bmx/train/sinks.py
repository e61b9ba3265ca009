"""Where process 0 writes the values of a run: metrics.jsonl, TensorBoard, trackers."""

import sys

from bmx.core.experiment import Experiment
from bmx.runtime.files import to_json
from bmx.runtime.report import starts
from bmx.runtime.trackers import About
from bmx.runtime.writer import Writer
from bmx.train.policy import LoopState
from bmx.train.rundir import RunDir, flatten


def make_writer(x: Experiment, rundir: RunDir, step: int, loop: LoopState) -> Writer:
  """Returns the writer of process 0, with the trackers of the config.

  TensorBoard gets the hyper-parameters and, like the trackers, config and command as texts.

  Raises InputError if a tracker cannot start.
  """
  about = About(rundir.path, rundir.identity, x.name, x.config)
  trackers = {name: tracker.start(about) for name, tracker in x.writers.items()}
  writer = Writer(rundir.path, step, loop.metrics_length, trackers)
  followed = [s.metric for s in (x.keep, x.stop) if s.metric]
  metrics = ['loss', *(f'eval/{name}/loss' for name in x.evals), *followed]
  writer.events.hyperparameters(flatten(x.config), metrics)
  writer.texts(step, {'config': to_json(x.config, indent=1), 'command': starts.command(sys.argv)})
  return writer
