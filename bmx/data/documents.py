"""Texts from files: plain, JSON lines, CSV, SQuAD's JSON, TFDS; or the source of this Python."""

import functools
import json
import logging
import pathlib
import re
import sys
import sysconfig
from collections.abc import Sequence
from typing import Any

from bmx.core.errors import InputError, did_you_mean
from bmx.data.clean import Step, clean, report
from bmx.data.records import Record, numbered_json_lines, read_csv, read_text

log = logging.getLogger('bmx')
UNITS = ('file', 'paragraph', 'line')
SPLITS = ('train', 'valid', 'all')
VALID = 0.1  # the share of a text, its end, that is 'valid'


def documents(
  paths: Sequence[str] = (),
  field: str = 'text',
  unit: str = 'file',
  data_dir: str = '',
  steps: Sequence[Step] = (),
) -> list[str]:
  """Documents of all paths, in order, cleaned by `steps`; what each step removed is logged.

  Args:
    paths: NAME.jsonl and NAME.csv (a document is the `field` of a record), NAME.json (SQuAD's
      format: a document is a paragraph), 'tfds:NAME/SPLIT', anything else is plain text; () is the
      source of the installed Python's standard library.
    unit: what one document of a plain text is: the 'file', a 'paragraph' (between empty lines), or
      a 'line'.

  Raises InputError: no such file, empty, not UTF-8 (file and offset), no such field.
  """
  return list(_documents(tuple(paths), field, unit, data_dir, tuple(steps)))


@functools.lru_cache(maxsize=8)  # a recipe's splits read the same files
def _documents(paths, field, unit, data_dir, steps):
  if unit not in UNITS:
    raise InputError(f'unit {unit!r} is not one of {", ".join(UNITS)}')
  if not paths:
    found = [p.read_text(errors='replace') for p in library_files()]
  else:
    found = [text for path in paths for text in read(path, field, unit, data_dir)]
  if steps:
    found, counts = clean(found, steps)
    log.info('%s', report(counts))
  return tuple(found)


def read(path: str, field: str = 'text', unit: str = 'file', data_dir: str = '') -> list[str]:
  """The documents of one path, see `documents`."""
  if path.startswith('tfds:') or pathlib.Path(path).suffix in ('.jsonl', '.csv'):
    return [_field(r, field, where) for where, r in records(path, data_dir)]
  if path.endswith('.json'):
    return [p['context'] for _, p in squad_paragraphs(path)]
  text = read_text(pathlib.Path(path))
  parts = {'file': lambda: [text], 'line': text.splitlines, 'paragraph': lambda: _paragraphs(text)}
  found = [t for t in parts[unit]() if t.strip()]
  if not found:
    raise InputError(f'{path} is empty')
  return found


def _paragraphs(text: str) -> list[str]:
  return re.split(r'\n[ \t]*\n', text)


def records(path: str, data_dir: str = '') -> list[tuple[str, Record]]:
  """(where it stands, the record) of .jsonl, .csv or 'tfds:NAME/SPLIT'."""
  if path.startswith('tfds:'):
    return _tfds(path, data_dir)
  file = pathlib.Path(path)
  if file.suffix == '.jsonl':
    return [(f'{path}, line {n}', r) for n, r in numbered_json_lines(file)]
  if file.suffix == '.csv':
    return [(f'{path}, record {n}', r) for n, r in enumerate(read_csv(file), 1)]
  raise InputError(f'{path}: records are read from .jsonl, .csv or tfds:NAME/SPLIT')


def _tfds(path: str, data_dir: str) -> list[tuple[str, Record]]:
  from bmx.data.source import tfds_source

  name, slash, split = path.removeprefix('tfds:').partition('/')
  if not slash:
    raise InputError(f'{path}: write tfds:NAME/SPLIT')
  source, _ = tfds_source(name, split, data_dir)
  found = source.__getitems__(list(range(len(source))))
  plain = lambda v: v.decode() if isinstance(v, bytes) else v.item() if hasattr(v, 'item') else v
  return [
    (f'{path}, example {i}', {k: plain(v) for k, v in r.items()}) for i, r in enumerate(found)
  ]


def _field(record: Record, field: str, where: str) -> str:
  if not isinstance(record.get(field), str):
    near = did_you_mean(field, record)
    raise InputError(f'{where}: no text under {field!r}{near}; it has {sorted(record)}')
  return record[field]


def squad_paragraphs(path: str) -> list[tuple[str, dict[str, Any]]]:
  """(title, paragraph with 'context' and 'qas') of a file in SQuAD's format.

  Raises InputError where it is not one.
  """
  try:
    articles = json.loads(read_text(pathlib.Path(path)))['data']
    found = [(a.get('title', ''), p) for a in articles for p in a['paragraphs']]
    if all(isinstance(p['context'], str) and isinstance(p['qas'], list) for _, p in found):
      return found
  except (ValueError, KeyError, TypeError, AttributeError):
    pass
  raise InputError(f"{path} is not in SQuAD's format: data, paragraphs, context, qas")


def library_files() -> list[pathlib.Path]:
  """The top-level modules of the installed Python's standard library, in the order of their names.

  Text that every machine has. It differs between versions of Python, so its SHA-256 is recorded.
  """
  return sorted(pathlib.Path(sysconfig.get_paths()['stdlib']).glob('*.py'))


def describe(paths: Sequence[str]) -> str:
  library = f'the standard library of Python {sys.version.split()[0]}'
  return ', '.join(paths) or library


def part_of(items: Any, split: str, what: str) -> Any:
  """'train' is the first 90 %, 'valid' the rest, 'all' both; of a list or an array.

  Raises InputError where nothing is in it.
  """
  edge = int(len(items) * (1 - VALID))
  parts = {'train': items[:edge], 'valid': items[edge:], 'all': items}
  if split not in parts:
    raise InputError(f'unknown split {split!r}; known: {", ".join(parts)}')
  if not len(items):
    raise InputError(f'{what} is empty')
  if not len(parts[split]):
    raise InputError(f'{what}: {len(items)} are too few for a split {split!r}')
  return parts[split]
