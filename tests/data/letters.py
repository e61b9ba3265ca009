"""A tokenizer whose ids can be read, and text to learn one from."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bmx.data.text.template import FIRST, SECOND, Template

WORDS = ('the', 'a', 'cat', 'dog', 'mat', 'hills', 'rain', 'sat', 'saw', 'softly', 'green', 'over')


@dataclasses.dataclass(frozen=True)
class Letters:
  """A token a letter of ASCII: its code. Special ids are above."""

  special: dict[str, int] = dataclasses.field(default_factory=dict)
  size: int = 140
  text: str = ''

  @property
  def names(self) -> dict[str, str]:
    return {}

  @property
  def hidden(self) -> dict[str, int]:
    return {}

  @property
  def template(self) -> Template:
    """[CLS] A [SEP] B [SEP], or a begin of text before each text, as far as there are."""
    encoder = {'cls', 'sep'} <= set(self.special)
    before, after = ('cls', 'sep') if encoder else ('bos', '')
    ids = lambda role, kind: ((self.special[role], kind),) if role in self.special else ()
    single = *ids(before, 0), (FIRST, 0), *ids(after, 0)
    again = () if encoder else ids(before, 1)
    return Template(single, (*single, *again, (SECOND, 1), *ids(after, 1)))

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array([ord(c) for c in text], np.int32) for text in texts]

  def word_starts(self, texts: Sequence[str]) -> list[np.ndarray]:
    begins = lambda text: [a == ' ' != b for a, b in zip(' ' + text[:-1], text, strict=True)]
    return [np.array(begins(text) if text else [], bool) for text in texts]

  def decode(self, ids: Sequence[int] | np.ndarray) -> str:
    return ''.join(chr(i) for i in ids if i < 128)

  def settled(self, ids: Sequence[int]) -> str:
    return self.decode(ids)


def sentences(count: int, seed: int = 0) -> list[str]:
  """Of 3 to 9 words, each with a capital and a full stop."""
  draw = np.random.default_rng(seed)
  rows = [draw.choice(WORDS, draw.integers(3, 10)).tolist() for _ in range(count)]
  return [' '.join(row).capitalize() + '.' for row in rows]
