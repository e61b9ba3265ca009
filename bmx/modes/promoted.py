"""Watches the pointer of a server: loads what it names, and swaps the served weights."""

import json
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bmx import config as recipes
from bmx import experiment as experiments
from bmx.core.errors import InputError
from bmx.feedback import pointer
from bmx.feedback.pointer import Target
from bmx.modes.export import portable
from bmx.modes.services import weights
from bmx.modes.start import Run
from bmx.runtime.storage import place
from bmx.serve.worker import DeviceThread, Unavailable
from bmx.train import datafile
from bmx.train.rundir import differences, read_config

log = logging.getLogger('bmx')
POLL_SECONDS = 1.0
JOIN_SECONDS = 30.0


class Watch:
  """Looks at a pointer in a thread of its own; a target that does not fit leaves the old one.

  Args:
    path: of the pointer.
    target: that is served.
    load: makes a target the served one before it returns; raises InputError if it does not fit.
    seconds: between two looks.
  """

  def __init__(
    self, path: str, target: Target, load: Callable[[Target], None], seconds: float = POLL_SECONDS
  ):
    self.path, self.target, self.seconds = path, target, seconds
    self._load, self._problem = load, ''
    self._refused: Target | None = None
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._run, name='pointer', daemon=True)

  def start(self) -> None:
    """Starts the thread."""
    self._thread.start()

  def stop(self) -> None:
    """Ends the thread; a load under way is finished first."""
    self._ended.set()
    self._thread.join(JOIN_SECONDS)

  def _run(self) -> None:
    while not self._ended.wait(self.seconds):
      self.look()

  def look(self) -> None:
    """Reads the pointer once, and loads its target if it is another one.

    A target that does not fit is refused until it is promoted again; another failure may pass, so
    that the next look tries again.
    """
    try:
      target = pointer.read(self.path).target
    except InputError as error:
      self._say(error)
      return
    if _identity(target) == _identity(self.target) or target == self._refused:
      return
    try:
      self._load(target)
    except InputError as error:
      self._refused = target
      self._say(error)
    except Exception as error:
      self._say(error)
    else:
      self.target, self._refused, self._problem = target, None, ''
      log.info('promoted   %s, step %d', target.run, target.step)

  def _say(self, error: Exception) -> None:
    """Logs a problem once."""
    if str(error) != self._problem:
      self._problem = str(error)
      trace = None if isinstance(error, InputError | Unavailable) else error
      log.error('pointer    %s; %s stays', error, self.target.run, exc_info=trace)


def _identity(target: Target) -> tuple[str, int, str]:
  return target.run, target.step, target.digest


def follower(served: Run, worker: DeviceThread) -> Callable[[Target], None]:
  """Returns a function that makes a target the served one, and returns when it is.

  Raises InputError if this process cannot read weights beside the served ones.
  """
  _host()
  return lambda target: worker.swap(load_target(served, target)).result()


def _host() -> Any:
  """Returns the processor of this machine as a device of jax."""
  try:
    return jax.devices('cpu')[0]
  except RuntimeError:
    platforms = os.environ.get('JAX_PLATFORMS', '')
    raise InputError(
      f'JAX_PLATFORMS={platforms}: expected cpu among them, as the weights of a promoted run are '
      f'read there; set JAX_PLATFORMS={platforms},cpu'
    ) from None


def load_target(served: Run, target: Target) -> Any:
  """Returns the weights of a target, in the form that the served programs take, in NumPy.

  They are read and converted on the processor: the devices belong to the device thread.

  Raises InputError if its checkpoint has changed, or its model or data are not those served.
  """
  if served.experiment.config['serve']['adapters']:
    raise InputError('serve.adapters: expected none where weights are exchanged: the base of the '
                     'adapters would be another one')  # fmt: skip
  pointer.check(target)
  folder = place(target.run)
  stored, found = read_config(folder), datafile.read(folder)
  config = recipes.from_stored(stored['config'])
  task = json.loads(json.dumps(recipes.plain(config)['task']))
  changed = differences(json.loads(json.dumps(served.experiment.config['task'])), task)
  if changed:
    word, old, new = changed[0]
    raise InputError(f'{target.run}: task.{word}={new!r}: expected {old!r}, as the served model '
                     'has it; start a server of its own')  # fmt: skip
  for fact in ('spec', 'state'):
    if found is None or served.stored is None or not _same(found, served.stored, fact):
      raise InputError(f'{target.run}: its data.json has another {fact} (columns, classes or '
                       'tokenizer) than the served run; start a server of its own')  # fmt: skip
  x = experiments.build(portable(config), 'run', [_host()], evals=False, stored=found)
  found_weights = weights(Run(x, folder, folder, found, str(target.step)))
  return jax.tree.map(np.asarray, found_weights)


def _same(a: datafile.DataFile, b: datafile.DataFile, fact: str) -> bool:
  return a.spec == b.spec if fact == 'spec' else a.state == b.state
