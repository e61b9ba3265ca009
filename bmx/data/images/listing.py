"""Names and classes of the images of a folder or a table."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bmx.core.errors import InputError
from bmx.data.arrays import split_indices
from bmx.data.classes import class_names, ordered_names
from bmx.data.files import TABLES, Files, file_records, hidden, names_below
from bmx.data.images.pictures import SUFFIXES
from bmx.data.records import no_file
from bmx.runtime.storage import Place, place

SPLITS = ('all', 'train', 'valid', 'test')
FOLDERS = {'train': 'train', 'valid': 'valid', 'val': 'valid', 'validation': 'valid',
           'test': 'test'}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Listing(Files):
  """Files of images and their classes.

  Attributes:
    root: folder that the names are relative to.
    names: of the files.
    source: for messages.
    labels: class of each file; None without one.
    class_names: in the order of the numbers of classes; () where no file has a class.
  """

  labels: tuple[str | None, ...]
  class_names: tuple[str, ...]

  def take(self, indices: np.ndarray) -> 'Listing':
    """Returns the listing of some of the files."""
    names, labels = ([values[i] for i in indices] for values in (self.names, self.labels))
    return dataclasses.replace(self, names=tuple(names), labels=tuple(labels))


def listing(
  path: str,
  split: str = 'all',
  holdout: float = 0.0,
  file: str = 'file',
  label: str = 'label',
  classes: Sequence[str] = (),
  known: Sequence[str] = (),
  predicted: bool = False,
) -> Listing:
  """Lists images.

  Args:
    path: of a folder, a table or an image, see `folder.images`.
    split: 'all', 'train', 'valid' or 'test'.
    holdout: share of 'valid', unless there is a folder for it.
    file: column of a table with the path of an image.
    label: column of a table with the class.
    classes: the wanted order of names; () is sorted.
    known: classes of the training data; () where these are the training data.
    predicted: the images are predicted: they need no classes, and folders may have any names.

  Raises:
    InputError: no image, a class without images, classes that are not `known`, no such split.
  """
  if split not in SPLITS:
    raise InputError(f'split={split!r}: expected one of {", ".join(SPLITS)}')
  if not path:
    raise InputError('data.path: expected a folder of images, such as --data.path=photos')
  source, part = place(path), split
  if source.is_dir():
    every = image_names(source, warn=predicted or not known)
    parts = _parts(every)
    part = part if not parts or _without(parts, split) else 'all'
    found = _folder(source, parts, every, split, predicted)
    root = source
  elif source.suffix.lower() in TABLES:
    root, found = source.parent, _table(source, file, label)
  elif source.is_file():
    root, found = source.parent, [(source.name, None)]
  else:
    raise no_file(source)
  if part == 'test':
    raise InputError(f"split='test': expected a folder test beside train in {path}; use a holdout, "
                     'or name the folder of the test images')  # fmt: skip
  labels = [name for _, name in found]
  names = ordered_names(class_names(labels), classes, {'class_names': known} if known else None)
  if predicted and any(name not in names for name in labels):
    labels = [None] * len(found)
  _check_classes(root, found, labels, names, predicted)
  chosen = split_indices(len(found), part, holdout, ('all', 'train', 'valid'))
  every = Listing(root, tuple(f for f, _ in found), str(path), tuple(labels), names)
  return every.take(chosen)


def _folders(root: Place) -> list[str]:
  """Returns the names of the folders in a folder, without hidden ones."""
  return sorted(p.name for p in root.iterdir() if p.is_dir() and not hidden(p.name))


def _parts(names: Sequence[str]) -> list[str]:
  """Returns the folders of images that are parts of a data set; [] where folders are classes."""
  folders = sorted({name.partition('/')[0] for name in names if '/' in name})
  return folders if 'train' in folders and all(name in FOLDERS for name in folders) else []


def _without(parts: Sequence[str], split: str) -> bool:
  """Whether a split has no folder, or is train without the share that is held out."""
  kinds = {FOLDERS[name] for name in parts}
  return split not in ('all', *kinds) or (split == 'train' and 'valid' not in kinds)


def _folder(
  root: Place, parts: Sequence[str], every: Sequence[str], split: str, predicted: bool
) -> list[tuple[str, str | None]]:
  """Returns (name, class) of the images of a split, in order of their names.

  Args:
    root: the folder.
    parts: folders of its splits; () where its folders are classes.
    every: names of all its images.
    split: that is read.
    predicted: folders may have any names.
  """
  names, depth = list(every), 2 if parts else 1
  if parts and split != 'all':
    wanted = 'train' if split == 'valid' and _without(parts, split) else split
    names = [n for n in names if FOLDERS.get(n.partition('/')[0]) == wanted]
  if not predicted:
    _check_folders(root, parts, names, every)
  folders = [name.split('/')[:-1] for name in names]
  return [
    (name, above[depth - 1] if len(above) >= depth else None)
    for name, above in zip(names, folders, strict=True)
  ]


def _check_folders(
  root: Place, parts: Sequence[str], names: Sequence[str], every: Sequence[str]
) -> None:
  """Raises InputError for an image that is in no folder of a class, and for an empty folder."""
  depth = 2 if parts else 1
  for name in names:
    if name.count('/') < depth:
      raise InputError(f'{root / name}: expected a folder for each class, not a file')
  inner = {f'{p}/{c}' for p in parts for c in _folders(root / p)} if parts else _folders(root)
  for folder in sorted({*inner} - {'/'.join(n.split('/')[:depth]) for n in every}):
    raise InputError(
      f'{root / folder}: expected images in the folder of a class; add some, or remove it'
    )


def image_names(root: Place, warn: bool) -> list[str]:
  """Returns the names of all images below a folder, in order, see `files.names_below`."""
  return names_below(root, SUFFIXES, 'images', warn)


def _table(path: Place, file: str, label: str) -> list[tuple[str, str | None]]:
  """Returns (name, class) of the images of a table."""
  records = file_records(path, file, 'an image')
  value = lambda cell: None if cell in (None, '') else str(cell)
  return [(str(record[file]), value(record.get(label))) for record in records]


def _check_classes(
  root: Place,
  found: Sequence[tuple[str, str | None]],
  labels: Sequence[str | None],
  names: Sequence[str],
  predicted: bool,
) -> None:
  """Raises InputError for an image whose class is missing or unknown, and for one class alone."""
  if predicted:
    return
  for file, name in found:
    if name not in names:
      what = f'class {name!r}' if name else 'no class'
      raise InputError(
        f'{root / file} has {what}: expected one of {", ".join(names)}, the classes of the '
        'training data'
      )
  if len(names) < 2:
    raise InputError(f'{root}: expected images of at least two classes, found {", ".join(names)}')
