"""Sentences whose words have tags."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.data import Examples
from bmx.core.errors import InputError
from bmx.core.types import HostBatch
from bmx.data.arrays import split_indices
from bmx.data.classes import ordered_names, warn_unseen
from bmx.data.records import LINE_END, read_text
from bmx.data.shapes import shapes
from bmx.data.text.documents import whole
from bmx.data.text.encoding import SPLITS, TextData, encode, fill_row, text_metadata
from bmx.data.text.spans import OUTSIDE
from bmx.data.text.tokenizer import Subwords
from bmx.data.text.windows import along
from bmx.data.text.words import space_before
from bmx.runtime.storage import place

GIVEN = 'the given records'


@dataclasses.dataclass
class TagData(TextData):
  """Sentences whose words have tags.

  Attributes:
    sentences: (word, tag) of each row, all of them.
    heads: of each row, (token, word) for the first token of each word that has one.
  """

  sentences: Sequence[Sequence[tuple[str, str]]] = ()
  heads: Sequence[Sequence[tuple[int, int]]] = ()

  def present(self, predictions: HostBatch) -> list[dict[str, Any]]:
    """Each sentence: {'words': [...], 'tags': [predicted], 'known': [tags of the file]}.

    A word without a token, cut off or deleted by the tokenizer, is predicted as 'O'. 'known' is
    missing where the sentence has no tags.
    """
    names, result = self.metadata['class_names'], []
    rows = zip(self.sentences, self.heads, predictions['prediction'], strict=True)
    for sentence, heads, ids in rows:
      found = {word: names[int(ids[token])] for token, word in heads}
      words, known = (list(column) for column in zip(*sentence, strict=True))
      tags = [found.get(n, OUTSIDE) for n in range(len(words))]
      line = {'words': words, 'tags': tags}
      result.append(line | ({'known': known} if any(known) else {}))
    return result


def token_classification(
  path: str,
  tokenizer: Subwords,
  length: int,
  split: str = 'all',
  holdout: float = 0.0,
  classes: Sequence[str] = (),
  given: Any = None,
  fitted: Mapping[str, Any] | None = None,
  read: bool = True,
  seed: int = 0,
  train: bool = True,
) -> Examples:
  """Reads sentences whose words have tags -> `tokens`, `segment_ids`, `targets` and `weights`.

  `weights` is 1 at the first token of each word. Words have the ids that they have inside a text,
  with the space before them where the tokenizer reads it. The file is in CoNLL's format: a word a
  line, its tag last, an empty line between sentences.

  Args:
    path: of the file.
    tokenizer: of the words.
    length: tokens of a row.
    split: 'all', 'train' or 'valid'.
    holdout: share of the sentences in 'valid'.
    classes: tags in the order of the model's outputs; default: 'O', then the others, sorted.
    given: sentences instead of `path`: a list of {'words': [...], 'tags': [...]}; to predict, tags
      may be missing.
    fitted: `state()` of the training data, whose tags count.
    read: False returns shapes only.
    seed: of the run.
    train: training data.

  Raises:
    InputError: a file that cannot be read, a tag that the training data or `classes` lack.
  """
  if not read:
    rows = {k: along(length) for k in ('tokens', 'segment_ids', 'targets')}
    return shapes(rows | {'weights': along(length, np.float32)}, length=length)
  every = read_conll(path) if given is None else _given(given, train)
  path = path or GIVEN
  found = [every[i] for i in split_indices(len(every), split, holdout, SPLITS)]
  used = {tag for words in every for _, tag in words if tag}
  tags = sorted(used, key=lambda t: (t != OUTSIDE, t))
  names = ordered_names(tags, classes, fitted)
  if train and not fitted:
    warn_unseen(tags, {tag for words in found for _, tag in words}, path)
  before = space_before(tokenizer)
  words = [[before + word for word, _ in sentence] for sentence in found]
  encoded = encode(tokenizer, words, length, words=True)
  heads = [_heads(one.word_ids) for one in encoded]
  arrays = _arrays(tokenizer, encoded, length)
  place = {name: i for i, name in enumerate(names)}
  for n, (sentence, firsts) in enumerate(zip(found, heads, strict=True)):
    for _, tag in sentence:
      if tag and tag not in place:
        raise InputError(f'{path}: tag {tag!r}; expected one of {", ".join(names)}')
    for token, word in firsts:
      tag = sentence[word][1]
      arrays['targets'][n, token] = place.get(tag, 0)
      arrays['weights'][n, token] = 1.0 if tag else 0.0
  cut, deleted = _lost(encoded, heads, found)
  source = f'{path}: {len(found):,} sentences, {cut:,} words cut off'
  source += f', {deleted:,} without a token' if deleted else ''
  metadata = text_metadata(tokenizer, length, source) | {'class_names': names}
  return TagData(
    arrays, metadata, seed, train, fitted={'class_names': list(names)}, tokenizer=tokenizer,
    sentences=found, heads=heads,
  )  # fmt: skip


def _arrays(tokenizer: Subwords, encoded: Sequence[Any], length: int) -> HostBatch:
  """Rows without tags; none of them has types."""
  rows = [fill_row(tokenizer, one.ids, one.type_ids, length) for one in encoded]
  arrays: HostBatch = {k: np.stack([row[k] for row in rows]) for k in ('tokens', 'segment_ids')}
  shape = (len(rows), length)
  return arrays | {'targets': np.zeros(shape, np.int32), 'weights': np.zeros(shape, np.float32)}


def _heads(words: Sequence[int | None]) -> list[tuple[int, int]]:
  """(token, word) of the first token of each word.

  >>> _heads([None, 0, 0, 2, None])
  [(1, 0), (3, 2)]
  """
  first: dict[int, int] = {}
  for token, word in enumerate(words):
    if word is not None:
      first.setdefault(word, token)
  return [(token, word) for word, token in first.items()]


def _lost(
  encoded: Sequence[Any], heads: Sequence[Any], sentences: Sequence[Any]
) -> tuple[int, int]:
  """Words whose tokens do not fit the row, and words of which the tokenizer makes no token."""
  made = [{w for e in (one, *one.overflowing) for w in e.word_ids} - {None} for one in encoded]
  cut = sum(len(m) - len(h) for m, h in zip(made, heads, strict=True))
  return cut, sum(len(s) - len(m) for s, m in zip(sentences, made, strict=True))


def _given(given: Any, train: bool) -> list[list[tuple[str, str]]]:
  """Sentences in memory; '' stands for a tag that is missing, which no evaluation counts.

  Raises InputError for a sentence without words, words or tags that are not texts, or fewer tags.
  """
  if not isinstance(given, list | tuple) or not given:
    raise InputError(f'{GIVEN}: expected a list of at least one sentence')
  sentences = []
  for n, record in enumerate(given, 1):
    where = f'{GIVEN}, record {n}'
    words = record.get('words') if isinstance(record, Mapping) else None
    if not _are_texts(words) or not words:
      raise InputError(f'{where}: words={words!r:.60}: expected a list of at least one text')
    tags = record.get('tags') or ([] if train else [''] * len(words))
    if not isinstance(tags, list | tuple) or len(tags) != len(words):
      raise InputError(f'{where}: tags={tags!r:.60}: expected a tag for each of {len(words)} words')
    if not all(isinstance(tag, str) and (tag or not train) for tag in tags):
      raise InputError(
        f'{where}: tags={tags!r:.60}: expected texts, in training none that is empty'
      )
    sentences.append([(whole(word, where), tag) for word, tag in zip(words, tags, strict=True)])
  return sentences


def _are_texts(words: Any) -> bool:
  return isinstance(words, list | tuple) and all(isinstance(w, str) and w.strip() for w in words)


def read_conll(path: str) -> list[list[tuple[str, str]]]:
  """Reads sentences of (word, tag). Raises InputError naming file and line."""
  sentences: list[list[tuple[str, str]]] = [[]]
  for n, line in enumerate(LINE_END.split(read_text(place(path))), 1):
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
