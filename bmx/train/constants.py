"""Constant collections: frozen and teacher weights, kept once per run beside the checkpoints.

    WORKDIR/constants/NAME/                the collection, as Orbax writes it, under its own name
    WORKDIR/constants/NAME/manifest.json   SHA-256 of every file; digest of the arrays

Checkpoints hold the digest instead of the arrays. The collections are on disk (fsync) before the
first checkpoint.
"""

import logging
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp

from bmx.core import tree
from bmx.core.errors import InputError, Stop
from bmx.core.types import Variables
from bmx.runtime import storage
from bmx.runtime.processes import anywhere
from bmx.runtime.storage import Place
from bmx.train import manifest

log = logging.getLogger('bmx')
FOLDER = 'constants'


def save(workdir: Place, collections: Variables) -> dict[str, str]:
  """Writes constant collections where the run does not hold them yet.

  Collective: every process must call.

  Returns:
    Digest of each collection, by name.

  Raises:
    Stop: they cannot be written.
  """
  return {name: _save(workdir / FOLDER / name, value) for name, value in collections.items()}


def _save(path: Place, collection: Any) -> str:
  digest = tree.digest(collection)
  there = _digest(path) == digest and not manifest.damage(path)
  if not anywhere(not there):
    return digest
  first = jax.process_index() == 0
  try:
    if first and path.exists():
      storage.remove_tree(path, first=(manifest.MANIFEST,))
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as saver:
      target = tree.nested(tree.named({path.name: collection}))
      saver.save(path, args=ocp.args.StandardSave(target))
    manifest.write_part(path, jax.process_index())
    if first:
      leaves = tree.signature(collection)
      manifest.join(path, jax.process_count(), leaves=leaves, digest=digest)
  except (OSError, ValueError) as error:  # Orbax raises ValueError where a write is refused
    raise Stop(f'{path} cannot be written: {error}') from error
  return digest


def check(workdir: Place, expected: Mapping[str, str], abstract: Variables) -> None:
  """Compares the constant collections of a run with what a checkpoint and a task expect.

  Collective: every process must call; each hashes a share of the files.

  Args:
    workdir: the run directory.
    expected: name -> digest, from the manifest of a checkpoint.
    abstract: name -> collection, of the task.

  Raises:
    InputError: another collection, another digest, another shape, or a damaged file.
  """
  if set(expected) != set(abstract):
    raise InputError(
      f'{workdir / "checkpoints"}: expected the constant collections {sorted(abstract)}, found '
      f'{sorted(expected)}; give the task that the run was made with'
    )
  share = jax.process_index(), jax.process_count()
  for name, digest in expected.items():
    path = workdir / FOLDER / name
    bad = manifest.damage(path, share)
    if anywhere(bool(bad)):
      raise InputError(
        f'{path} is damaged: {"; ".join(bad[:8]) or "see WORKDIR/logs"}; copy it from the original '
        'run, or start a new run'
      )
    if _digest(path) != digest:
      raise InputError(
        f'{path}: expected the arrays with the digest {digest[:12]} that the checkpoint names, '
        f'found {_digest(path)[:12]}; they are of another run'
      )
    lines = tree.difference(manifest.read(path)['leaves'], tree.signature(abstract[name]))
    if lines:
      raise InputError(f'{path} does not fit the model:\n  ' + '\n  '.join(lines[:40]))


def load(workdir: Place, abstract: Variables) -> dict[str, Any]:
  """Returns constant collections by name, each array placed as `abstract` is; see `check`."""
  workdir = storage.absolute(workdir)  # Orbax reads no relative path
  return {name: _load(workdir / FOLDER / name, value) for name, value in abstract.items()}


def _load(path: Place, abstract: Any) -> Any:
  target = tree.nested(tree.named({path.name: abstract}))
  try:
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
      found = tree.named(reader.restore(path, args=ocp.args.StandardRestore(target)))
  except Exception as error:  # Orbax raises many kinds
    raise InputError(f'{path} cannot be read: {error}') from error
  return tree.map_named(lambda name, _: found[f'{path.name}/{name}'], abstract)


def _digest(path: Place) -> str:
  """The digest in a manifest; '' without one."""
  try:
    return str(manifest.read(path)['digest'])
  except (OSError, ValueError, KeyError, TypeError):
    return ''
