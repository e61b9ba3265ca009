"""Mode `plan`: memory, kernels and communication of a training step on absent devices."""

import logging
import pathlib

from bmx import experiment as experiments
from bmx.core import errors
from bmx.modes import Request
from bmx.plan import topology
from bmx.plan.compile import compile_step, summarize
from bmx.runtime import logs

log = logging.getLogger('bmx')


def run(request: Request) -> int:
  """Compiles the training step for --topology and prints what it needs; runs nothing.

  Needs neither an accelerator nor data nor a run directory.
  """
  logs.start_logging(pathlib.Path())
  if not request.topology:
    raise errors.InputError('--mode=plan needs --topology, for instance v5e:4x4 or h200:8')
  devices = topology.devices(request.topology)
  experiment = experiments.build(request.config, request.name, devices, read=False)
  log.info('plan       compiling %s for %s: seconds to minutes', experiment.name, request.topology)
  made = compile_step(experiment)
  lines = [f'plan       {experiment.name} on {request.topology}']
  lines += [f'{k:28} {v}' for k, v in summarize(experiment, made).items()]
  log.info('%s', '\n'.join(lines))
  return errors.DONE
