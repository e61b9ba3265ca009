"""Tokenized documents: one long row of ids, kept in the cache folder and memory-mapped."""

import dataclasses
import hashlib
import os
import pathlib
import shutil
from collections.abc import Sequence

import numpy as np

from bmx.core.errors import InputError
from bmx.data.text.template import Frame
from bmx.data.text.tokenizer import Tokenizer, frame
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


def document_frame(tokenizer: Tokenizer, separator: str, documents: int) -> Frame:
  """Returns the ids that stand around documents which are read one after another.

  Args:
    tokenizer: of the documents.
    separator: text after each document instead of the tokenizer's own end; '' keeps that.
    documents: number of documents.

  Raises:
    InputError: the tokenizer has no known end, so that nothing would separate documents.
  """
  around = frame(tokenizer)
  if separator:
    ids = tokenizer.encode([separator])[0].tolist()
    if not ids:
      raise InputError(f'data.separator={separator!r}: expected a text of at least one token')
    return dataclasses.replace(around, suffix=tuple(ids))
  if tokenizer.text and documents > 1 and not around.suffix:
    raise InputError(
      'data.tokenizer: expected one with a known end of text, which separates documents: its '
      'post_processor adds none, and neither eos_token of tokenizer_config.json nor eos_token_id '
      'of config.json names one; name a text with --config.data.separator'
    )
  return around


def bounds(corpus: Corpus, around: Frame) -> tuple[np.ndarray, np.ndarray]:
  """Returns the first token of each document and the one after its last, int64 [D] each.

  Ids of the frame that a document spells itself are left out: none stands there twice.
  """
  firsts = np.concatenate([[0], corpus.ends[:-1]]).astype(np.int64)
  ends = corpus.ends.astype(np.int64)
  begins = _spelled(corpus.tokens, firsts, ends - firsts, around.prefix)
  firsts = firsts + begins * len(around.prefix)
  after = len(around.suffix)
  return firsts, ends - after * _spelled(corpus.tokens, ends - after, ends - firsts, around.suffix)


def _spelled(
  tokens: np.ndarray, places: np.ndarray, lengths: np.ndarray, ids: tuple[int, ...]
) -> np.ndarray:
  """Whether documents of so many tokens have `ids` at places: bool [D]."""
  found = lengths >= len(ids)
  inside = places[found][:, None] + np.arange(len(ids))
  found[found] = (tokens[inside] == np.array(ids, np.int64)).all(1)
  return found


def stream(corpus: Corpus, around: Frame) -> np.ndarray:
  """Returns the tokens of all documents one after another, each within its frame: [N]."""
  firsts, ends = bounds(corpus, around)
  sizes = ends - firsts
  kept = np.zeros(len(corpus.tokens) + 1, np.int64)
  np.add.at(kept, firsts, 1)
  np.add.at(kept, ends, -1)
  text = corpus.tokens[kept.cumsum()[:-1] > 0]
  last = sizes.cumsum()
  before, after = len(around.prefix), len(around.suffix)
  places = np.concatenate([(last - sizes)[:, None].repeat(before, 1),
                           last[:, None].repeat(after, 1)], axis=1)  # fmt: skip
  ids = np.tile(np.array([*around.prefix, *around.suffix], text.dtype), (len(sizes), 1))
  return np.insert(text, places.ravel(), ids.ravel())


def encode(documents: Sequence[Parts], tokenizer: Tokenizer, joined: bool = False) -> Corpus:
  """Tokenizes documents, without special tokens; cached by text and tokenizer.

  Args:
    documents: their parts.
    tokenizer: of the text.
    joined: a document is tokenized as one text, and a token belongs to the part in which it begins;
      otherwise each part is tokenized by itself.

  Raises:
    InputError: they have no token.
  """
  layout = [f.name for f in dataclasses.fields(Corpus)] + ['joined'] * joined
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
    _write(folder, _encode(documents, tokenizer, joined))
  return Corpus(**{
    f.name: np.load(folder / f'{f.name}.npy', mmap_mode='r') for f in dataclasses.fields(Corpus)
  })  # fmt: skip


def _encode(documents: Sequence[Parts], tokenizer: Tokenizer, joined: bool = False) -> Corpus:
  ids, word_starts, loss_mask, sizes = [], [], [], []
  kind = np.uint16 if tokenizer.size <= 1 << 16 else np.int32
  for first in range(0, len(documents), BATCH):
    batch = documents[first : first + BATCH]
    texts = [text for parts in batch for text, _ in parts]
    if joined:
      texts = [''.join(text for text, _ in parts) for parts in batch]
    found, begins = tokenizer.encode(texts), tokenizer.word_starts(texts)
    ids += [x.astype(kind) for x in found]
    word_starts += [x.astype(np.uint8) for x in begins]
    if joined:
      loss_mask += map(_learned, batch, tokenizer.char_starts(texts))
      sizes += [len(x) for x in found]
      continue
    flags = [learn for parts in batch for _, learn in parts]
    loss_mask += [np.full(len(x), f, np.uint8) for x, f in zip(found, flags, strict=True)]
    lengths = iter([len(x) for x in found])
    sizes += [sum(next(lengths) for _ in parts) for parts in batch]
  if not sum(sizes):
    raise InputError('the text has not one token')
  join = np.concatenate
  return Corpus(join(ids), np.cumsum(sizes, dtype=np.int64), join(word_starts), join(loss_mask))


def _learned(parts: Parts, starts: np.ndarray) -> np.ndarray:
  """Returns whether each token that begins at characters `starts` [N] is a target: uint8 [N]."""
  flags = np.array([learn for _, learn in parts], np.uint8)
  ends = np.cumsum([len(text) for text, _ in parts])
  return flags[np.searchsorted(ends, starts, side='right').clip(max=len(flags) - 1)]


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
