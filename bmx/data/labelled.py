"""Texts with what is said of them: classes or numbers, tags of words."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from bmx.core.errors import InputError, did_you_mean
from bmx.core.types import Rows
from bmx.data.documents import describe, documents, records, said, whole
from bmx.data.loader import ArrayData, split_indices
from bmx.data.records import number, read_text
from bmx.data.tokenizer import Subwords

HOLDOUT = ('all', 'train', 'valid')
MISSING = (None, '')  # what a record says of what it does not know


@dataclasses.dataclass
class TextData(ArrayData):
  """Arrays made of text, with what made them."""

  tokenizer: Subwords | None = None


def classified(
  path: str,
  text: str,
  label: str,
  tokenizer: Subwords,
  length: int,
  batch_size: int,
  pair: str = '',
  fit: str = '',
  regression: bool = False,
  data_dir: str = '',
  split: str = 'all',
  holdout: float = 0.0,
  seed: int = 0,
  train: bool = True,
) -> TextData:
  """Texts (or pairs of texts) with a class or a number -> `tokens`, `segment_ids`, `types`, and
  `label` or `y`.

  Args:
    path: .jsonl, .csv or 'tfds:NAME/SPLIT'.
    text, pair, label: fields of a record; `pair` '' is none. There is no `label` where all records
      lack it (a file to predict) or have -1 (a hidden test set).
    length: tokens of a row; longer texts are cut (of a pair the longer one), and how many is told.
    fit: the path whose classes count, all of it; '' is `path`. An evaluation of another file names
      the training file here.
    split, holdout: 'train' and 'valid' where that share is held out.
  """
  every = records(path, data_dir)
  found = [every[i] for i in split_indices(len(every), split, holdout, HOLDOUT)]
  texts: list[Any] = [_text(r, text, where) for where, r in found]
  if pair:
    texts = [(a, _text(r, pair, where)) for a, (where, r) in zip(texts, found, strict=True)]
  arrays, cut = _rows(tokenizer, texts, length)
  info = facts(tokenizer, length, f'{path}: {len(texts):,} texts, {cut:,} of them cut')
  told, where = [r.get(label) for _, r in found], [w for w, _ in found]
  if all(v in MISSING or number(v) == -1 for v in told):
    if train:
      raise InputError(f'{path}: no record has a {label!r}{did_you_mean(label, found[0][1])}')
    return TextData(arrays, info, batch_size, seed, train, tokenizer=tokenizer)
  if regression:
    arrays['y'] = _numbers(told, where, label)
    info['targets'] = 1
  else:
    known = records(fit, data_dir) if fit and fit != path else every
    values = [r.get(label) for _, r in known]
    names = sorted({str(v) for v in values if v not in MISSING}, key=_by_number)
    arrays['label'] = _labels(told, names, where)
    info |= {'classes': len(names), 'names': tuple(names)}
  return TextData(arrays, info, batch_size, seed, train, tokenizer=tokenizer)


def facts(tokenizer: Subwords, length: int, source: str) -> dict[str, Any]:
  return {'vocab': tokenizer.size, 'length': length, 'source': source}


def _text(record: dict[str, Any], field: str, where: str) -> str:
  return whole(said(record, field, where), where)


def _by_number(name: str) -> tuple[float, str]:
  """Classes 0 to 10 in their order, names by the alphabet behind them."""
  value = number(name)
  return (float('inf') if value is None else value), name


def _labels(told: Sequence[Any], names: Sequence[str], where: Sequence[str]) -> np.ndarray:
  place = {name: i for i, name in enumerate(names)}
  for value, at in zip(told, where, strict=True):
    if str(value) not in place:
      raise InputError(f'{at}: class {value!r} is not one of {", ".join(names)}')
  return np.array([place[str(v)] for v in told], np.int32)


def _numbers(told: Sequence[Any], where: Sequence[str], label: str) -> np.ndarray:
  values = [number(v) for v in told]
  if None in values:
    row = values.index(None)
    raise InputError(f'{where[row]}: {label} is {told[row]!r}, expected a number')
  return np.array(values, np.float32)[:, None]


def _rows(tokenizer: Subwords, texts: Sequence[Any], length: int) -> tuple[Rows, int]:
  """Texts, or pairs of texts, encoded and padded -> (rows, texts that had to be cut)."""
  found = _encoded(tokenizer, texts, length)
  arrays = {k: np.zeros((len(found), length), np.int32) for k in ('tokens', 'segment_ids', 'types')}
  for n, one in enumerate(found):
    size = len(one.ids)
    arrays['tokens'][n, :size] = one.ids
    arrays['segment_ids'][n, :size] = 1
    arrays['types'][n, :size] = one.type_ids
  return arrays, sum(bool(one.overflowing) for one in found)


def _encoded(
  tokenizer: Subwords, texts: Sequence[Any], length: int, words: bool = False
) -> Sequence[Any]:
  """What the tokenizer says of texts, pairs of texts or lists of `words`, with special tokens and
  cut to `length`."""
  inner, pair = tokenizer.inner, isinstance(next(iter(texts), None), tuple)
  least = inner.num_special_tokens_to_add(pair) + 1 + pair
  if length < least:
    raise InputError(f'length={length}: these texts need at least {least} tokens')
  inner.enable_truncation(length)  # of a pair the longer one is cut
  try:
    return inner.encode_batch(list(texts), is_pretokenized=words)
  finally:
    inner.no_truncation()


def tagged(
  path: str,
  tokenizer: Subwords,
  length: int,
  batch_size: int,
  fit: str = '',
  split: str = 'all',
  holdout: float = 0.0,
  seed: int = 0,
  train: bool = True,
) -> TextData:
  """Sentences whose words have tags, in CoNLL's format (a word a line, its tag last, an empty line
  between sentences) -> `tokens`, `segment_ids`, `targets`, and `weights` 1 at the first token of
  each word.

  Args:
    fit: the path whose tags count, all of it; '' is `path`.
    split, holdout: 'train' and 'valid' where that share of the sentences is held out.
  """
  every = read_conll(path)
  known = read_conll(fit) if fit and fit != path else every
  found = [every[i] for i in split_indices(len(every), split, holdout, HOLDOUT)]
  names = tuple(sorted({tag for words in known for _, tag in words}, key=lambda t: (t != 'O', t)))
  place = {name: i for i, name in enumerate(names)}
  shape = (len(found), length)
  arrays: Rows = {k: np.zeros(shape, np.int32) for k in ('tokens', 'segment_ids', 'targets')}
  arrays['weights'] = np.zeros(shape, np.float32)
  lost = 0
  encoded = _encoded(tokenizer, [[w for w, _ in words] for words in found], length, words=True)
  for n, (words, one) in enumerate(zip(found, encoded, strict=True)):
    size = len(one.ids)
    arrays['tokens'][n, :size] = one.ids
    arrays['segment_ids'][n, :size] = 1
    seen: set[int] = set()
    for t, word in enumerate(one.word_ids):
      if word is None or word in seen:
        continue
      seen.add(word)
      tag = words[word][1]
      if tag not in place:
        raise InputError(f'{path}: tag {tag!r} is not one of {", ".join(names)}')
      arrays['targets'][n, t], arrays['weights'][n, t] = place[tag], 1.0
    lost += len(words) - len(seen)
  info = facts(tokenizer, length, f'{path}: {len(found):,} sentences, {lost:,} words cut off')
  return TextData(arrays, info | {'names': names}, batch_size, seed, train, tokenizer=tokenizer)


def read_conll(path: str) -> list[list[tuple[str, str]]]:
  """Sentences of (word, tag). Raises InputError naming file and line."""
  sentences: list[list[tuple[str, str]]] = [[]]
  for n, line in enumerate(read_text(pathlib.Path(path)).split('\n'), 1):
    cells = [c.strip() for c in line.split('\t')] if '\t' in line else line.split()
    if not line.strip() or cells[0] == '-DOCSTART-':
      sentences.append([])
      continue
    if len(cells) < 2 or not cells[0] or not cells[-1]:
      raise InputError(f'{path}, line {n}: a word and its tag are expected, not {line!r}')
    sentences[-1].append((cells[0], cells[-1]))
  sentences = [s for s in sentences if s]
  if not sentences:
    raise InputError(f'{path} is empty')
  return sentences


def library(
  tokenizer: Subwords,
  length: int,
  batch_size: int,
  split: str = 'train',
  holdout: float = 0.1,
  seed: int = 0,
  train: bool = True,
) -> TextData:
  """Lines of the installed Python's standard library, of two classes: comments (1) and code (0).
  The comment's mark is taken away. Text that needs no file."""
  lines = [line.strip() for text in documents() for line in text.splitlines()]
  comments = [line.strip('# ') for line in lines if line.startswith('# ')]
  code = [line for line in lines if line and not line.startswith('#')][: 4 * len(comments) : 4]
  texts, labels = comments + code, [1] * len(comments) + [0] * len(code)
  chosen = split_indices(len(texts), split, holdout, HOLDOUT)
  arrays, cut = _rows(tokenizer, [texts[i] for i in chosen], length)
  arrays['label'] = np.array(labels, np.int32)[chosen]
  source = f'{describe(())}, {split}: {len(chosen):,} lines, {cut:,} of them cut'
  info = facts(tokenizer, length, source) | {'classes': 2, 'names': ('code', 'comment')}
  return TextData(arrays, info, batch_size, seed, train, tokenizer=tokenizer)
