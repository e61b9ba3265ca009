"""Mode `config`: the words of a recipe, what it would build, and the list of recipes."""

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from bmx import config as recipes
from bmx.core.errors import DONE, InputError, did_you_mean
from bmx.modes import Request

ALL = 'all'
MAX_VALUE = 28  # characters of a value and of a default
MIN_MEANING = 30  # characters of a line


def run(request: Request) -> int:
  """Prints the recipes, or the words of one that --words names and what it would build."""
  if request.config is None:
    sys.stdout.write(listing())
    return DONE
  found = list(recipes.lines(request.config))
  if request.words not in ('', ALL):
    found = _chosen(found, request.words)
  sys.stdout.write(words_table(found, _width()))
  if not request.words:
    from bmx.modes import outline  # imports jax

    sys.stdout.write('\n' + outline.outline(request))
  return DONE


def listing() -> str:
  """Returns the recipes of bmx with their variants, what they are and what they reach."""
  blocks = []
  for about in map(recipes.about, recipes.names()):
    name = ' '.join([about.name, *(f':{v}' for v in about.variants)])
    blocks.append('\n'.join([name, *_wrapped(f'{about.description}\n{about.reaches}', '  ')]))
  blocks.append(
    'bmx config RECIPE      its words, and what it would build\n'
    'bmx train RECIPE:tiny  trains its smallest size'
  )
  return '\n\n'.join(blocks) + '\n'


def _chosen(found: Sequence[recipes.Line], part: str) -> list[recipes.Line]:
  """Words whose name contains a text. Raises InputError if there are none."""
  chosen = [line for line in found if part in line.word]
  if not chosen:
    names = {piece for line in found for piece in line.word.split('.')}
    raise InputError(f'--words={part}: expected a part of a word{did_you_mean(part, names)}')
  return chosen


def words_table(found: Sequence[recipes.Line], width: int) -> str:
  """Formats words as columns: word, value, default, type, meaning.

  Args:
    found: the words.
    width: characters of a line; meanings are wrapped. 0: they are not.
  """
  rows = [('word', 'value', 'default', 'type', 'meaning')]
  rows += [
    (line.word, _shown(line.value), _cut(line.default), line.kind, line.meaning) for line in found
  ]
  widths = [max(len(row[i]) for row in rows) for i in range(4)]
  indent = sum(widths) + 2 * len(widths)
  room = max(width - indent, MIN_MEANING) if width else 10_000
  texts = []
  for row in rows:
    left = '  '.join(cell.ljust(w) for cell, w in zip(row, widths, strict=False))
    meaning = textwrap.wrap(row[4], room) or ['']
    texts.append(f'{left}  {meaning[0]}'.rstrip())
    texts += [' ' * indent + more for more in meaning[1:]]
  return '\n'.join(texts) + '\n'


def _shown(value: Any) -> str:
  """A value as the command line takes it; '' of a text stands in quotes, an unset one as '-'."""
  if value is None:
    return '-'
  if isinstance(value, str):
    return _cut(value or "''")
  if isinstance(value, Mapping):
    return _cut(repr(dict(value)))
  return _cut(repr(value))


def _cut(text: str) -> str:
  return text if len(text) <= MAX_VALUE or ':' in text else f'{text[: MAX_VALUE - 3]}...'


def _width() -> int:
  """Characters of a line of the terminal; 0 where the output is a file or a pipe."""
  return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def _wrapped(text: str, indent: str) -> list[str]:
  width = (_width() or 100) - len(indent)
  return [indent + line for part in text.splitlines() for line in textwrap.wrap(part, width)]
