"""Trackers of experiments beside TensorBoard: Weights & Biases and trackio, by the word `writers`.

    c.writers.wandb = {'call': 'bmx.runtime.trackers:WandB', 'project': 'mine', 'mode': 'offline'}

A tracker gets numbers and texts of every log line and evaluation, and the config. A run that is
resumed continues its entry: the identity of the run is its id there. A tracker that fails after its
start does not end the training.
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from bmx.core.errors import InputError
from bmx.runtime.storage import Place
from bmx.runtime.writer import Sink

log = logging.getLogger('bmx')
MODES = ('online', 'offline', 'disabled')


@dataclasses.dataclass(frozen=True)
class About:
  """What a tracker learns of a run at its start.

  Attributes:
    workdir: the run directory.
    identity: of the run, the same after a restart.
    name: of the run.
    config: its config.
  """

  workdir: Place
  identity: str
  name: str
  config: Mapping[str, Any]


@runtime_checkable
class Tracker(Protocol):
  """An entry of `writers`: it is made with the experiment and started by process 0."""

  def start(self, about: About) -> Sink:
    """Begins or continues the entry of a run. Raises InputError if it cannot."""
    ...


@dataclasses.dataclass(frozen=True)
class WandB:
  """Weights & Biases, with the extra `wandb`.

  Attributes:
    project: that the run belongs to.
    mode: 'online', 'offline' (files in WORKDIR/wandb, for `wandb sync`) or 'disabled'.

  Raises:
    InputError: the extra is not installed, or `mode` is another.
  """

  project: str = 'bmx'
  mode: str = 'online'

  def __post_init__(self):
    _need('wandb')
    if self.mode not in MODES:
      raise InputError(f'mode={self.mode!r}: expected one of {", ".join(MODES)}')

  def start(self, about: About) -> Sink:
    wandb = importlib.import_module('wandb')
    folder = about.workdir if isinstance(about.workdir, pathlib.Path) else None

    try:
      run = wandb.init(
        project=self.project, name=about.name, id=about.identity, resume='allow', mode=self.mode,
        dir=folder, config=dict(about.config), settings=wandb.Settings(console='off'),
      )  # fmt: skip
    except Exception as error:
      raise InputError(
        f'writers: wandb cannot start: {error}; run `wandb login`, or set mode=offline'
      ) from error
    run.define_metric('*', step_metric='step')  # a resumed run repeats steps after its checkpoint
    return Steps(lambda step, values: run.log({'step': step, **values}), run.finish)


@dataclasses.dataclass(frozen=True)
class Trackio:
  """trackio, with the extra `trackio`: a database on this machine, shown by `trackio show`.

  Attributes:
    project: that the run belongs to.
    folder: of the database; '' is trackio's own.

  Raises:
    InputError: the extra is not installed.
  """

  project: str = 'bmx'
  folder: str = ''

  def __post_init__(self):
    _need('trackio')

  def start(self, about: About) -> Sink:
    if self.folder:
      os.environ['TRACKIO_DIR'] = self.folder  # trackio reads it when it is imported
    trackio = importlib.import_module('trackio')

    name = f'{about.name}-{about.identity[:8]}'
    try:
      run = trackio.init(self.project, name=name, resume='allow', config=dict(about.config))
    except Exception as error:
      raise InputError(f'writers: trackio cannot start: {error}') from error
    return Steps(lambda step, values: run.log(dict(values), step), run.finish)


class Steps:
  """A tracker that gets values with their step.

  Args:
    log: (step, name -> value) -> anything.
    finish: ends the entry.
  """

  def __init__(self, log: Callable[[int, Mapping[str, Any]], Any], finish: Callable[[], Any]):
    self._log, self._finish = log, finish
    self.failing = False

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    with self._tolerated():
      self._log(step, values)

  def texts(self, step: int, values: Mapping[str, str]) -> None:
    with self._tolerated():
      self._log(step, values)

  def close(self) -> None:
    with self._tolerated():
      self._finish()

  @contextlib.contextmanager
  def _tolerated(self) -> Iterator[None]:
    """Logs the first of successive failures."""
    try:
      yield
      self.failing = False
    except Exception as error:
      if not self.failing:
        log.error('a tracker cannot write, and will be tried again: %r', error)
      self.failing = True


def _need(package: str) -> None:
  if importlib.util.find_spec(package) is None:
    raise InputError(f"{package} is not installed: pip install 'bmx-jax[{package}]'")
