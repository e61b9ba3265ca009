"""Start of every mode that uses devices: logging, compilation cache, experiment."""

import logging
import os
import pathlib
import secrets
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from bmx import experiment as experiments
from bmx.core.errors import InputError
from bmx.core.experiment import Eval, Experiment
from bmx.modes import Request, newest_run
from bmx.runtime import cache, logs, processes
from bmx.runtime.storage import Place, place
from bmx.train import datafile
from bmx.train.datafile import DataFile
from bmx.train.package import holds_weights


def default_workdir(request: Request) -> Place:
  """The run directory: --workdir, or runs/NAME/TIMESTAMP-RANDOM, of no other command."""
  if request.workdir:
    return place(request.workdir)
  unique = f'{time.strftime("%Y%m%d-%H%M%S")}-{secrets.token_hex(4)}'
  return pathlib.Path('runs') / request.name / unique


def need_run(mode: str, request: Request) -> None:
  """Raises InputError if the command names no run directory."""
  if not request.workdir:
    raise InputError(f'--mode={mode} needs --workdir=DIR of a run that has trained{newest_run()}')


def open_experiment(request: Request) -> tuple[Experiment, Place]:
  """Builds the experiment of a command; returns it with its run directory."""
  workdir = start(request)
  made = experiments.build(request.config, request.name)
  compare_processes(made)
  return made, workdir


def open_run(
  request: Request,
  *,
  read: bool = True,
  evals: bool = True,
  labels: bool = True,
  devices: Sequence[Any] | None = None,
) -> tuple[Experiment, Place, DataFile | None]:
  """Builds the experiment of a run that is there, without its training data.

  Args:
    request: the command.
    read: False builds from shapes alone where the run has no data.json.
    evals: False leaves out the `eval` entries, whose files need not be there then.
    labels: False accepts `eval` entries without labels.
    devices: to compute on; by default all of this machine.

  Returns:
    The experiment, the run directory, and what it keeps of its training data.
  """
  workdir = start(request)
  stored = datafile.read(workdir)
  made = experiments.build(
    request.config,
    request.name,
    devices,
    read=read or stored is not None,
    evals=evals,
    labels=labels,
    stored=stored,
  )
  compare_processes(made)
  return made, workdir, stored


class Run(NamedTuple):
  """Weights that a command uses: of a run, or of `init.path`.

  Attributes:
    experiment: of the run.
    workdir: run directory.
    folder: of the weights: the run directory, or `init.path`.
    stored: data.json of the run; None without one.
    step: of the checkpoint, as the command names it.
  """

  experiment: Experiment
  workdir: Place
  folder: Place
  stored: DataFile | None
  step: str

  @property
  def known(self) -> dict[str, Any]:
    """What the run keeps of its training data; empty without data.json."""
    return self.stored.state if self.stored is not None else {}


def open_weights(mode: str, request: Request, *, writes: bool = False) -> Run:
  """Opens a run that has trained, or `init.path` with the experiment of a recipe.

  Args:
    mode: of the command.
    request: the command.
    writes: whether --workdir may be a new folder, which the mode writes to.

  Raises:
    InputError: neither is named, or --workdir has not trained.
  """
  if not request.config.init.path:
    need_run(mode, request)
  x, workdir, stored = open_run(request, read=False, evals=False)
  begun = holds_weights(workdir)
  if request.workdir and not begun and not writes:
    raise InputError(f'--workdir={workdir}: expected the directory of a run that has trained')
  folder = workdir if begun else place(x.weights)
  return Run(x, workdir, folder, stored if begun else None, request.step)


def compare_processes(experiment: Experiment) -> None:
  """Compares the data that the processes of a run have read, and their devices.

  Raises InputError on every process if they differ.
  """
  if jax.process_count() == 1:
    return
  devices = jax.local_devices()
  facts = {'devices': f'{len(devices)} × {devices[0].device_kind}'}
  facts |= datafile.facts('data', experiment.data)
  for name, entry in experiment.evals.items():
    if isinstance(entry, Eval):
      facts |= datafile.facts(f'eval.{name}', entry.data)
  processes.check_same(facts)


def start(request: Request) -> Place:
  """Starts logging and the compilation cache; returns the run directory."""
  workdir = default_workdir(request)
  _check_platform()
  logs.start_logging(workdir, jax.process_index())
  cache.enable(request.config.cache)
  return workdir


def _check_platform() -> None:
  """Raises InputError if JAX_PLATFORMS names a platform that this machine lacks."""

  def without_traceback(record: logging.LogRecord) -> bool:
    record.exc_info = None
    return True

  of_jax = logging.getLogger('jax._src.xla_bridge')
  of_jax.addFilter(without_traceback)
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # jax asserts that one platform works
    reason = f': {error}' if str(error) else ''
    raise InputError(
      f'JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS", "")}: expected a platform of this machine, '
      f'such as cpu{reason}'
    ) from None
  finally:
    of_jax.removeFilter(without_traceback)
