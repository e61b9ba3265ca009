"""Pairs of a source and a target text: translation, summarization."""

import logging
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bmx.core.data import Examples
from bmx.core.errors import InputError, did_you_mean
from bmx.data.arrays import split_indices
from bmx.data.records import LINE_END, read_text
from bmx.data.shapes import shapes
from bmx.data.text.corpus import Corpus, encode
from bmx.data.text.documents import given_records, records, said, whole
from bmx.data.text.encoding import SPLITS
from bmx.data.text.parallel_rows import (
  Pair,
  ParallelData,
  document,
  parallel_spec,
  sizes_of,
)
from bmx.data.text.tokenizer import Tokenizer, frame
from bmx.runtime.storage import place

log = logging.getLogger('bmx')

LONG = ('error', 'cut', 'skip')
LINES = ('.jsonl', '.csv', '.tsv', '.parquet')  # kinds of files whose records name their fields


def parallel(
  tokenizer: Tokenizer,
  length: int,
  source_length: int = 0,
  path: str = '',
  targets: str = '',
  source: str = 'source',
  target: str = 'target',
  packed: bool = True,
  begin: int = -1,
  long: str = 'error',
  split: str = 'all',
  holdout: float = 0.0,
  data_dir: str = '',
  given: Any = None,
  read: bool = True,
  train: bool = True,
) -> Examples:
  """Reads pairs of texts, from two files of lines or from records with two fields.

  Args:
    tokenizer: of both sides; it has an end of text.
    length: tokens of a row of targets.
    source_length: tokens of a row of sources; 0 is `length`.
    path: sources, a line each (also compressed, .gz); or records: .jsonl, .csv, .tsv, .parquet,
      'tfds:NAME/SPLIT'.
    targets: their translations, a line each; '' for records, or where they are not known.
    source: field of a record.
    target: field of a record; records that all lack it can only be predicted.
    packed: rows of training data hold as many pairs as fit; those of other data hold one.
    begin: id that every target begins with; -1 is that of padding, or else the end of text.
    long: what happens to a pair that is longer than a row: 'error'; 'cut'; or 'skip', in training
      data, and an error in others.
    split: 'all', 'train' or 'valid'.
    holdout: share of 'valid'.
    data_dir: of TFDS.
    given: the records themselves instead of `path`: a data frame, or a list of mappings.
    read: False returns shapes only.
    train: training data.

  Raises:
    InputError: files of unequal numbers of lines, an empty side, a pair that is too long (line
      named), a tokenizer without an end of text.
  """
  source_length = source_length or length
  if long not in LONG:
    raise InputError(f'long={long!r}: expected one of {", ".join(LONG)}')
  if length < 2 or source_length < 2:
    raise InputError(f'length={length}, source_length={source_length}: expected at least 2 tokens')
  if not read:
    facts = {'length': length, 'source_length': source_length}
    return shapes(parallel_spec(length, source_length), **facts)
  if not frame(tokenizer).suffix:
    raise InputError('pairs of texts: expected a tokenizer with an end of text, such as '
                     'bmx.data.text.tokenizer_train:trained with kind=bpe')  # fmt: skip
  if given is None:
    every = read_pairs(path, targets, source, target, data_dir)
  else:
    every = _of_records(given_records(given), source, target)
  chosen = [every[i] for i in split_indices(len(every), split, holdout, SPLITS)]
  known = chosen[0].target is not None
  if train and not known:
    raise InputError(f'{path}: expected targets to learn; set data.targets=FILE, or give records '
                     f'with a field {target!r}')  # fmt: skip
  pairs, sides = _fitted(chosen, tokenizer, (source_length, length), long if train else
                         long.replace('skip', 'error'))  # fmt: skip
  special = tokenizer.special
  first = special.get('pad', special.get('eos', tokenizer.ends[0])) if begin < 0 else begin
  data = ParallelData(
    sides[0], sides[1], pairs, tokenizer.size, length, source_length, first, packed and train,
    {'ends': tokenizer.ends}, tokenizer,
  )  # fmt: skip
  skipped = (
    f', {len(chosen) - len(pairs):,} longer ones left out' if len(pairs) < len(chosen) else ''
  )
  data.metadata['source'] = (
    f'{path or "the given records"}, {split}: {len(pairs):,} pairs in {data.size:,} rows{skipped}'
  )
  if skipped:
    log.info('%s: %s', path or 'data', data.metadata['source'])
  return data


def read_pairs(path: str, targets: str, source: str, target: str, data_dir: str) -> list[Pair]:
  """Reads all pairs; the arguments are those of `parallel`."""
  name = path.lower().removesuffix('.gz')
  if path.startswith('tfds:') or pathlib.PurePath(name).suffix in LINES:
    if targets:
      raise InputError(f"targets={targets!r}: expected '' beside records; they have a field "
                       f'{target!r}')  # fmt: skip
    return _of_records(records(path, data_dir), source, target)
  if not path:
    raise InputError("path='': expected a file of sources, or of records with two fields")
  sources = _lines(path)
  if not targets:
    return [Pair(where, _text(text, where), None) for where, text in sources]
  others = _lines(targets)
  if len(sources) != len(others):
    raise InputError(
      f'{path} has {len(sources):,} lines and {targets} {len(others):,}: expected as many, the '
      'translation of a line in the line of the same number'
    )
  return [
    Pair(where, _text(text, where), _text(other, there))
    for (where, text), (there, other) in zip(sources, others, strict=True)
  ]


def _lines(path: str) -> list[tuple[str, str]]:
  """Reads (place, text) of every line of a file, empty ones too."""
  lines = LINE_END.split(read_text(place(path)))
  lines = lines[:-1] if lines[-1] == '' else lines
  if not lines:
    raise InputError(f'{path} is empty')
  return [(f'{path}, line {n}', text) for n, text in enumerate(lines, 1)]


def _text(text: str, where: str) -> str:
  if not text.strip():
    raise InputError(f'{where} is empty: expected a text on both sides; remove the pair')
  return whole(text, where)


def _of_records(found: Sequence[tuple[str, Any]], source: str, target: str) -> list[Pair]:
  if not found:
    raise InputError('data: expected at least one record')
  known = any(r.get(target) is not None for _, r in found)
  if not known and any(did_you_mean(target, r) for _, r in found[:1]):
    raise InputError(f'{found[0][0]}: no text under {target!r}{did_you_mean(target, found[0][1])}')
  text = lambda r, field, where: _text(said(r, field, where), f'{where}, {field!r}')
  return [
    Pair(where, text(r, source, where), text(r, target, where) if known else None)
    for where, r in found
  ]


def _fitted(
  pairs: Sequence[Pair], tokenizer: Tokenizer, lengths: tuple[int, int], long: str
) -> tuple[Sequence[Pair], tuple[Corpus, Corpus | None]]:
  """Encodes both sides, and treats pairs that are longer than `lengths` as `long` says."""
  both = [[p.source for p in pairs]]
  if pairs[0].target is not None:
    both.append([p.target or '' for p in pairs])
  sides = [_encoded(texts, tokenizer) for texts in both]
  words = ('source', 'source_length'), ('target', 'length')
  fits = np.ones(len(pairs), bool)
  for side, most, (name, word) in zip(sides, lengths, words, strict=False):
    bad = np.flatnonzero(sizes_of(side) > most)
    fits[bad] = False
    if len(bad) and long == 'error':
      first = int(bad[0])
      raise InputError(
        f'{pairs[first].where}: the {name} has {sizes_of(side)[first]} tokens: expected at most '
        f"{word}={most}; set --config.data.{word}, or --config.data.long='cut'"
      )
  if long == 'cut':
    ends = frame(tokenizer).suffix
    cut = [_cut(side, most, ends) for side, most in zip(sides, lengths, strict=False)]
  else:
    if not fits.any():
      raise InputError(f'{pairs[0].where}: expected a pair of at most source_length={lengths[0]} '
                       f'and length={lengths[1]} tokens; all are longer')  # fmt: skip
    kept = np.flatnonzero(fits)
    pairs = [pairs[i] for i in kept.tolist()]
    cut = [_taken(side, kept) for side in sides]
  return pairs, (cut[0], cut[1] if len(cut) > 1 else None)


def encoded(texts: Sequence[str], tokenizer: Tokenizer) -> list[np.ndarray]:
  """Returns the ids of sources or targets, with the tokens that the tokenizer adds, int32 each."""
  around = frame(tokenizer)
  ids = lambda one: np.array([*around.prefix, *one, *around.suffix], np.int32)
  return [ids(one) for one in tokenizer.encode(texts)]


def _encoded(texts: Sequence[str], tokenizer: Tokenizer) -> Corpus:
  """Encodes texts as `encoded` does, in one long row."""
  plain, around = encode([[(text, True)] for text in texts], tokenizer), frame(tokenizer)
  return _joined([
    np.concatenate([around.prefix, document(plain, n), around.suffix]).astype(np.int32)
    for n in range(len(plain.ends))
  ])  # fmt: skip


def _joined(documents: Sequence[np.ndarray]) -> Corpus:
  tokens = np.concatenate(documents)
  ones = np.ones(len(tokens), np.uint8)
  return Corpus(tokens, np.cumsum([len(d) for d in documents]), ones, ones)


def _taken(corpus: Corpus, kept: np.ndarray) -> Corpus:
  if len(kept) == len(corpus.ends):
    return corpus
  return _joined([document(corpus, n) for n in kept])


def _cut(corpus: Corpus, most: int, ends: tuple[int, ...]) -> Corpus:
  """Cuts documents to `most` tokens, the ends of them kept."""
  parts = [document(corpus, n) for n in range(len(corpus.ends))]
  short = lambda d: np.concatenate([d[: most - len(ends)], ends]).astype(np.int32)
  return _joined([d if len(d) <= most else short(d) for d in parts])
