"""Texts that an encoder-decoder reads: ids, padded on the right."""

from collections.abc import Sequence

import numpy as np

from bmx.core.errors import InputError
from bmx.core.types import Facts
from bmx.data.text.documents import whole
from bmx.data.text.parallel import encoded
from bmx.data.text.tokenizer import Tokenizer

SOURCE_MULTIPLE = 16  # sources are padded to a multiple of it, so that few programs are compiled


def encode_sources(
  texts: Sequence[str], tokenizer: Tokenizer, facts: Facts, names: Sequence[str]
) -> list[np.ndarray]:
  """Returns the ids of sources, with the tokens that the tokenizer adds in training, int32 each.

  Args:
    texts: of sources.
    tokenizer: of the model.
    facts: of the model.
    names: of the texts, for messages.

  Raises:
    InputError: a text is empty, longer than the model's sources, or not valid Unicode.
  """
  if not texts:
    raise InputError('prompts=[]: expected at least one; give --prompt=TEXT or --input=FILE')
  for name, text in zip(names, texts, strict=True):
    if not text.strip():
      raise InputError(f'{name} is empty: expected a text to read')
  ids = encoded([whole(t, name) for name, t in zip(names, texts, strict=True)], tokenizer)
  longest = facts.max_source_len
  for name, one in zip(names, ids, strict=True):
    if longest and len(one) > longest:
      raise InputError(
        f'{name} has {len(one)} tokens: expected at most max_source_len={longest} of the model; '
        'shorten it'
      )
  return ids


def padded_sources(ids: Sequence[np.ndarray], longest: int = 0) -> dict[str, np.ndarray]:
  """Returns 'source' and 'source_ids' int32 [B, S]: 1 for a token, 0 for padding.

  Args:
    ids: of each row.
    longest: S is at most this; 0: no limit.
  """
  length = -(-max(map(len, ids)) // SOURCE_MULTIPLE) * SOURCE_MULTIPLE
  length = min(length, longest) if longest else length
  rows = {k: np.zeros((len(ids), length), np.int32) for k in ('source', 'source_ids')}
  for n, one in enumerate(ids):
    rows['source'][n, : len(one)], rows['source_ids'][n, : len(one)] = one, 1
  return rows
