"""What a config would build, without compiling or training: sizes, steps, mesh, evaluations."""

import math
from typing import Any

from bmx import experiment as experiments
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.experiment import Eval, Experiment
from bmx.modes import Request
from bmx.modes.start import start
from bmx.parallel import describe
from bmx.train.start import published_parameters
from bmx.train.state import state_spec


def outline(request: Request) -> str:
  """Returns what `train` would build, or why it would not.

  Where data are missing, the outline is made from shapes alone.
  """
  start(request)
  try:
    return _facts(experiments.build(request.config, request.name), True)
  except InputError as error:
    reason = f'would not train: {error}\n'
  try:
    return reason + _facts(experiments.build(request.config, request.name, read=False), False)
  except InputError:
    return reason


def _facts(x: Experiment, read: bool) -> str:
  spec = state_spec(x)
  params, device = spec.abstract.params, x.layout.mesh.devices.flat[0]
  rows = {
    'parameters': f'{published_parameters(x, spec):,} ({tree.nbytes(params):,} bytes)',
    'data': f'{x.data.size:,} examples; {x.data.metadata.get("source", "")}'.rstrip('; ')
    if read
    else 'not read',
    'steps': f'{x.steps:,} of {x.data.expected:g} examples'
    + (f', {epochs(x):.3g} epochs' if read else ''),
    'devices': f'{x.layout.devices} × {device.device_kind}, mesh {describe(x.layout.mesh)}',
  }
  for name, entry in x.evals.items():
    rows[f'eval {name}'] = _evaluation(x, entry)
  return 'would build\n' + ''.join(f'  {k:11} {v}\n' for k, v in rows.items())


def epochs(x: Experiment) -> float:
  """Passes of a run over its training data."""
  return x.steps * x.data.expected / x.data.size


def _evaluation(x: Experiment, entry: Any) -> str:
  every = x.every.eval
  times = math.ceil(x.steps / every) if every else 1
  size = f'{entry.data.size:,} examples, ' if isinstance(entry, Eval) else ''
  return f'{size}{times} times' + (f', every {every:,} steps' if every else ', at the end')
