"""The protocol of tokenizers."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from bmx.data.text.template import Template


@runtime_checkable
class Tokenizer(Protocol):
  """Text to ids and back."""

  @property
  def size(self) -> int:
    """Ids are below this."""
    ...

  @property
  def special(self) -> dict[str, int]:
    """Role -> id of the special tokens; roles are the keys of `ROLES`."""
    ...

  @property
  def ends(self) -> tuple[int, ...]:
    """Ids that end a text."""
    ...

  @property
  def text(self) -> str:
    """Content of `tokenizer.json`; '' if the tokenizer has no such file."""
    ...

  @property
  def template(self) -> Template:
    """Special tokens that are added to a text and to a pair of texts."""
    ...

  def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the ids of each text, int32 [n], without special tokens."""
    ...

  def word_starts(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns for each id of `encode` whether a word begins there: bool [n]."""
    ...

  def char_starts(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns for each id of `encode` the character of its text that it begins at: int64 [n]."""
    ...

  @property
  def chat_template(self) -> str:
    """Jinja template of conversations, see `ChatTemplate`; '' without one."""
    ...

  @property
  def names(self) -> dict[str, str]:
    """Role -> special token, as files beside the `tokenizer.json` name them."""
    ...

  @property
  def hidden(self) -> dict[str, int]:
    """Tokens that `decode` leaves out -> their ids."""
    ...

  def decode(self, ids: Sequence[int] | np.ndarray) -> str: ...

  def settled(self, ids: Sequence[int]) -> str:
    """The beginning of `decode` that no further ids change."""
    ...
