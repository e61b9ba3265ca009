"""Spans of characters in texts, such as names: their words and tags, and back."""

import dataclasses
import re
from collections.abc import Iterable, Sequence

OUTSIDE = 'O'  # the tag of words outside all spans
# Marks that follow a letter, which Python's \w leaves out: accents that stand alone, vowel signs.
MARKS = (
  '\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0900-\u0903\u093a-\u094f'
  '\u0e31-\u0e3a\u0e47-\u0e4e\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f'
)
WORD = re.compile(rf'[\w{MARKS}]+|[^\w\s]')


@dataclasses.dataclass(frozen=True, order=True)
class Span:
  """Characters of a text that are one thing.

  Attributes:
    start: first character, counted in code points from 0.
    end: behind the last one.
    type: such as PERSON.
    checked: whether a check digit or a parser has confirmed it.
  """

  start: int
  end: int
  type: str
  checked: bool = False


def words_of(text: str) -> list[tuple[int, int]]:
  """Returns (start, end) of the words of a text; a sign of punctuation is a word.

  >>> [text[a:b] for text in ["It's Ann-Lee."] for a, b in words_of(text)]
  ['It', "'", 's', 'Ann', '-', 'Lee', '.']
  """
  return [m.span() for m in WORD.finditer(text)]


def tags_of(words: Sequence[tuple[int, int]], spans: Iterable[Span]) -> list[str]:
  """Returns the IOB2 tag of each word; a word that a span covers in part belongs to it.

  >>> tags_of([(0, 3), (4, 7), (8, 12)], [Span(0, 7, 'PERSON')])
  ['B-PERSON', 'I-PERSON', 'O']
  """
  tags = [OUTSIDE] * len(words)
  for span in sorted(spans):
    inside = [n for n, (a, b) in enumerate(words) if a < span.end and b > span.start]
    for place, n in enumerate(inside):
      tags[n] = f'{"I" if place else "B"}-{span.type}'
  return tags


def spans_of(words: Sequence[tuple[int, int]], tags: Sequence[str]) -> list[Span]:
  """Returns the spans of tagged words. An I- behind another type begins a span, as in conlleval.

  >>> spans_of([(0, 3), (4, 7), (8, 12)], ['B-PERSON', 'I-PERSON', 'O'])
  [Span(start=0, end=7, type='PERSON', checked=False)]
  """
  found: list[Span] = []
  before = OUTSIDE
  for (start, end), tag in zip(words, tags, strict=True):
    if tag.startswith('I-') and before[2:] == tag[2:] and before != OUTSIDE:
      found[-1] = dataclasses.replace(found[-1], end=end)
    elif tag != OUTSIDE:
      found.append(Span(start, end, tag[2:]))
    before = tag
  return found


def apart(spans: Iterable[Span]) -> list[Span]:
  """Resolves overlaps: a character belongs to the longest span that covers it.

  Of equally long ones a checked one wins, then the earlier, then the one that was given first. A
  part of a shorter span outside the longer one stays a span of its own type, so that every covered
  character is covered.

  >>> [(s.start, s.end, s.type) for s in apart([Span(0, 9, 'A'), Span(7, 12, 'B')])]
  [(0, 9, 'A'), (9, 12, 'B')]
  """
  kept: list[Span] = []
  for span in sorted(spans, key=lambda s: (s.start - s.end, not s.checked, s.start)):
    kept += without(span, ((k.start, k.end) for k in kept))
  return sorted(kept)


def without(span: Span, covered: Iterable[tuple[int, int]]) -> list[Span]:
  """Returns the parts of a span outside the covered characters.

  >>> [(s.start, s.end) for s in without(Span(0, 9, 'A'), [(2, 4)])]
  [(0, 2), (4, 9)]
  """
  parts = [span]
  for start, end in covered:
    cut = []
    for part in parts:
      left = dataclasses.replace(part, end=min(part.end, start))
      right = dataclasses.replace(part, start=max(part.start, end))
      overlaps = part.start < end and part.end > start
      cut += [p for p in (left, right) if p.start < p.end] if overlaps else [part]
    parts = cut
  return parts


def trimmed(text: str, span: Span) -> Span | None:
  """Returns the span without blanks at its ends; None if it holds neither letter nor digit."""
  value = text[span.start : span.end]
  if not any(c.isalnum() for c in value):
    return None
  start = span.start + len(value) - len(value.lstrip())
  return dataclasses.replace(span, start=start, end=span.end - len(value) + len(value.rstrip()))
