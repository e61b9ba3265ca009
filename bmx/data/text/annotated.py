"""Texts with spans of named things, as sentences whose words have tags."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core import streams
from bmx.core.data import Examples
from bmx.core.errors import InputError
from bmx.data.arrays import split_indices
from bmx.data.records import Record, numbered_json_lines, read_text
from bmx.data.text.documents import whole
from bmx.data.text.encoding import SPLITS
from bmx.data.text.spans import Span, spans_of, tags_of, words_of
from bmx.data.text.token_classification import read_conll, token_classification
from bmx.data.text.tokenizer import Subwords
from bmx.data.text.tokenizer_train import learned
from bmx.runtime.storage import place

# Names of fields: those of bmx, and those of presidio-research.
TEXT, START, END, TYPE = (
  ('text', 'full_text'), ('start', 'start_position'), ('end', 'end_position'),
  ('type', 'entity_type'),
)  # fmt: skip
GROUP = 'template_id'
MADE = 240  # texts that are made without a file
TEMPLATES = (
  'My name is {PERSON} and I live in {LOCATION}.',
  '{PERSON} works for {ORGANIZATION} in {LOCATION}.',
  'Please send the parcel to {PERSON}, {LOCATION}.',
  'Yesterday {ORGANIZATION} opened a shop in {LOCATION}, said {PERSON}.',
  'Who is {PERSON}? Ask {ORGANIZATION}.',
  'The weather in {LOCATION} is fine, and nobody works today.',
  'I have moved from {LOCATION} to {LOCATION}.',
  'There is nothing to see here.',
)
SYLLABLES = ('an', 'bel', 'cor', 'dra', 'el', 'fin', 'gar', 'hol', 'is', 'jor', 'kin', 'lo')
ENDINGS = {'PERSON': ' {}son', 'LOCATION': 'burg', 'ORGANIZATION': ' Inc'}


@dataclasses.dataclass(frozen=True)
class Annotated:
  """A text and its spans; texts of one group are not parted by a split."""

  text: str
  spans: tuple[Span, ...]
  group: str


def annotated(
  path: str,
  tokenizer: Subwords,
  length: int = 128,
  split: str = 'all',
  holdout: float = 0.0,
  more: Sequence[str] = (),
  types: Mapping[str, str] | None = None,
  given: Any = None,
  fitted: Mapping[str, Any] | None = None,
  read: bool = True,
  seed: int = 0,
  train: bool = True,
) -> Examples:
  """Reads texts with spans as sentences with tags; see `token_classification`.

  Args:
    path: of a file, see `texts_of`; '': made sentences.
    tokenizer: of the words.
    length: tokens of a row; later words of a text are cut off, and counted.
    split: 'all', 'train' or 'valid'.
    holdout: share of the groups in 'valid'.
    more: files that training reads besides, whole.
    types: type in the files -> type of the tags; others are not tagged. None: as in the files.
    given: sentences instead of `path`, as `token_classification` takes them.
    fitted: `state()` of the training data, whose tags count.
    read: False returns shapes only.
    seed: of the run.
    train: training data.

  Raises:
    InputError: see `texts_of`.
  """
  if read and given is None:
    texts = texts_of(path, split, holdout, more if train else (), types)
    given = [_tagged(t) for t in texts if words_of(t.text)]
  return token_classification(
    path, tokenizer, length, given=given, fitted=fitted, read=read, seed=seed, train=train,
  )  # fmt: skip


def tokenizer(
  path: str = '',
  holdout: float = 0.0,
  more: Sequence[str] = (),
  vocab_size: int = 4000,
) -> Subwords:
  """Trains a cased WordPiece tokenizer on the training part of the texts of `annotated`.

  Args:
    path: file of annotated texts.
    holdout: share of the groups of texts that is not read.
    more: further files of annotated texts.
    vocab_size: of the tokenizer.
  """
  texts = texts_of(path, 'train', holdout, more)
  return learned([t.text for t in texts], 'wordpiece', vocab_size, lowercase=False)


def texts_of(
  path: str,
  split: str = 'all',
  holdout: float = 0.0,
  more: Sequence[str] = (),
  types: Mapping[str, str] | None = None,
) -> list[Annotated]:
  """Returns the texts of a part.

  A record of .json (a list) or .jsonl has `text` and `spans`, each with `start`, `end` (in
  characters) and `type`; or the names of presidio-research, whose `template_id` is the group.
  Another file is in CoNLL's format; each sentence is a group of its own.

  Args:
    path: of a file; '': sentences made from templates.
    split: 'all', 'train' or 'valid'.
    holdout: share of the groups in 'valid'.
    more: files that are added, whole.
    types: see `annotated`.

  Raises:
    InputError: a file that is missing, damaged or empty; spans outside their text.
  """
  texts = _read(path) if path else _made()
  groups = sorted({t.group for t in texts})
  inside = {groups[i] for i in split_indices(len(groups), split, holdout, SPLITS)}
  found = [t for t in texts if t.group in inside] + [t for p in more for t in _read(p)]
  return found if types is None else [_renamed(t, types) for t in found]


def _renamed(text: Annotated, types: Mapping[str, str]) -> Annotated:
  spans = (dataclasses.replace(s, type=types[s.type]) for s in text.spans if s.type in types)
  return dataclasses.replace(text, spans=tuple(spans))


def _tagged(text: Annotated) -> Record:
  words = words_of(text.text)
  return {'words': [text.text[a:b] for a, b in words], 'tags': tags_of(words, text.spans)}


@functools.lru_cache(maxsize=8)  # the parts of a recipe read the same files
def _read(path: str) -> tuple[Annotated, ...]:
  suffix = path.lower().rpartition('.')[2]
  if suffix == 'jsonl':
    found = [(f'{path}, line {n}', r) for n, r in numbered_json_lines(place(path))]
  elif suffix == 'json':
    found = [(f'{path}, record {n}', r) for n, r in enumerate(_json_list(path), 1)]
  else:
    return tuple(_sentence(words, str(n)) for n, words in enumerate(read_conll(path)))
  return tuple(_annotated(record, where, str(n)) for n, (where, record) in enumerate(found))


def _json_list(path: str) -> list[Any]:
  try:
    found = json.loads(read_text(place(path)))
  except (ValueError, RecursionError) as error:
    if isinstance(error, InputError):
      raise
    raise InputError(f'{path}: not JSON: {error}') from None
  if not isinstance(found, list) or not found:
    raise InputError(f'{path}: expected a list of texts with spans')
  return found


def _annotated(record: Any, where: str, number: str) -> Annotated:
  try:
    text = next(record[name] for name in TEXT if name in record)
    spans = tuple([_span(span) for span in record.get('spans', ())])
    right = all(0 <= s.start < s.end <= len(text) for s in spans)
  except (AttributeError, KeyError, TypeError, ValueError, StopIteration):
    right, text, spans = False, '', ()
  if not right or not isinstance(text, str):
    raise InputError(f"{where}: expected 'text' and 'spans', each with 'start', 'end' and 'type', "
                     'inside the text')  # fmt: skip
  group = record.get(GROUP)
  return Annotated(whole(text, where), spans, number if group is None else f'{GROUP} {group}')


def _span(span: Mapping[str, Any]) -> Span:
  value = lambda names: next(span[name] for name in names if name in span)
  return Span(int(value(START)), int(value(END)), str(value(TYPE)))


def _sentence(words: Sequence[tuple[str, str]], group: str) -> Annotated:
  """A sentence of CoNLL's format as a text with single blanks."""
  end, places, tags = 0, [], []
  for word, tag in words:
    places.append((end, end + len(word)))
    tags.append(tag)
    end += len(word) + 1
  return Annotated(' '.join(word for word, _ in words), tuple(spans_of(places, tags)), group)


@functools.cache
def _made() -> tuple[Annotated, ...]:
  """Sentences of templates with made names, the same on every machine."""
  rng = streams.generator(0, streams.SYNTHETIC, 2)
  return tuple(_filled(n % len(TEMPLATES), rng) for n in range(MADE))


def _filled(number: int, rng: np.random.Generator) -> Annotated:
  text, spans = '', []
  for before, type in _parts(TEMPLATES[number]):
    text += before
    if type:
      name = ''.join(rng.choice(SYLLABLES, 2)).capitalize()
      value = name + ENDINGS[type].format(str(rng.choice(SYLLABLES)).capitalize())
      spans.append(Span(len(text), len(text) + len(value), type))
      text += value
  return Annotated(text, tuple(spans), str(number))


def _parts(template: str) -> Iterator[tuple[str, str]]:
  """Yields (text before, type) of each place of a template; the last one has the type ''."""
  rest = template
  while '{' in rest:
    before, _, rest = rest.partition('{')
    type, _, rest = rest.partition('}')
    yield before, type
  yield rest, ''
