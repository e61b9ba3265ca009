"""Sentences whose words have tags."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bmx.core.data import Examples
from bmx.core.errors import InputError
from bmx.core.paths import local
from bmx.core.types import HostBatch
from bmx.data.arrays import split_indices
from bmx.data.records import LINE_END, read_text
from bmx.data.shapes import shapes
from bmx.data.text.encoding import SPLITS, TextData, encode, text_metadata
from bmx.data.text.tokenizer import Subwords
from bmx.data.text.windows import along


def token_classification(
  path: str,
  tokenizer: Subwords,
  length: int,
  split: str = 'all',
  holdout: float = 0.0,
  fitted: Mapping[str, Any] | None = None,
  read: bool = True,
  seed: int = 0,
  train: bool = True,
) -> Examples:
  """Reads sentences whose words have tags -> `tokens`, `segment_ids`, `targets` and `weights`.

  `weights` is 1 at the first token of each word. The file is in CoNLL's format: a word a line, its
  tag last, an empty line between sentences.

  Args:
    path: of the file.
    tokenizer: of the words.
    length: tokens of a row.
    split: 'all', 'train' or 'valid'.
    holdout: share of the sentences in 'valid'.
    fitted: `state()` of the training data, whose tags count.
    read: False returns shapes only.
    seed: of the run.
    train: training data.

  Raises:
    InputError: a file that cannot be read, a tag that the training data lacks.
  """
  if not read:
    rows = {k: along(length) for k in ('tokens', 'segment_ids', 'targets')}
    return shapes(rows | {'weights': along(length, np.float32)}, length=length)
  every = read_conll(path)
  found = [every[i] for i in split_indices(len(every), split, holdout, SPLITS)]
  tags = {tag for words in every for _, tag in words}
  names = tuple(fitted['class_names'] if fitted else sorted(tags, key=lambda t: (t != 'O', t)))
  place = {name: i for i, name in enumerate(names)}
  shape = (len(found), length)
  arrays: HostBatch = {k: np.zeros(shape, np.int32) for k in ('tokens', 'segment_ids', 'targets')}
  arrays['weights'] = np.zeros(shape, np.float32)
  lost = 0
  encoded = encode(tokenizer, [[w for w, _ in words] for words in found], length, words=True)
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
        raise InputError(f'{path}: tag {tag!r}; expected one of {", ".join(names)}')
      arrays['targets'][n, t], arrays['weights'][n, t] = place[tag], 1.0
    lost += len(words) - len(seen)
  source = f'{path}: {len(found):,} sentences, {lost:,} words cut off'
  metadata = text_metadata(tokenizer, length, source) | {'class_names': names}
  state = {'class_names': list(names)}
  return TextData(arrays, metadata, seed, train, fitted=state, tokenizer=tokenizer)


def read_conll(path: str) -> list[list[tuple[str, str]]]:
  """Reads sentences of (word, tag). Raises InputError naming file and line."""
  sentences: list[list[tuple[str, str]]] = [[]]
  for n, line in enumerate(LINE_END.split(read_text(local(path))), 1):
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
