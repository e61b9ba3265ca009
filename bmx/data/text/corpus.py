"""Tokenized documents: one long row of ids, kept in the cache folder and memory-mapped."""

import dataclasses
import hashlib
import os
import pathlib
import shutil
from collections.abc import Sequence

import numpy as np

from bmx.core.errors import InputError
from bmx.data.text.tokenizer import Tokenizer
from bmx.runtime import cache

BATCH = 4096  # documents that are tokenised at once
Parts = Sequence[
  tuple[str, bool]
]  # texts of one document, each with whether it is a target of the loss


@dataclasses.dataclass(frozen=True)
class Corpus:
  """Documents d = tokens[ends[d - 1] : ends[d]].

  Attributes:
    tokens: uint16 or int32 [N].
    ends: int64 [D].
    word_starts: uint8 [N], 1 at the first token of a word.
    loss_mask: uint8 [N], 1 if the token is a target of the loss.
  """

  tokens: np.ndarray
  ends: np.ndarray
  word_starts: np.ndarray
  loss_mask: np.ndarray

  def part(self, first: int, last: int) -> 'Corpus':
    """Returns documents first to last - 1."""
    a, b = (int(self.ends[i - 1]) if i else 0 for i in (first, last))
    cut = lambda x: x[a:b]
    ends = self.ends[first:last] - a
    return Corpus(cut(self.tokens), ends, cut(self.word_starts), cut(self.loss_mask))


def encode(documents: Sequence[Parts], tokenizer: Tokenizer) -> Corpus:
  """Tokenizes documents, without special tokens; cached by text and tokenizer.

  Raises InputError if they have no token.
  """
  layout = [f.name for f in dataclasses.fields(Corpus)]
  kind = type(tokenizer).__qualname__, tokenizer.size, tokenizer.special, tokenizer.text, layout
  identity = hashlib.sha256(repr(kind).encode())
  for parts in documents:
    for text, learn in parts:
      data = text.encode()
      identity.update(b'%d %d ' % (learn, len(data)))
      identity.update(data)
    identity.update(b';')
  folder = cache.place('tokens') / identity.hexdigest()
  if not folder.is_dir():
    _write(folder, _encode(documents, tokenizer))
  return Corpus(**{
    f.name: np.load(folder / f'{f.name}.npy', mmap_mode='r') for f in dataclasses.fields(Corpus)
  })  # fmt: skip


def _encode(documents: Sequence[Parts], tokenizer: Tokenizer) -> Corpus:
  ids, word_starts, loss_mask, sizes = [], [], [], []
  kind = np.uint16 if tokenizer.size <= 1 << 16 else np.int32
  for first in range(0, len(documents), BATCH):
    batch = documents[first : first + BATCH]
    texts = [text for parts in batch for text, _ in parts]
    found, begins = tokenizer.encode(texts), tokenizer.word_starts(texts)
    flags = [learn for parts in batch for _, learn in parts]
    ids += [x.astype(kind) for x in found]
    word_starts += [x.astype(np.uint8) for x in begins]
    loss_mask += [np.full(len(x), f, np.uint8) for x, f in zip(found, flags, strict=True)]
    lengths = iter([len(x) for x in found])
    sizes += [sum(next(lengths) for _ in parts) for parts in batch]
  if not sum(sizes):
    raise InputError('the text has not one token')
  join = np.concatenate
  return Corpus(join(ids), np.cumsum(sizes, dtype=np.int64), join(word_starts), join(loss_mask))


def _write(folder: pathlib.Path, corpus: Corpus) -> None:
  """Writes atomically; concurrent writers of the same corpus are safe."""
  part = folder.with_name(f'{folder.name}.{os.getpid()}')
  part.mkdir(parents=True, exist_ok=True)
  for field in dataclasses.fields(corpus):
    np.save(part / f'{field.name}.npy', getattr(corpus, field.name))
  try:
    part.rename(folder)
  except OSError:  # another process was first
    shutil.rmtree(part)
