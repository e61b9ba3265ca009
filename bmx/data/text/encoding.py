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
  """The arrays of one encoded text, and more."""
  rows = {k: along(length) for k in ('tokens', 'segment_ids', 'types')}
  weights = {'weights': Spec((), np.dtype(np.float32))}
  return weights | rows | dict(more)


def text_metadata(tokenizer: Subwords, length: int, source: str) -> dict[str, Any]:
  """Facts of encoded texts."""
  return {'vocab_size': tokenizer.size, 'length': length, 'source': source}


def encode_rows(tokenizer: Subwords, texts: Sequence[Any], length: int) -> tuple[HostBatch, int]:
  """Texts, or pairs of texts, encoded and padded -> (arrays [N, length], number of cut texts)."""
  found = encode(tokenizer, texts, length)
  arrays = {k: np.zeros((len(found), length), np.int32) for k in ('tokens', 'segment_ids', 'types')}
  for n, one in enumerate(found):
    size = len(one.ids)
    arrays['tokens'][n, :size] = one.ids
    arrays['segment_ids'][n, :size] = 1
    arrays['types'][n, :size] = one.type_ids
  return arrays, sum(bool(one.overflowing) for one in found)


def encode(
  tokenizer: Subwords, texts: Sequence[Any], length: int, words: bool = False
) -> Sequence[Any]:
  """Encodings of texts, pairs of texts or lists of `words`, with special tokens, cut to `length`.

  Raises InputError if a row has no room for a token.
  """
  inner, pair = tokenizer.inner, isinstance(next(iter(texts), None), tuple)
  least = inner.num_special_tokens_to_add(pair) + 1 + pair
  if length < least:
    raise InputError(f'length={length}: expected at least {least} tokens for these texts')
  inner.enable_truncation(length)  # of a pair the longer one is cut
  try:
    return inner.encode_batch(list(texts), is_pretokenized=words)
  finally:
    inner.no_truncation()
