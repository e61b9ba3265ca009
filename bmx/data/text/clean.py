"""Cleaning of text documents: steps that drop or normalize them, and counts of their effect.

A step maps documents to the kept ones, in their order. Recipes name one as
`{'call': 'bmx.data.text.clean:Length', 'least': 200}`; any function of the same form will do.
"""

import collections
import dataclasses
import re
import unicodedata
from collections.abc import Sequence
from typing import Literal, get_args

from bmx.core.errors import InputError, did_you_mean
from bmx.data.text.deduplicate import Deduplicate
from bmx.data.text.quality import Quality, Repetition
from bmx.data.text.steps import Step, check_range

Form = Literal['NFC', 'NFD', 'NFKC', 'NFKD']

FORMS = get_args(Form)

LINE_END = re.compile('\r\n|\r')
BLANK = re.compile('[\v\f\x85]')
NO_TEXT = re.compile('[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]')


@dataclasses.dataclass(frozen=True)
class Unicode:
  """Normalizes characters; removes no document.

  CR and CR LF become a newline; form feed, vertical tab and NEL, which end no line, become a
  space. The other control characters but the tab are dropped, and so are halves of surrogate pairs,
  which JSON can hold and UTF-8 cannot. Raises InputError for an unknown form.
  """

  form: Form = 'NFC'

  def __post_init__(self):
    if self.form not in FORMS:
      raise InputError(f'Unicode: unknown form {self.form!r}{did_you_mean(self.form, FORMS)}')

  def __call__(self, documents: list[str]) -> list[str]:
    return [self._normalised(d) for d in documents]

  def _normalised(self, document: str) -> str:
    # Composed last: dropped characters may stand between a letter and its accent.
    return unicodedata.normalize(
      self.form, NO_TEXT.sub('', BLANK.sub(' ', LINE_END.sub('\n', document)))
    )


@dataclasses.dataclass(frozen=True)
class Length:
  """Keeps documents of `least` to `most` characters. Raises InputError for an empty range."""

  least: int = 1
  most: int = 10**9

  def __post_init__(self):
    check_range(self, 'least', 'most')

  def __call__(self, documents: list[str]) -> list[str]:
    return [d for d in documents if self.least <= len(d) <= self.most]


@dataclasses.dataclass(frozen=True)
class Count:
  """The effect of one step, in documents. `left` counts the `changed` ones, too."""

  step: str
  removed: int
  changed: int
  left: int


def clean(documents: Sequence[str], steps: Sequence[Step]) -> tuple[list[str], list[Count]]:
  """Cleans documents -> (kept documents, one count per step, in the order of `steps`).

  Raises:
    InputError: `documents` is empty, or a step removes all of them (the step is named).
  """
  left, counts = list(documents), []
  if not left:
    raise InputError('steps: expected at least one document to clean')
  for step in steps:
    given, left = left, step(left)
    removed = len(given) - len(left)
    if not left:
      raise InputError(
        f'no document is left after {step}, which removed {removed} of {len(given)}; '
        'loosen it or leave it out'
      )
    # Documents that are left and were not given. Exact for idempotent steps.
    changed = (collections.Counter(left) - collections.Counter(given)).total()
    name = getattr(step, '__name__', type(step).__name__)
    counts.append(Count(name, removed, changed, len(left)))
  return left, counts


def report(counts: Sequence[Count]) -> str:
  """Formats one line per step.

  >>> print(report([Count('Unicode', 0, 12, 90), Count('Length', 15, 0, 75)]))
  Unicode: 0 of 90 documents removed, 12 changed
  Length: 15 of 90 documents removed, 0 changed
  """
  return '\n'.join(
    f'{c.step}: {c.removed} of {c.removed + c.left} documents removed, {c.changed} changed'
    for c in counts
  )


def standard(
  form: str = 'NFC',
  least: int = 0,
  most: int = 0,
  quality: bool = False,
  repetition: bool = False,
  duplicates: bool = True,
  near: float = 0.0,
  anonymize: Step | None = None,
) -> tuple[Step, ...]:
  """The usual steps in their order: Unicode, anonymize, Length, Quality, Repetition, Deduplicate.

  Args:
    form: of Unicode; '' leaves texts as they are.
    least: characters of a document.
    most: characters of a document; 0: no limit.
    quality: whether Gopher's rules of quality apply.
    repetition: whether Gopher's rules of repetition apply.
    duplicates: whether exact duplicates are removed.
    near: similarity above which documents are duplicates too; 0: only equal ones.
    anonymize: `bmx.privacy.anonymize:Anonymizer`, or another step before all that count or compare.

  Raises:
    InputError: `near` without `duplicates`.
  """
  if near and not duplicates:
    raise InputError(f'near={near}: expected duplicates=True, which it extends')
  steps: list[Step] = [Unicode(form)] if form else []  # type: ignore[arg-type]
  steps += [anonymize] if anonymize is not None else []
  steps += [Length(least, most or 10**9)] if least or most else []
  steps += [Quality()] if quality else []
  steps += [Repetition()] if repetition else []
  return tuple(steps + [Deduplicate(near)] * duplicates)
