"""Search spaces: overrides such as 'schedule.peak=log(1e-4,1e-2)' whose value a sweep draws."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from bmx.core.errors import InputError, did_you_mean

KINDS = ('log', 'uniform', 'int', 'choice')
FORM = re.compile(r'([A-Za-z_]+)\((.*)\)', re.DOTALL)


class Space(NamedTuple):
  """Values that a word may have.

  Attributes:
    word: of the config.
    kind: 'log' and 'uniform' are numbers from the first to the second value, 'int' whole ones,
      'choice' is one of the values.
    values: as texts.
  """

  word: str
  kind: str
  values: tuple[str, ...]


def split(overrides: Sequence[str]) -> tuple[list[str], list[Space]]:
  """Returns the overrides that set a value, and the spaces.

  Raises InputError naming a word whose space is invalid, or that has two.
  """
  fixed, spaces = [], []
  for override in overrides:
    word, _, text = override.partition('=')
    form = FORM.fullmatch(text)
    if form is None:
      fixed.append(override)
    elif word in {space.word for space in spaces}:
      raise InputError(f'--config.{word}={text}: expected one space for a word')
    else:
      spaces.append(_space(word, form[1], form[2], text))
  return fixed, spaces


def _space(word: str, kind: str, inside: str, text: str) -> Space:
  name = f'--config.{word}={text}'
  if kind not in KINDS:
    forms = 'log(a,b), uniform(a,b), int(a,b) or choice(x,y)'
    raise InputError(f'{name}: expected {forms}{did_you_mean(kind, KINDS)}')
  values = tuple(value.strip() for value in _parts(inside))
  if kind == 'choice':
    if len(values) < 2 or '' in values or len(set(values)) < len(values):
      raise InputError(f'{name}: expected at least two different values')
    return Space(word, kind, values)
  number = int if kind == 'int' else float
  try:
    low, high = (number(value) for value in values)
  except ValueError:
    raise InputError(f'{name}: expected two numbers, such as {kind}(1,4)') from None
  if not (math.isfinite(low) and math.isfinite(high) and low < high) or (
    kind == 'log' and low <= 0
  ):
    least = '0 < low' if kind == 'log' else 'low'
    raise InputError(f'{name}: expected {least} < high, both finite')
  return Space(word, kind, values)


def _parts(text: str) -> list[str]:
  """Splits at commas outside brackets.

  >>> _parts('(1,2),3')
  ['(1,2)', '3']
  """
  parts, depth = [''], 0
  for char in text:
    depth += (char in '([{') - (char in ')]}')
    if char == ',' and not depth:
      parts.append('')
    else:
      parts[-1] += char
  return parts
