"""The pointer to the served model: one small file that is replaced as a whole."""

import dataclasses
import pathlib
import time
from typing import Any

from bmx.core.errors import InputError
from bmx.core.paths import local
from bmx.runtime.files import read_json, write_json
from bmx.runtime.storage import Place, absolute, place
from bmx.train import manifest

GATE = 'gate.json'  # in the run directory of a challenger
MAX_HISTORY = 100


@dataclasses.dataclass(frozen=True)
class Target:
  """A model that a pointer names.

  Attributes:
    run: directory of the run.
    step: of its checkpoint.
    digest: of that checkpoint, see `digest_of`.
    promoted: time, for people.
  """

  run: str
  step: int
  digest: str
  promoted: str = ''


@dataclasses.dataclass(frozen=True)
class Pointer:
  """The content of a pointer file: what it names, and what it named before, the newest last."""

  target: Target
  history: tuple[Target, ...] = ()


def digest_of(workdir: Place, step: int) -> str:
  """Returns the SHA-256 of a checkpoint: of its manifest, which holds those of its files.

  Raises InputError if the run has no such whole checkpoint.
  """
  path = workdir / 'checkpoints' / str(step)
  try:
    return manifest.seal(manifest.read(path))
  except (OSError, ValueError) as error:
    raise InputError(f'{path}: expected a whole checkpoint: {error}') from None


def target_of(workdir: Place, step: int) -> Target:
  """Returns a checkpoint as a target, named by its absolute path."""
  where = absolute(workdir)
  return Target(str(where), step, digest_of(where, step), time.strftime('%Y-%m-%d %H:%M:%S'))


def is_pointer(path: str) -> bool:
  """Whether a path names a file, which a run directory never is."""
  return bool(path) and '://' not in path and local(path).is_file()


def read(path: str) -> Pointer:
  """Reads a pointer. Raises InputError if it is missing or is not one."""
  where = local(path)
  try:
    stored = read_json(where)
    history = tuple(Target(**t) for t in stored['history'])
    return Pointer(_checked(Target(**stored['target'])), history)
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise InputError(
      f'{path}: expected a pointer that `bmx promote` has written: {error}'
    ) from None


def _checked(target: Target) -> Target:
  texts = target.run, target.digest, target.promoted
  if not all(isinstance(t, str) for t in texts) or type(target.step) is not int:
    raise ValueError('expected a run, a step and a digest')
  return target


def promote(path: str, target: Target) -> Pointer:
  """Makes a pointer name a target; what it named becomes history.

  The file is replaced as a whole and is on disk (fsync) then: a kill leaves the old pointer or the
  new one.
  """
  old = read(path) if local(path).exists() else None
  history = (*old.history, old.target)[-MAX_HISTORY:] if old else ()
  return _write(local(path), Pointer(target, history))


def back(path: str) -> Pointer:
  """Makes a pointer name what it named before. Raises InputError without history."""
  old = read(path)
  if not old.history:
    raise InputError(f'{path}: expected an earlier model to return to; it has named one only')
  *history, target = old.history
  check(target)
  return _write(local(path), Pointer(target, tuple(history)))


def _write(path: pathlib.Path, pointer: Pointer) -> Pointer:
  write_json(path, dataclasses.asdict(pointer))
  return pointer


def check(target: Target) -> None:
  """Raises InputError unless the checkpoint of a target is there and unchanged."""
  if digest_of(place(target.run), target.step) != target.digest:
    raise InputError(f'{target.run}: checkpoint {target.step} differs from the one that was '
                     'promoted; promote it again')  # fmt: skip


def check_champion(path: str, found: dict[str, Any]) -> None:
  """Raises InputError if a gate has compared with another model than the pointer names."""
  if local(path).exists() and found.get('champion_digest') != read(path).target.digest:
    raise InputError(
      f'{path}: names {read(path).target.run}, and the gate has compared with '
      f'{found.get("champion")}; compare with {path}, or promote with --force'
    )


def check_gate(workdir: Place, target: Target) -> dict[str, Any]:
  """Returns the accepted gate.json of a target.

  Raises InputError if the run has none, if it is not accepted, or it is of another checkpoint.
  """
  path = workdir / GATE
  force = 'run bmx gate CHAMPION CHALLENGER --input=NEW, or promote with --force'
  try:
    found = dict(read_json(path))
  except (OSError, ValueError, TypeError) as error:
    reason = error if path.exists() else 'no such file'
    raise InputError(f'{path}: expected the result of a gate: {reason}; {force}') from None
  if found.get('accepted') is not True:
    raise InputError(f'{path}: the gate has refused this run; {force}')
  if found.get('digest') != target.digest:
    raise InputError(
      f'{path}: the gate has judged step {found.get("step")}, not this checkpoint of step '
      f'{target.step}; {force}'
    )
  return found
