"""Anonymization of texts: finds personal data, replaces it and counts what it replaced.

`Anonymizer` is a cleaning step of data (`bmx.data.text.documents`), and with `redactor` what a
server's captured events pass through before they are written.
"""

import collections
import dataclasses
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from bmx.core.errors import InputError, did_you_mean
from bmx.data.text.spans import Span, apart, trimmed, without
from bmx.privacy import patterns
from bmx.privacy.pseudonyms import DIGITS, Form, Replacement

log = logging.getLogger('bmx')
PATTERNS = tuple(patterns.RECOGNIZERS)
NAMES = ('PERSON', 'LOCATION', 'ORGANIZATION', 'ADDRESS')  # found by a tagger alone
TYPES = (*PATTERNS, *NAMES)
PLACEHOLDER = re.compile(rf'<(?:{"|".join(TYPES)})(?:_[0-9a-f]{{{DIGITS}}})?>')


@runtime_checkable
class Finder(Protocol):
  """Finds names in texts, as `bmx.adapt.tagging:Tagger` does."""

  def find(self, texts: Sequence[str]) -> list[list[Span]]:
    """Returns the spans of each text."""
    ...


@dataclasses.dataclass(frozen=True)
class Anonymizer:
  """Replaces personal data in texts.

  Overlapping findings: a character belongs to the longest finding that covers it, see
  `bmx.data.text.spans.apart`. Detection is repeated on the result until it finds nothing, so that
  anonymizing a result changes nothing. Placeholders are never found again.

  Attributes:
    types: those of `TYPES` to replace; () is every type that can be found.
    form: see `bmx.privacy.pseudonyms.Replacement`.
    key: of pseudonyms: path of a file or env:NAME.
    tagger: finds the types `NAMES`; None: patterns alone.

  Raises:
    InputError: an unknown type, one of `NAMES` without a tagger; see `Replacement`.
  """

  types: Sequence[str] = ()
  form: Form = 'placeholder'
  key: str = ''
  tagger: Finder | None = None

  def __post_init__(self):
    for name in self.types:
      if name not in TYPES:
        raise InputError(f'anonymize.types: unknown type {name!r}{did_you_mean(name, TYPES)}')
    names = [name for name in self.types if name in NAMES]
    if names and self.tagger is None:
      raise InputError(
        f'anonymize.types={",".join(self.types)}: expected a tagger, which finds {names[0]}; name '
        'a run of pii_tagger with anonymize.tagger=RUN'
      )
    Replacement(self.form, self.key)

  def find(self, texts: Sequence[str]) -> list[list[Span]]:
    """Returns the personal data of each text, in order, without overlaps; offsets are its own."""
    wanted = self.types or TYPES
    by_pattern = tuple(name for name in PATTERNS if name in wanted)
    tagged = self.tagger.find(texts) if self.tagger is not None else [[]] * len(texts)
    found = []
    for text, names in zip(texts, tagged, strict=True):
      spans = [s for s in names if s.type in wanted] + patterns.find(text, by_pattern)
      made = [m.span() for m in PLACEHOLDER.finditer(text)]
      parts = [part for span in apart(spans) for part in without(span, made)]
      found.append([s for part in parts if (s := trimmed(text, part)) is not None])
    return found

  def anonymize(self, texts: Sequence[str]) -> tuple[list[str], collections.Counter[str]]:
    """Returns the texts without personal data, and how many values of each type were replaced."""
    result, counts = list(texts), collections.Counter[str]()
    left, replacement = list(range(len(result))), Replacement(self.form, self.key)
    while left:
      found = self.find([result[n] for n in left])
      for n, spans in zip(left, found, strict=True):
        result[n] = replaced(result[n], spans, replacement)
        counts.update(span.type for span in spans)
      left = [n for n, spans in zip(left, found, strict=True) if spans]
    return result, counts

  def __call__(self, documents: list[str]) -> list[str]:
    """Returns the documents anonymized, as a cleaning step; logs the counts by type."""
    result, counts = self.anonymize(documents)
    log.info('Anonymizer: %s', summary(counts))
    return result


def replaced(text: str, spans: Iterable[Span], replacement: Callable[[str, str], str]) -> str:
  """Returns the text with its spans, which do not overlap, replaced by (type, value) -> text."""
  parts, end = [], 0
  for span in sorted(spans):
    parts += [text[end : span.start], replacement(span.type, text[span.start : span.end])]
    end = span.end
  return ''.join([*parts, text[end:]])


def summary(counts: Mapping[str, int]) -> str:
  """Formats counts by type, in the order of `TYPES`.

  >>> summary({'IP': 1, 'EMAIL': 12})
  '12 EMAIL, 1 IP replaced'
  """
  known = [f'{counts[name]:,} {name}' for name in TYPES if counts.get(name)]
  return f'{", ".join(known) or "nothing"} replaced'


def strings_of(value: Any) -> list[str]:
  """Returns the texts inside mappings and lists, in order; keys are not among them."""
  if isinstance(value, str):
    return [value]
  inner = value.values() if isinstance(value, Mapping) else value
  return [s for v in inner for s in strings_of(v)] if isinstance(inner, Iterable) else []


def with_strings(value: Any, texts: Iterable[str]) -> Any:
  """Returns the value with the texts of `strings_of` replaced by others, in order."""
  new = iter(texts)

  def one(v: Any) -> Any:
    if isinstance(v, str):
      return next(new)
    if isinstance(v, Mapping):
      return {k: one(inner) for k, inner in v.items()}
    return [one(inner) for inner in v] if isinstance(v, list | tuple) else v

  return one(value)


def redactor(anonymizer: Anonymizer) -> Callable[[dict[str, Any]], dict[str, Any]]:
  """Returns a function that anonymizes every text of a captured event, at any depth."""

  def redact(said: dict[str, Any]) -> dict[str, Any]:
    texts, _ = anonymizer.anonymize(strings_of(said))
    return with_strings(said, texts)

  return redact
