"""The temperatures of a run: fitted by `eval`, applied by `predict` and `serve` on demand.

temperature.json holds, by step, the value and the entry of `eval` that it was fitted on.
"""

import logging
from collections.abc import Mapping
from typing import Any

from bmx.core.errors import InputError
from bmx.core.types import Task
from bmx.runtime.files import read_json, write_json
from bmx.runtime.storage import Place
from bmx.tasks.temperature import Tempered
from bmx.train.package import TEMPERATURE

log = logging.getLogger('bmx')


def keep_temperature(workdir: Place, step: int, scaled: Mapping[str, Any]) -> None:
  """Writes the temperature of a step, beside those of others.

  Args:
    workdir: run directory.
    step: of the checkpoint.
    scaled: `value` and `fitted_on`.
  """
  kept = {name: scaled[name] for name in ('value', 'fitted_on')}
  write_json(workdir / TEMPERATURE, {**_read(workdir), str(step): kept})


def with_temperature(task: Task, wanted: bool, workdir: Place, step: int) -> Task:
  """Returns the task whose probabilities have the temperature of a step; the task if not wanted.

  Args:
    task: of the run.
    wanted: `predict.temperature`.
    workdir: run directory, or an exported package.
    step: of the checkpoint.

  Raises:
    InputError: none was fitted for the step, or temperature.json is malformed.
  """
  if not wanted:
    return task
  known = _read(workdir)
  if str(step) not in known:
    others = f' (but of {", ".join(known)})' if known else ''
    raise InputError(
      f'predict.temperature=True: expected a temperature of step {step} in {workdir}, which has '
      f'none{others}; fit it on an entry of `eval` besides test: bmx eval {workdir} '
      f'--temperature=true --step={step}'
    )
  try:
    value, entry = float(known[str(step)]['value']), str(known[str(step)]['fitted_on'])
  except (KeyError, TypeError, ValueError) as error:
    raise InputError(f'{workdir / TEMPERATURE}: expected value and fitted_on of step {step}, not '
                     f'{known[str(step)]!r}') from error  # fmt: skip
  log.info('temperature %.3f of step %d, fitted on eval.%s', value, step, entry)
  return Tempered(task, value)


def check_served(wanted: bool, generates: bool, pointer: str) -> None:
  """Refuses a temperature that a server cannot apply.

  Args:
    wanted: `predict.temperature`.
    generates: whether the server completes texts.
    pointer: file whose model the server follows; '' without one.

  Raises:
    InputError: a model that generates, or one that the server exchanges for others.
  """
  if wanted and generates:
    raise InputError('predict.temperature=True: expected a run that predicts classes; a request of '
                     'a completion has a temperature of its own')  # fmt: skip
  if wanted and pointer:
    raise InputError(f'predict.temperature=True: expected no --pointer ({pointer}), since each '
                     'model that it names has another temperature')  # fmt: skip


def _read(workdir: Place) -> dict[str, Any]:
  path = workdir / TEMPERATURE
  if not path.is_file():
    return {}
  try:
    return dict(read_json(path))
  except (OSError, ValueError, TypeError) as error:
    raise InputError(f'{path}: expected temperatures by step: {error!r}; remove it and fit them '
                     'again') from None  # fmt: skip
