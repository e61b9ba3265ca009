"""Mode `promote`: makes a pointer name a run, or what it named before."""

import sys

from bmx.core import errors
from bmx.core.errors import InputError
from bmx.core.paths import local
from bmx.core.terminal import printable
from bmx.feedback import pointer
from bmx.modes import Request
from bmx.modes.start import need_run
from bmx.runtime.storage import place
from bmx.train.checkpoint import Checkpoints


def run(request: Request) -> int:
  """Replaces the pointer atomically; a server that serves it swaps its weights."""
  name = request.pointer
  if not name:
    raise InputError('promote: expected a pointer: bmx promote NAME RUN, bmx promote NAME --back')
  if not local(name).parent.is_dir() or local(name).is_dir():
    raise InputError(f'--pointer={name}: expected the name of a file, in a folder that exists')
  if request.back:
    if request.workdir or request.force:
      raise InputError('--back: expected no run and no --force; bmx promote NAME --back')
    made = pointer.back(name)
  else:
    made = pointer.promote(name, _target(request, name))
  target = made.target
  sys.stdout.write(printable(f'{name}: {target.run}, step {target.step}') + '\n')
  return errors.DONE


def _target(request: Request, name: str) -> pointer.Target:
  """The checkpoint of --workdir. Raises InputError if no gate has accepted it."""
  need_run('promote', request)
  workdir = place(request.workdir)
  folder = workdir / 'checkpoints'
  if not folder.is_dir():
    raise InputError(f'--workdir={workdir}: expected the directory of a run that has trained')
  checkpoints = Checkpoints(folder)
  step = checkpoints.choose_whole(request.step)
  checkpoints.close()
  target = pointer.target_of(workdir, step)
  if not request.force:
    found = pointer.check_gate(workdir, target)
    pointer.check_champion(name, found)
  return target
