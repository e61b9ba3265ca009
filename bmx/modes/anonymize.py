"""Mode `anonymize`: personal data in a text or a table, replaced and counted by type."""

import collections
import contextlib
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bmx.adapt.tagging import Tagger
from bmx.core import errors
from bmx.core.errors import InputError
from bmx.core.paths import local
from bmx.core.terminal import printable
from bmx.data.frames import PARQUET, read_records
from bmx.data.records import read_json_lines, read_text
from bmx.modes import Request
from bmx.privacy import tables
from bmx.privacy.anonymize import NAMES, TYPES, Anonymizer, redactor, strings_of, with_strings
from bmx.privacy.pseudonyms import Replacement
from bmx.runtime.files import replacing
from bmx.runtime.rows import check_output, write_rows

Row = dict[str, Any]
TABLES = ('.csv', '.tsv', '.jsonl', *PARQUET)
COLUMN_WORDS = ('drop', 'pseudonyms', 'ranges', 'dates', 'prefixes', 'quasi', 'sensitive')


def anonymizer_of(words: Mapping[str, Any]) -> Anonymizer:
  """Returns the anonymizer that the config words `anonymize` describe.

  Raises InputError for a bad value, or a tagger that cannot be read.
  """
  tagger = Tagger(words['tagger']) if words['tagger'] else None
  made = Anonymizer(words['types'], words['form'], words['key'], tagger)
  if tagger is not None:
    tagger.check()
  return made


def capture_hook(config: Mapping[str, Any]) -> Callable[[dict[str, Any]], Row] | None:
  """Returns what captured events pass through before they are written; None unless asked for.

  Raises InputError for a bad word of `anonymize`.
  """
  if not config['capture']['anonymize']:
    return None
  return redactor(anonymizer_of(config['anonymize']))


def run(request: Request) -> int:
  """Writes --output, and prints a line for each type of what was replaced."""
  if not request.input:
    raise InputError('anonymize: expected a file; bmx anonymize FILE')
  words = dict(request.config['anonymize'])
  source = local(request.input)
  output = _output(source, request.output)
  anonymizer = anonymizer_of(words)
  if source.suffix.lower() in TABLES:
    lines = _table(source, output, words, anonymizer)
  else:
    given = [w for w in (*COLUMN_WORDS, 'columns', 'k', 'l') if words[w]]
    if given:
      raise InputError(
        f'anonymize.{given[0]}: expected a table ({", ".join(TABLES)}), not {source}'
      )
    texts, counts = anonymizer.anonymize([read_text(source)])
    with replacing(output) as file:
      file.write(texts[0])
    lines = _counted(counts)
  width = max(len(name) for name, _ in lines)
  for name, number in lines:
    sys.stdout.write(printable(f'{name:{width}}  {number:>9,}') + '\n')
  if anonymizer.tagger is None and not anonymizer.types:
    sys.stdout.write(f'not looked for without --tagger=RUN: {", ".join(NAMES)}\n')
  sys.stdout.write(printable(f'written to {output}') + '\n')
  return errors.DONE


def _output(source: pathlib.Path, output: str) -> pathlib.Path:
  """The file to write, by default beside the input. Raises InputError if it exists."""
  table = source.suffix.lower() in TABLES
  own = {'.tsv': '.csv', '.pq': '.parquet'}.get(source.suffix.lower(), source.suffix)
  path = local(output) if output else source.with_name(f'{source.stem}.anonymized{own}')
  if table:
    check_output(path)
  elif path.exists() or not path.parent.is_dir():
    raise InputError(f'--output={path}: expected a new file, in a folder that exists')
  return path


def _counted(counts: Mapping[str, int]) -> list[tuple[str, int]]:
  return [(n, counts[n]) for n in TYPES if counts.get(n)] or [('replaced', 0)]


def _table(
  source: pathlib.Path, output: pathlib.Path, words: Mapping[str, Any], anonymizer: Anonymizer
) -> list[tuple[str, int]]:
  """Writes the anonymized table; returns names and numbers of what was done."""
  nested = source.suffix.lower() == '.jsonl'
  rows = read_json_lines(source) if nested else read_records(source)
  columns = list(dict.fromkeys(name for row in rows for name in row))
  plan = _Plan(words, columns)
  rows = [{c: row.get(c) for c in columns} if plan.named else row for row in rows]
  made, counts = _texts(rows, plan.texts, anonymizer)
  made = tables.generalize(made, plan.ranges, plan.dates, plan.prefixes)
  lines = [(f'{c}: generalized', _filled(rows, c)) for c in plan.general]
  if plan.pseudonyms:
    replacement = Replacement('pseudonym', words['key'])
    for row in made:
      row |= {c: replacement(c, str(row[c])) for c in plan.pseudonyms if row[c] not in (None, '')}
    lines += [(f'{c}: pseudonyms', _filled(rows, c)) for c in plan.pseudonyms]
  lines += [(f'{c}: left out', len(rows)) for c in plan.drop]
  kept, more = _grouped(made, words) if plan.quasi else (made, [])
  write_rows(output, ({k: v for k, v in row.items() if k not in plan.drop} for row in kept))
  return _counted(counts) + lines + more


class _Plan:
  """The changes of each column.

  Raises InputError for a column that the table lacks, or that two words change; a value that is not
  COLUMN:NUMBER; `quasi` without k.
  """

  def __init__(self, words: Mapping[str, Any], columns: Sequence[str]):
    self.ranges = _pairs('ranges', words, float)
    self.dates = _pairs('dates', words, str)
    self.prefixes = _pairs('prefixes', words, int)
    self.drop, self.pseudonyms = words['drop'], words['pseudonyms']
    self.quasi, self.named = words['quasi'], any(words[w] for w in COLUMN_WORDS)
    self.general = [*self.ranges, *self.dates, *self.prefixes]
    for word in ('columns', *COLUMN_WORDS):
      tables.check_columns(word, [str(v).rpartition(':')[0] if word in PAIRED else v
                                  for v in words[word]], columns)  # fmt: skip
    changed = collections.Counter([*words['columns'], *self.general, *self.drop, *self.pseudonyms])
    twice = [name for name, n in changed.items() if n > 1]
    if twice:
      raise InputError(f'anonymize: column {twice[0]!r} is changed by two words; expected one')
    if bool(self.quasi) != bool(words['k']):
      raise InputError(
        f'anonymize.quasi={",".join(self.quasi)}, anonymize.k={words["k"]}: expected both or '
        'neither'
      )
    if words['l'] and not words['k']:
      raise InputError(f'anonymize.l={words["l"]}: expected anonymize.quasi and anonymize.k too')
    hidden = [c for c in (*self.quasi, *words['sensitive']) if c in self.drop]
    if hidden:
      raise InputError(f'anonymize.drop={hidden[0]}: expected a column that quasi and sensitive '
                       'do not name')  # fmt: skip
    others = {*self.general, *self.drop, *self.pseudonyms, *self.quasi, *words['sensitive']}
    self.texts = words['columns'] or [c for c in columns if c not in others]


PAIRED = ('ranges', 'dates', 'prefixes')


def _pairs(word: str, words: Mapping[str, Any], kind: Callable[[str], Any]) -> dict[str, Any]:
  """'COLUMN:VALUE' texts as a mapping."""
  found = {}
  for text in words[word]:
    column, colon, value = str(text).rpartition(':')
    with contextlib.suppress(ValueError):
      found[column] = kind(value)
    if not colon or column not in found:
      example = {'ranges': 'age:10', 'dates': 'birth:year', 'prefixes': 'zip:3'}[word]
      raise InputError(f'anonymize.{word}={text}: expected COLUMN:VALUE such as {example}')
  return found


def _texts(
  rows: Sequence[Row], columns: Sequence[str], anonymizer: Anonymizer
) -> tuple[list[Row], collections.Counter[str]]:
  """The rows with the texts of these columns anonymized, at any depth."""
  parts = [{c: row[c] for c in columns if c in row} for row in rows]
  strings = [strings_of(part) for part in parts]
  made, counts = anonymizer.anonymize([s for inner in strings for s in inner])
  new = iter(made)
  return [{**row, **with_strings(part, new)} for row, part in zip(rows, parts, strict=True)], counts


def _filled(rows: Sequence[Row], column: str) -> int:
  return sum(row[column] not in (None, '') for row in rows)


def _grouped(rows: Sequence[Row], words: Mapping[str, Any]) -> tuple[Any, list[tuple[str, int]]]:
  """The rows of groups that are large and diverse enough, and lines about them."""
  quasi, sensitive = words['quasi'], words['sensitive']
  before = tables.measure(rows, quasi, sensitive)
  kept = tables.suppress(rows, quasi, words['k'], sensitive, words['l'])
  after = tables.measure(kept, quasi, sensitive)
  lines = [
    ('rows', before.rows),
    ('rows left out', before.rows - after.rows),
    ('groups', after.groups),
    ('smallest group (k)', after.smallest),
    ('smallest group before', before.smallest),
  ]
  if sensitive:
    lines += [('least diverse group (l)', after.least_diverse),
              ('least diverse before', before.least_diverse)]  # fmt: skip
  return kept, lines
