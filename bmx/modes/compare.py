"""Mode `compare`: curves, results and differing words of several runs, in one page."""

import os
import pathlib
import sys
from collections.abc import Sequence

from bmx.core import errors
from bmx.core.paths import local
from bmx.core.terminal import printable
from bmx.modes import Request
from bmx.runtime.files import numbers, read_json, replacing
from bmx.runtime.report import compare
from bmx.runtime.report.compare import Compared
from bmx.runtime.writer import read_metrics
from bmx.train.rundir import check_links, flatten, read_config

NAME = 'compare.html'


def run(request: Request) -> int:
  """Prints results and differing words, and writes --output, by default ./compare.html."""
  folders = [local(name) for name in request.runs]
  if len(folders) < 2:
    inside = [f'{f}/*' for f in folders if len([*f.glob('*/config.json')]) > 1]
    command = ' '.join(['bmx compare', *(inside or ['RUN RUN ...'])])
    raise errors.InputError(f'compare: expected at least two run directories; {command}')
  runs = [read(folder, name) for folder, name in zip(folders, names(folders), strict=True)]
  path = local(request.output or NAME)
  if path.suffix != '.html' or not path.parent.is_dir():
    raise errors.InputError(
      f'--output={path}: expected a name that ends with .html, in a folder that exists'
    )
  _check_ours(path)
  with replacing(path) as file:
    file.write(compare.page(runs))
  sys.stdout.write(printable(compare.text(runs)) + f'\npage  {path.absolute()}\n')
  return errors.DONE


def read(folder: pathlib.Path, name: str) -> Compared:
  """Reads the files of a run.

  Raises InputError if the folder is not a run directory.
  """
  check_links(folder)
  config = read_config(folder)['config']
  try:
    summary = numbers(read_json(folder / 'summary.json'))
  except (OSError, ValueError, RecursionError):
    summary = {}
  lines = read_metrics(folder / 'metrics.jsonl')
  words = flatten(config)
  return Compared(name, lines, config, words, summary if isinstance(summary, dict) else {})


def names(folders: Sequence[pathlib.Path]) -> list[str]:
  """Short unique names of folders: without the folders that all share.

  Raises InputError if one is named twice.

  >>> names([pathlib.Path('runs/a/1'), pathlib.Path('runs/b')])
  ['a/1', 'b']
  """
  absolute = [os.path.abspath(folder) for folder in folders]
  twice = [str(f) for f, path in zip(folders, absolute, strict=True) if absolute.count(path) > 1]
  if twice:
    raise errors.InputError(
      f'compare: expected different run directories, {twice[0]} is named twice'
    )
  shared = os.path.commonpath(absolute)
  return [os.path.relpath(path, shared) if path != shared else path for path in absolute]


def _check_ours(path: pathlib.Path) -> None:
  """Raises InputError if the page would replace a file that is not a comparison."""
  if path.is_symlink() or (path.exists() and not _is_comparison(path)):
    raise errors.InputError(f'{path.absolute()} is not a comparison of bmx; move it away')


def _is_comparison(path: pathlib.Path) -> bool:
  try:
    with path.open(encoding='utf-8', errors='replace') as file:
      return compare.GENERATOR in file.read(2000)
  except OSError:
    return False
