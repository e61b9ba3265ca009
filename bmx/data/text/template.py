"""Special tokens that a tokenizer adds to a text and to a pair of texts."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from bmx.core.errors import InputError

FIRST, SECOND = -1, -2  # the places of the texts among the ids of a template


class Joined(NamedTuple):
  """Ids of a text or a pair with special tokens.

  Attributes:
    ids, types: of each token. parts: 1 and 2 for tokens of the first and second text, 0 for others.
  """

  ids: list[int]
  types: list[int]
  parts: list[int]


@dataclasses.dataclass(frozen=True)
class Template:
  """What a post-processor makes of one text and of two: (id, FIRST or SECOND; its type), in order.

  >>> bert = Template(((2, 0), (FIRST, 0), (3, 0)),
  ...                 ((2, 0), (FIRST, 0), (3, 0), (SECOND, 1), (3, 1)))
  >>> bert.prefix, bert.suffix, bert.between
  ((2,), (3,), (3,))
  >>> bert.join([7], [8, 9])
  Joined(ids=[2, 7, 3, 8, 9, 3], types=[0, 0, 0, 1, 1, 1], parts=[0, 1, 0, 2, 2, 0])
  """

  single: tuple[tuple[int, int], ...] = ((FIRST, 0),)
  pair: tuple[tuple[int, int], ...] = ((FIRST, 0), (SECOND, 1))

  @property
  def prefix(self) -> tuple[int, ...]:
    """Ids before one text."""
    return self._single()[: self._single().index(FIRST)]

  @property
  def suffix(self) -> tuple[int, ...]:
    """Ids after one text."""
    return self._single()[self._single().index(FIRST) + 1 :]

  @property
  def between(self) -> tuple[int, ...]:
    """Ids between two texts."""
    ids = [token for token, _ in self.pair]
    first, last = sorted((ids.index(FIRST), ids.index(SECOND)))
    return tuple(ids[first + 1 : last])

  @property
  def added(self) -> int:
    """Number of ids that a pair has besides those of its texts."""
    return len(self.pair) - 2

  def join(self, first: Sequence[int], second: Sequence[int]) -> Joined:
    """A pair with its special tokens."""
    result = Joined([], [], [])
    for token, kind in self.pair:
      text = {FIRST: first, SECOND: second}.get(token, (token,))
      result.ids.extend(text)
      result.types.extend([kind] * len(text))
      result.parts.extend([max(-token, 0)] * len(text))
    return result

  def _single(self) -> tuple[int, ...]:
    return tuple(token for token, _ in self.single)


@dataclasses.dataclass(frozen=True)
class Frame:
  """Ids around a document.

  Attributes:
    prefix: ids before it.
    suffix: ids after it.
    whole: whether they frame each part of a document that is cut.
  """

  prefix: tuple[int, ...]
  suffix: tuple[int, ...]
  whole: bool


def read_template(inner: Any) -> Template:
  """The template of a tokenizer of the library `tokenizers`, whatever its post-processor.

  Raises InputError if the post-processor does not keep each text once.
  """
  import tokenizers  # an extra, which `inner` comes from

  # Ids that no tokenizer has stand for the texts.
  names = {'a': 2**31 - 1, 'b': 2**31 - 2}
  probe = tokenizers.Tokenizer(tokenizers.models.WordLevel(names, unk_token='a'))
  if inner.post_processor is not None:
    probe.post_processor = inner.post_processor
  found = [probe.encode('a'), probe.encode('a', 'b')]
  place = {names['a']: FIRST, names['b']: SECOND}
  rows = [
    tuple((place.get(i) or i, t) for i, t in zip(e.ids, e.type_ids, strict=True)) for e in found
  ]
  for row, expected in zip(rows, ([FIRST], [SECOND, FIRST]), strict=True):
    if sorted(token for token, _ in row if token < 0) != expected:
      raise InputError("tokenizer.json: its post_processor leaves out or repeats a text; expected "
                       'each text once')  # fmt: skip
  return Template(*rows)


def need_prefix(template: Template, what: str, pair: bool = False) -> None:
  """Raises InputError if a tokenizer adds no token before a text, or none between two.

  Args:
    template: of the tokenizer.
    what: the data, for the message.
    pair: texts are joined.
  """
  missing = [] if template.prefix else ['before a text ([CLS] or <s>), which the head reads']
  missing += ['between two texts ([SEP] or </s>)'] if pair and not template.between else []
  if missing:
    raise InputError(
      f'{what}: the tokenizer adds no token {" and none ".join(missing)}; use the tokenizer of an '
      'encoder, or give tokenizer.json a post_processor such as TemplateProcessing'
    )
