"""Classes of a head that is read from a folder, against those of the data."""

from collections.abc import Iterable, Sequence

from bmx.adapt import hub
from bmx.core.errors import InputError
from bmx.runtime.storage import place
from bmx.train import datafile


def check_order(
  folder: str, run: bool, taken: Iterable[str], classes: Sequence[str], word: str = 'path'
) -> None:
  """Compares the order of classes where a head is read from a folder.

  Names are compared without case. Classes of other names are not compared.

  Args:
    folder: with the weights.
    run: the folder is a run of bmx, else a Hugging Face directory.
    taken: names of the parameters that are read.
    classes: of the data, by number; () without classes.
    word: of `init` that names the folder.

  Raises:
    InputError: the folder has the same classes in another order.
  """
  if not classes or not any('head' in name.split('/') for name in taken):
    return
  own = {name.casefold(): name for name in map(str, classes)}
  given = _classes_of(folder, run)
  there = [name.casefold() for name in given]
  if sorted(there) == sorted(own) and there != list(own):
    order = tuple(own[name] for name in there)
    fix = ', or start the head anew with --config.init.reinit=head' if word == 'path' else ''
    raise InputError(
      f'init.{word}={folder!r}: its outputs are the classes {tuple(given)}, those of the data are '
      f'{tuple(own.values())}: expected one order; set --config.data.classes="{order}"{fix}'
    )


def _classes_of(folder: str, run: bool) -> Sequence[str]:
  if not run:
    return hub.labels(folder)
  stored = datafile.read(place(folder))
  return [str(name) for name in stored.state.get('class_names', ())] if stored else ()
