"""Files of a data set: their names, their content, and those that cannot be read."""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np

from bmx.core.errors import InputError, did_you_mean
from bmx.data.frames import JSON_LINES, PARQUET, read_records
from bmx.data.records import Record
from bmx.runtime.storage import Place, files

log = logging.getLogger('bmx')
THREADS = max(2, os.cpu_count() or 1)  # that decode
TABLES = ('.csv', '.tsv', *JSON_LINES, *PARQUET)
UNREADABLE = ('refuse', 'skip')
SHOWN = 3  # names in a message


@dataclasses.dataclass(frozen=True)
class Files:
  """Files below a folder.

  Attributes:
    root: folder that the names are relative to.
    names: of the files.
    source: for messages.
  """

  root: Place
  names: tuple[str, ...]
  source: str

  def path_of(self, name: str) -> str:
    """Returns the whole path of a file."""
    return str(self.root / name)

  def read(self, name: str) -> bytes:
    """Reads a file. Raises InputError if that fails."""
    try:
      return (self.root / name).read_bytes()
    except OSError as error:
      reason = error.strerror or str(error)
      fix = f'cannot be read ({reason}); remove or replace it'
      raise InputError(f'{self.path_of(name)} {fix}') from None

  def size_of(self, name: str) -> int:
    """Returns the size of a file, in bytes; 0 for one that is missing."""
    path = self.root / name
    if not path.is_file():
      return 0
    return path.stat().st_size if isinstance(path, pathlib.Path) else path.stat().length


def hidden(name: str) -> bool:
  """Whether a name, or a folder in it, is hidden."""
  return any(part.startswith(('.', '__MACOSX')) for part in name.split('/'))


def names_below(root: Place, suffixes: Sequence[str], kind: str, warn: bool) -> list[str]:
  """Returns the names of all files of a kind below a folder, in order, without hidden ones.

  Args:
    root: the folder.
    suffixes: of the files, in lower case.
    kind: of the files, for messages, such as 'images'.
    warn: logs the other files in it.

  Raises:
    InputError: a folder without such files.
  """
  every = [name for name in files(root) if not hidden(name)]
  found = [name for name in every if name.lower().endswith(tuple(suffixes))]
  others = [name for name in every if not name.lower().endswith(tuple(suffixes))]
  if not found:
    raise InputError(f'{root}: expected {kind} ({", ".join(suffixes)}) in it, or in its folders')
  if others and warn:
    shown = ', '.join(others[:SHOWN]) + (', ...' if len(others) > SHOWN else '')
    log.warning('%s: left out, as names of %s end otherwise: %d files, %s', root, kind,
                len(others), shown)  # fmt: skip
  return found


def file_records(path: Place, file: str, kind: str) -> list[Record]:
  """Returns the records of a table of files.

  Args:
    path: of the table.
    file: column with the path of a file, relative to the table.
    kind: of a file, for messages, such as 'an image'.

  Raises:
    InputError: a table that cannot be read, a record without a path.
  """
  records = read_records(path)
  for number, record in enumerate(records, 1):
    if not record.get(file):
      extra = did_you_mean(file, record) if file not in record else ''
      raise InputError(
        f'{path}, record {number}: expected the path of {kind} in {file!r}{extra}; set '
        '--data.file=COLUMN'
      )
  return records


def check_unreadable(unreadable: str) -> None:
  """Raises InputError unless the word `unreadable` has one of its values."""
  if unreadable not in UNREADABLE:
    raise InputError(f'unreadable={unreadable!r}: expected one of {", ".join(UNREADABLE)}')


def readable(
  call: Callable[[int], object], size: int, pool: Executor, unreadable: str, source: str, kind: str
) -> np.ndarray:
  """Calls a function of the number of each file, by threads.

  Args:
    call: raises InputError for a file that cannot be read.
    size: number of files.
    pool: of threads.
    unreadable: 'refuse' files that cannot be read, or 'skip' them and log their errors.
    source: of the files, for messages.
    kind: of a file, for messages, such as 'an image'.

  Returns:
    Numbers of the files that can be read, int64 [n].

  Raises:
    InputError: a file that cannot be read where they are refused; none can be read.
  """

  def error_of(number: int) -> str:
    try:
      call(number)
    except InputError as error:
      return str(error)
    return ''

  errors = list(pool.map(error_of, range(size)))
  failed = [error for error in errors if error]
  if failed and unreadable == 'refuse':
    more = f'; and {len(failed) - 1} further files' if len(failed) > 1 else ''
    raise InputError(f'{failed[0]}{more}')
  for error in failed:
    log.warning('skipped: %s', error)
  if len(failed) == size:
    raise InputError(f'{source}: none of {size} files can be read as {kind}')
  return np.array([i for i, error in enumerate(errors) if not error], np.int64)
