"""Start of every mode that uses devices: logging, compilation cache, experiment."""

import pathlib
import time

import jax

from bmx import experiment as experiments
from bmx.core.errors import InputError
from bmx.core.types import Experiment
from bmx.modes import Request
from bmx.runtime import cache, writer


def default_workdir(request: Request) -> pathlib.Path:
  """The run directory: --workdir, or runs/NAME/TIMESTAMP."""
  return pathlib.Path(request.workdir or f'runs/{request.name}/{time.strftime("%Y%m%d-%H%M%S")}')


def need_run(mode: str, request: Request) -> None:
  """Raises InputError if the command names no run directory."""
  if not request.workdir:
    raise InputError(f'--mode={mode} needs --workdir=DIR of a run that has trained')


def open_experiment(request: Request, *, read: bool = True) -> tuple[Experiment, pathlib.Path]:
  """Builds the experiment of a command; returns it with its run directory.

  Args:
    request: the command.
    read: False builds from shapes alone, without reading data.
  """
  workdir = default_workdir(request)
  writer.start_logging(workdir, jax.process_index())
  cache.enable(request.config.cache)
  return experiments.build(request.config, request.name, read=read), workdir
