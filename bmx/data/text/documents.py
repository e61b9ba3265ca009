"""Texts from files: plain, JSON lines, CSV, SQuAD's JSON, TFDS; or the source of this Python."""

import functools
import json
import logging
import os
import pathlib
import re
import sys
import sysconfig
from collections.abc import Sequence
from typing import Any

from bmx.core.errors import InputError, did_you_mean
from bmx.data.frames import frame_records, read_records
from bmx.data.records import LINE_END, Record, numbered_json_lines, read_text
from bmx.data.text.clean import clean, report
from bmx.data.text.steps import Step
from bmx.runtime.storage import Place, files, place

log = logging.getLogger('bmx')
RECORDS = ('.csv', '.tsv', '.parquet')  # one record a row, besides JSON lines
UNITS = ('file', 'paragraph', 'line')
VALID = 0.1  # the share of a text, its end, that is 'valid'


def documents(
  paths: Sequence[str] = (),
  field: str = 'text',
  unit: str = 'file',
  data_dir: str = '',
  steps: Sequence[Step] = (),
) -> list[str]:
  """Reads documents of all paths, in order, and cleans them by `steps`; logs what each removed.

  Args:
    paths: NAME.jsonl, NAME.csv and NAME.parquet (a document is the `field` of a record), NAME.json
      (SQuAD's format: a document is a paragraph), 'tfds:NAME/SPLIT', a folder of .txt files,
      anything else is plain text; () is the source of the installed Python's standard library.
    field: of a record that holds the text.
    unit: one document of a plain text is the 'file', a 'paragraph' (between empty lines), or a
      'line'.
    data_dir: of TFDS.
    steps: see `clean`.

  Raises:
    InputError: no such file, empty, not UTF-8 (file and offset), no such field, half of a
      surrogate pair (which JSON can hold and UTF-8 cannot) after all steps.
  """
  arguments = (tuple(paths), field, unit, data_dir, tuple(steps))
  try:
    hash(arguments)
  except TypeError:  # a step of the user's own
    return list(_documents(*arguments))
  return list(_kept(tuple(map(_stamp, paths)), *arguments))


def _stamp(path: str) -> tuple[int, ...]:
  """Returns time and size of a file, which differ once it has changed."""
  try:
    found = os.stat(path)
  except OSError:
    return ()
  return found.st_mtime_ns, found.st_size


@functools.lru_cache(maxsize=8)  # a recipe's splits read the same files
def _kept(_, *arguments):
  return _documents(*arguments)


def _documents(paths, field, unit, data_dir, steps):
  if unit not in UNITS:
    raise InputError(f'unit {unit!r} is not one of {", ".join(UNITS)}')
  if not paths:
    found = [p.read_text('utf-8', 'replace') for p in library_files()]
  else:
    found = [text for path in paths for text in read(path, field, unit, data_dir)]
  if steps:
    found, counts = clean(found, steps)
    log.info('%s', report(counts))
  return tuple(whole(text, f'document {n} of {describe(paths)}') for n, text in enumerate(found, 1))


def read(path: str, field: str = 'text', unit: str = 'file', data_dir: str = '') -> list[str]:
  """Reads the documents of one path, see `documents`."""
  return [text for _, text in located(path, field, unit, data_dir)]


def located(
  path: str, field: str = 'text', unit: str = 'file', data_dir: str = ''
) -> list[tuple[str, str]]:
  """Returns (place, such as 'FILE, line 7'; text) of the documents of one path."""
  if not path.startswith('tfds:') and place(path).is_dir():
    paths = [str(place(path) / name) for name in text_files(place(path))]
    return [found for file in paths for found in located(file, field, unit, data_dir)]
  if path.startswith('tfds:') or pathlib.Path(path).suffix.lower() in ('.jsonl', *RECORDS):
    return [(where, said(r, field, where)) for where, r in records(path, data_dir)]
  if path.lower().endswith('.json'):
    texts = [p['context'] for _, p in squad_paragraphs(path)]
    return [(f'{path}, paragraph {n}', text) for n, text in enumerate(texts, 1)]
  text = read_text(place(path))
  parts = {
    'file': lambda: [text],
    'line': lambda: LINE_END.split(text),
    'paragraph': lambda: _paragraphs(text),
  }
  found = [(f'{path}, {unit} {n}', t) for n, t in enumerate(parts[unit](), 1) if t.strip()]
  if not found:
    raise InputError(f'{path} is empty')
  return found


def _paragraphs(text: str) -> list[str]:
  return re.split(r'(?>\r\n|\n|\r)(?:[ \t]*(?>\r\n|\n|\r))+', text)


def given_records(given: Any) -> list[tuple[str, Record]]:
  """Returns (origin, record) of records in memory, see `bmx.data.frames.frame_records`."""
  found = enumerate(frame_records(given), 1)
  return [(f'the given records, record {n}', r) for n, r in found]


def records(path: str, data_dir: str = '') -> list[tuple[str, Record]]:
  """Returns (origin, record) of .jsonl, .csv, .tsv, .parquet, 'tfds:NAME/SPLIT' or a folder.

  A folder holds one folder for each class, with a .txt file for each text: {'text': the file,
  'label': the folder's name}.
  """
  if path.startswith('tfds:'):
    return _tfds(path, data_dir)
  file = place(path)
  if file.is_dir():
    return _folder(file)
  if file.suffix.lower() == '.jsonl':
    return [(f'{path}, line {n}', r) for n, r in numbered_json_lines(file)]
  if file.suffix.lower() in RECORDS:
    return [(f'{path}, record {n}', r) for n, r in enumerate(read_records(file), 1)]
  raise InputError(
    f'{path}: records are read from .jsonl, {", ".join(RECORDS)}, tfds:NAME/SPLIT or a folder'
  )


def _folder(folder: Place) -> list[tuple[str, Record]]:
  names = text_files(folder)
  loose = [name for name in names if '/' not in name]
  if loose:
    raise InputError(f'{folder / loose[0]}: expected a folder for each class, not a file')
  return [
    (str(folder / name), {'text': read_text(folder / name), 'label': name.partition('/')[0]})
    for name in names
  ]


def text_files(folder: Place) -> list[str]:
  """Returns the names of all .txt files below a folder. Raises InputError without any."""
  found = [name for name in files(folder) if name.lower().endswith('.txt')]
  if not found:
    raise InputError(f'{folder}: expected .txt files in it, or in its folders')
  return found


def _tfds(path: str, data_dir: str) -> list[tuple[str, Record]]:
  from bmx.data.tfds import tfds_source

  name, _, split = path.removeprefix('tfds:').rpartition('/')  # a name may be 'glue/sst2'
  if not name:
    raise InputError(f'{path}: write tfds:NAME/SPLIT')
  source, _ = tfds_source(name, split, data_dir)
  if not len(source):
    raise InputError(f'{path} is empty')
  found = source.__getitems__(list(range(len(source))))
  return [
    (f'{path}, example {i}', {k: _plain(v) for k, v in r.items()}) for i, r in enumerate(found)
  ]


def _plain(value: Any) -> Any:
  """Converts texts and numbers to Python's types; keeps other values of TFDS (images)."""
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:
      return value
  return value.item() if getattr(value, 'ndim', None) == 0 else value


def whole(text: str, where: str) -> str:
  """Returns the text. Raises InputError if UTF-8 cannot hold it."""
  try:
    text.encode()
  except UnicodeEncodeError as error:
    raise InputError(
      f'{where} holds {text[error.start]!r}, half of a surrogate pair, at character {error.start}; '
      'in documents the step bmx.data.text.clean:Unicode takes it away'
    ) from None
  return text


def said(record: Record, field: str, where: str) -> str:
  """Returns the text of a field. Raises InputError if the field holds no text."""
  value = record.get(field)
  if not isinstance(value, str):
    what = f'; it is {value!r:.40}' if field in record else did_you_mean(field, record)
    raise InputError(f'{where}: no text under {field!r}{what}')
  return value


def squad_paragraphs(path: str) -> list[tuple[str, dict[str, Any]]]:
  """Reads (title, paragraph with 'context' and 'qas') of a file in SQuAD's format.

  Raises InputError if the file has another format.
  """
  text = read_text(place(path))
  try:
    articles = json.loads(text)['data']
    found = [(a.get('title', ''), p) for a in articles for p in a['paragraphs']]
    right = all(isinstance(p['context'], str) and isinstance(p['qas'], list) for _, p in found)
  except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
    right, found = False, []
  if not right:
    raise InputError(f"{path} is not in SQuAD's format: data, paragraphs, context, qas")
  if not found:
    raise InputError(f'{path} is empty')
  return found


def library_files() -> list[pathlib.Path]:
  """Returns the top-level modules of the installed Python's standard library, by name.

  Every machine has this text. It differs between versions of Python, so its SHA-256 is recorded.
  """
  return sorted(pathlib.Path(sysconfig.get_paths()['stdlib']).glob('*.py'))


def describe(paths: Sequence[str]) -> str:
  """Returns the origin of documents, for messages and metadata."""
  library = f'the standard library of Python {sys.version.split()[0]}'
  return ', '.join(paths) or library


def part_of(items: Any, split: str, what: str) -> Any:
  """Splits a list or an array: 'train' is the first 90 %, 'valid' the rest, 'all' both.

  Raises InputError if the part is empty.
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
