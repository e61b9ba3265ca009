"""Mode `compress`: a run whose weights are quantized or pruned, as a run directory of its own.

OUTPUT holds config.json with the wrapped task or the smaller model, data.json and the tokenizer of
the run, a checkpoint of the same step, constants/quantized, and compress.json with the words and
the table that is printed.
"""

import dataclasses
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bmx import config as recipes
from bmx import experiment as experiments
from bmx.compress import calibrate
from bmx.compress.quantize import FakeQuantize, Quantized, Scheme
from bmx.core import errors, tree
from bmx.core.errors import InputError
from bmx.core.experiment import Eval, Experiment
from bmx.core.types import Noise, Task, Variables
from bmx.modes import Request
from bmx.modes.compressors import SCHEME, Plain, checked, compressed
from bmx.modes.start import need_run, open_run
from bmx.parallel import jit
from bmx.runtime.files import write_json
from bmx.runtime.storage import Place, place
from bmx.runtime.writer import brief
from bmx.tasks.common import Wrapper
from bmx.train.checkpoint import Checkpoints
from bmx.train.evaluate import eval_noise, evaluations
from bmx.train.policy import LoopState
from bmx.train.run import restored
from bmx.train.rundir import RunDir
from bmx.train.start import NO_OPTIMIZER
from bmx.train.state import TrainState, eval_variables, state_spec

log = logging.getLogger('bmx')
KEPT = ('data.json', 'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json')
SECONDS, MOST = 1.0, 20  # of the forward passes that are timed


def run(request: Request) -> int:
  """Compresses a run, and prints size, metrics and speed before and after."""
  need_run('compress', request)
  if not request.output:
    raise InputError('--output=: expected the run directory to write; add --output=DIR')
  x, workdir, stored = open_run(request)
  config, trained = plain_config(request.config)
  words = checked(x.config['compress'], trained)
  state, step = restored(x, workdir, request.step)

  def build(config: Mapping[str, Any], **more: Any) -> Experiment:
    return experiments.build(recipes.from_plain(config), request.name, **more)

  plain = build(config, stored=stored)
  check_output(request.output, plain)
  merged = jit(x.task.merged_params, x.layout)(eval_variables(state))
  others = {k: v for k, v in eval_variables(state).items() if k in plain.task.averaged}
  del state
  variables = {'params': merged, **others}

  def read_training() -> Experiment:
    if x.secret is not None:
      raise InputError('ε of this private run does not cover another reading of its examples')
    return build(config, evals=False)

  found = compressed(Plain(plain, variables, words, read_training))
  if found.wrapper:
    config['task'] = {**found.wrapper, 'inner': config['task']}
  if found.model:
    config['task'] = {**config['task'], 'model': found.model}
  new = build(config, stored=stored)
  rows = [describe(plain, state_of(plain, variables, step))]
  after = state_of(new, found.variables, step)
  write(new, after, workdir, request.output, step)
  rows.append(describe(new, after))
  sys.stdout.write('\n'.join([table(rows), *nearest_lines(found.nearest)]) + '\n')
  facts = {'words': words, 'before': rows[0], 'after': rows[1], 'nearest': list(found.nearest)}
  write_json(place(request.output) / 'compress.json', facts)
  if found.wrapper and new.layout.mesh.devices.flat[0].platform == 'cpu':
    log.info('on a CPU quantized weights save memory, not time')
  log.info('written to %s', request.output)
  return errors.DONE


def plain_config(given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the config of a run without its wrappers, optimizer, hooks, writers and `compress`.

  And the words of the rounding that the run was trained with, {} for none.
  """
  config, trained = recipes.plain(given), {}
  *wrappers, (_, inner) = layers(config['task'])
  for maker, part in wrappers:
    if issubclass(maker, Quantized):
      raise InputError(
        f'task={part["call"]}: expected a run of plain weights; this one is quantized already. '
        'Compress the run that it was made from'
      )
    if issubclass(maker, FakeQuantize):
      trained = dataclasses.asdict(Scheme(**{k: part[k] for k in SCHEME if k in part}))
  return alone(config, inner), trained


def layers(part: Mapping[str, Any]) -> list[tuple[Any, Mapping[str, Any]]]:
  """Returns (callable, part) of a task and of the tasks inside it, from outside in."""
  found = [(recipes.resolve(part['call']), part)]
  while isinstance(found[-1][0], type) and issubclass(found[-1][0], Wrapper):
    inner = found[-1][1]['inner']
    found.append((recipes.resolve(inner['call']), inner))
  return found


def alone(config: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a config of the task `part` without optimizer, hooks, writers and `compress`."""
  without: dict[str, Any] = {word: {} for word in ('grad', 'privacy', 'hooks', 'writers')}
  without |= {'optimizer': {'call': NO_OPTIMIZER}, 'ema': 0.0}
  without |= {'init': {'path': '', 'reinit': ''}}
  without |= {'compress': recipes.plain(recipes.base())['compress']}
  return {**config, **without, 'task': dict(part)}


def state_of(x: Experiment, variables: Variables, step: int) -> TrainState:
  """Returns the state of an experiment that holds given variables, placed, at a step."""
  spec = state_spec(x)
  state = spec.create(tree.named(variables))
  return state.replace(step=jax.device_put(jnp.int32(step), spec.shardings.step))  # type: ignore


def check_output(output: str, x: Experiment) -> None:
  """Raises InputError unless the output is a new directory that can be written."""
  if (place(output) / 'config.json').exists():
    raise InputError(f'--output={output}: expected a new directory; it holds a run')
  RunDir(output, x)


def write(x: Experiment, state: TrainState, source: Place, output: str, step: int) -> None:
  """Writes a run directory: config, data and tokenizer of the source, constants, a checkpoint."""
  rundir = RunDir(output, x)
  with rundir.locked():
    rundir.write_config(0, dict(x.choices))
    for name in KEPT:
      if (source / name).is_file():
        (rundir.path / name).write_bytes((source / name).read_bytes())
    checkpoints = Checkpoints(rundir.path / 'checkpoints', constant=x.task.constant)
    checkpoints.save(state, dataclasses.asdict(LoopState()), step)
    checkpoints.wait()
    failed = checkpoints.failed_anywhere()
    checkpoints.close()
    if failed:
      raise errors.Stop(f'{rundir.path}: the checkpoint could not be written, see the log')


def describe(x: Experiment, state: TrainState) -> dict[str, float]:
  """Measures a state: parameters, bytes of weights, metrics of entries, rate of a forward pass."""
  variables = eval_variables(state)
  plain = jax.eval_shape(x.task.merged_params, variables)
  facts: dict[str, float] = {
    'parameters': tree.count(plain),
    'bytes': tree.nbytes(variables),
  }
  for evaluation in evaluations(x).values():
    facts |= evaluation(state)
  return facts | _rate(x.task, x, variables)


def _rate(task: Task, x: Experiment, variables: Variables) -> dict[str, float]:
  """Times forward passes over a batch of the first entry: examples or tokens a second."""
  entry = next((e for e in x.evals.values() if isinstance(e, Eval)), None)
  if entry is None:
    return {}
  (batch,) = calibrate.batches(entry.data, x.layout, 1)
  noise: Noise = eval_noise()
  forward = jit(lambda v, b: task.loss(v, b, noise, train=False).sum, x.layout)
  jax.block_until_ready(forward(variables, batch))
  began, count = time.perf_counter(), 0
  while count < MOST and time.perf_counter() - began < SECONDS:
    jax.block_until_ready(forward(variables, batch))
    count += 1
  seconds = time.perf_counter() - began
  if 'tokens' in batch:
    return {'tokens/s': batch['tokens'].size * count / seconds}
  return {'examples/s': entry.data.batch_size * count / seconds}


def table(rows: list[dict[str, float]]) -> str:
  """Formats facts before and after, with their ratio."""
  before, after = rows
  names = [k for k in before if k in after]
  lines = [('', 'before', 'after', 'after / before')]
  for name in names:
    a, b = before[name], after[name]
    lines.append((name, brief(a), brief(b), f'{b / a:.4g}' if a else ''))
  widths = [max(len(line[i]) for line in lines) for i in range(4)]
  pad = lambda line: (
    [line[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
  )
  return '\n'.join('  '.join(pad(line)).rstrip() for line in lines)


def nearest_lines(paths: Sequence[str]) -> list[str]:
  """Returns the line below the table that names weights which calibration does not reach."""
  names = ', '.join(paths)
  return [f'rounded to the nearest, without calibration: {names}'] if paths else []
