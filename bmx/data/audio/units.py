"""Units of transcripts: texts <-> ids, for models with a blank (CTC)."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import HostBatch, Metadata
from bmx.data.text.targets import plain

UnitKind = Literal['characters', 'words']
BLANK = '<blank>'  # id 0


@dataclasses.dataclass(frozen=True)
class Units:
  """Characters or words of transcripts.

  Attributes:
    names: of the ids 1, 2, ...; id 0 is the blank.
    kind: 'characters', a blank between words among them, or 'words'.
    lower: whether texts are written in lower case.
  """

  names: tuple[str, ...]
  kind: UnitKind = 'characters'
  lower: bool = True

  def __post_init__(self):
    self.check(self.kind)

  @staticmethod
  def check(kind: str) -> None:
    """Raises InputError for an unknown kind."""
    if kind not in ('characters', 'words'):
      raise InputError(f"units={kind!r}: expected 'characters' or 'words'")

  @classmethod
  def learn(cls, texts: Iterable[str], kind: UnitKind, lower: bool) -> 'Units':
    """Returns the units that occur in texts, sorted."""
    empty = cls((), kind, lower)
    found = {unit for text in texts for unit in empty.split(text)}
    return cls(tuple(sorted(found)), kind, lower)

  @classmethod
  def of(cls, metadata: Metadata) -> 'Units':
    """Returns the units that the facts of a data set describe, see `facts`."""
    if 'units' not in metadata or 'class_names' not in metadata:
      source = metadata.get('source', 'the data')
      raise InputError(f'{source}: expected data with transcripts, such as '
                       'bmx.data.audio.speech:speech')  # fmt: skip
    kind, lower = metadata['units']
    return cls(tuple(metadata['class_names'])[1:], kind, bool(lower))

  @property
  def facts(self) -> dict[str, Any]:
    """Facts of a data set with these units: JSON."""
    names = [BLANK, *self.names]
    return {'num_classes': len(names), 'class_names': names, 'units': [self.kind, self.lower]}

  def plain(self, text: str) -> str:
    """Returns a text with single blanks between words, in lower case where `lower`."""
    return plain(text, self.lower)

  def split(self, text: str) -> list[str]:
    """Returns the units of a text."""
    text = self.plain(text)
    return text.split() if self.kind == 'words' else list(text)

  def encode(self, text: str, where: str) -> list[int]:
    """Returns the ids of a text. Raises InputError for an unknown unit; `where` is its subject."""
    ids = {name: i for i, name in enumerate(self.names, 1)}
    found = self.split(text)
    for unit in found:
      if unit not in ids:
        raise InputError(
          f'{where} has {unit!r}: expected {self.kind} of the training data, {_shown(self.names)}'
        )
    return [ids[unit] for unit in found]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    """Returns the text of ids; blanks are left out."""
    between = ' ' if self.kind == 'words' else ''
    text = between.join(self.names[int(i) - 1] for i in ids if i > 0)
    return ' '.join(text.split())


def _shown(names: Sequence[str]) -> str:
  more = f' and {len(names) - 30} more' if len(names) > 30 else ''
  return ' '.join(map(repr, names[:30])) + more


def padded(ids: Sequence[Sequence[int]], most: int = 0) -> HostBatch:
  """Returns `transcript` int32 [N, L], filled up with 0, and `transcript_length` int32 [N].

  Args:
    ids: of each transcript.
    most: L; 0 is the longest, at least 1.
  """
  length = np.array([len(one) for one in ids], np.int32)
  table = np.zeros((len(ids), most or max(1, int(length.max(initial=0)))), np.int32)
  for row, one in zip(table, ids, strict=True):
    row[: len(one)] = one
  return {'transcript': table, 'transcript_length': length}
