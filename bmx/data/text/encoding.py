"""Texts as rows of ids with special tokens, for encoders."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bmx.core.data import Spec
from bmx.core.errors import InputError
from bmx.core.types import HostBatch
from bmx.data.arrays import ArrayData
from bmx.data.text.tokenizer import Subwords
from bmx.data.text.windows import along, tokenizer_state

SPLITS = ('all', 'train', 'valid')


@dataclasses.dataclass
class TextData(ArrayData):
  """Arrays made of text, with the tokenizer that made them."""

  tokenizer: Subwords | None = None

  def __post_init__(self):
    rows = {k: ('length',) for k, v in self.arrays.items() if k in ROWS and v.ndim == 2}
    self.names = rows | self.names
    super().__post_init__()

  def state(self) -> dict[str, Any]:
    """The tokenizer and what was fitted."""
    return tokenizer_state(self.tokenizer) | self.fitted


# One value a token, in the order of the tokens. `context` stays in the order of the text, in which
# answers are counted.
ROWS = ('tokens', 'segment_ids', 'types', 'targets', 'weights')


def text_spec(length: int, *more: tuple[str, Spec]) -> dict[str, Spec]:
  """Returns the specs of one encoded text, and `more` ones."""
  rows = {k: along(length) for k in ('tokens', 'segment_ids', 'types')}
  weights = {'weights': Spec((), np.dtype(np.float32))}
  return weights | rows | dict(more)


def text_metadata(tokenizer: Subwords, length: int, source: str) -> dict[str, Any]:
  """Returns the facts of encoded texts."""
  return {'vocab_size': tokenizer.size, 'length': length, 'source': source}


def encode_rows(tokenizer: Subwords, texts: Sequence[Any], length: int) -> tuple[HostBatch, int]:
  """Encodes and pads texts, or pairs of texts -> (arrays [N, length], number of cut texts)."""
  found = encode(tokenizer, texts, length)
  rows = [fill_row(tokenizer, one.ids, one.type_ids, length) for one in found]
  arrays = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
  return arrays, sum(bool(one.overflowing) for one in found)


def fill_row(
  tokenizer: Subwords, ids: Sequence[int], types: Sequence[int], length: int
) -> HostBatch:
  """`tokens`, `segment_ids` and `types` int32 [length] of one row; its rest is padding."""
  return {
    'tokens': pad(ids, length, tokenizer.special.get('pad', 0)),
    'segment_ids': pad([1] * len(ids), length),
    'types': pad(types, length),
  }


def pad(values: Sequence[int], length: int, value: int = 0) -> np.ndarray:
  """int32 [length]: the values, then `value`."""
  row = np.full(length, value, np.int32)
  row[: len(values)] = values
  return row


def encode(
  tokenizer: Subwords, texts: Sequence[Any], length: int, words: bool = False
) -> Sequence[Any]:
  """Encodes texts, pairs of texts or lists of `words`, with special tokens, cut to `length`.

  Raises InputError if `length` leaves no position for a token, or the tokenizer fails.
  """
  inner, pair = tokenizer.inner, isinstance(next(iter(texts), None), tuple)
  least = inner.num_special_tokens_to_add(pair) + 1 + pair
  if length < least:
    raise InputError(f'length={length}: expected at least {least} tokens for these texts')
  inner.enable_truncation(length)  # of a pair the longer one is cut
  try:
    return tokenizer.encodings(texts, special=True, words=words)
  finally:
    inner.no_truncation()
