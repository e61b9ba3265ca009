"""Rows of predictions as a file: JSON lines, CSV or Parquet, by its suffix."""

import csv
import itertools
import pathlib
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from bmx.core.errors import InputError
from bmx.runtime.files import replacing, to_json
from bmx.runtime.storage import Place

SUFFIXES = ('.jsonl', '.csv', '.parquet')


def check_output(path: pathlib.Path) -> None:
  """Raises InputError unless a file can be written: another suffix, it exists, or has no folder."""
  if path.suffix not in SUFFIXES:
    raise InputError(f'--output={path}: expected a name that ends with {", ".join(SUFFIXES)}')
  if path.exists():
    raise InputError(f'--output={path}: expected a new file; remove it, or choose another name')
  if not path.parent.is_dir():
    raise InputError(f'--output={path}: expected a folder that exists; create {path.parent}')


def unique(path: Place) -> Place:
  """Returns a path that does not exist: NAME.jsonl, NAME-2.jsonl, ..."""
  names = (path.with_name(f'{path.stem}-{n}{path.suffix}') for n in itertools.count(2))
  return next(p for p in itertools.chain([path], names) if not p.exists())


def write_rows(path: Place, rows: Iterable[Mapping[str, Any]]) -> int:
  """Writes rows, and replaces the file when all are written; returns how many they are.

  Args:
    path: .jsonl; .csv, where a mapping in a row becomes columns 'NAME.KEY' and a list JSON;
      .parquet.
    rows: JSON objects of the same keys.
  """
  if path.suffix == '.parquet' and isinstance(path, pathlib.Path):
    return _write_parquet(path, rows)
  with replacing(path) as file:
    count = 0
    if path.suffix == '.csv':
      return _write_csv(file, rows)
    for row in rows:
      file.write(to_json(row) + '\n')
      count += 1
    return count


def _write_csv(file: Any, rows: Iterable[Mapping[str, Any]]) -> int:
  writer, count = csv.writer(file, lineterminator='\n'), 0
  names: list[str] = []
  for row in rows:
    cells = flat(row)
    if not names:
      names = list(cells)
      writer.writerow(names)
    writer.writerow([cells.get(name, '') for name in names])
    count += 1
  return count


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the cells of a row of CSV.

  >>> flat({'row': 1, 'probability': {'no': 0.25, 'yes': 0.75}, 'words': ['a', 'b']})
  {'row': 1, 'probability.no': 0.25, 'probability.yes': 0.75, 'words': '["a", "b"]'}
  """
  result: dict[str, Any] = {}
  for name, value in row.items():
    if isinstance(value, Mapping):
      result |= {f'{name}.{key}': inner for key, inner in value.items()}
    else:
      result[name] = to_json(value) if isinstance(value, list | tuple) else value
  return result


def _write_parquet(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> int:
  import pyarrow
  import pyarrow.parquet

  table = pyarrow.Table.from_pylist([dict(row) for row in rows])
  part = path.with_name(f'{path.name}.{secrets.token_hex(4)}.part')
  try:
    pyarrow.parquet.write_table(table, part)
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)
  return table.num_rows
