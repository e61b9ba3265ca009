"""Questions on paragraphs, in SQuAD's format, and the texts that answer them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bmx.core.data import Examples, Spec
from bmx.core.errors import InputError
from bmx.core.types import HostBatch
from bmx.data.arrays import split_indices
from bmx.data.shapes import shapes
from bmx.data.text.documents import squad_paragraphs
from bmx.data.text.encoding import SPLITS, TextData, fill_row, pad, text_metadata, text_spec
from bmx.data.text.questions import (
  GIVEN,
  check_question,
  given_paragraphs,
  is_impossible,
  known_answers,
)
from bmx.data.text.template import need_prefix
from bmx.data.text.tokenizer import Subwords


@dataclasses.dataclass(frozen=True)
class Window:
  """A part of a question's paragraph: the question's number, and the characters of each token."""

  question: int
  offsets: tuple[tuple[int, int], ...]


@dataclasses.dataclass
class QuestionData(TextData):
  """Questions on paragraphs, each in as many windows as the paragraph needs.

  Attributes:
    windows: of each row.
    contexts, ids: of each question.
    gold: right texts of each question; [''] if it has no answer, [] if the answer is hidden.
    no_answer: whether a question may have no answer (SQuAD 2.0).
  """

  windows: Sequence[Window] = ()
  contexts: Sequence[str] = ()
  ids: Sequence[str] = ()
  gold: Sequence[Sequence[str]] = ()
  no_answer: bool = False

  def present(self, predictions: HostBatch) -> list[dict[str, Any]]:
    """Returns the answers: {'id': of the file, 'answer': text, 'known': [right texts]} of each."""
    answers = zip(self.ids, self.answers(predictions), strict=True)
    return [{'id': i, 'answer': a, 'known': known} for i, (a, known) in answers]

  def answers(self, rows: HostBatch) -> list[tuple[str, list[str]]]:
    """Returns (predicted text, right texts) of each question, from all its windows in order.

    The answer is the span with the highest score of all windows. With `no_answer`, it is '' if the
    lowest score that any window gives to no answer is higher.

    Source: `postprocess_qa_predictions` of transformers' examples, Rajpurkar et al. 2018.
    """
    best: dict[int, tuple[float, str]] = {}
    none = dict.fromkeys(range(len(self.gold)), float('inf'))
    scores = rows['score'] + rows['no_answer'], rows['no_answer']
    for window, (first, last), span, empty in zip(
      self.windows, rows['prediction'], *scores, strict=True
    ):
      n, text = window.question, self.contexts[window.question]
      answer = text[window.offsets[int(first)][0] : window.offsets[int(last)][1]]
      if n not in best or span > best[n][0]:
        best[n] = float(span), answer
      none[n] = min(none[n], float(empty))
    empty = lambda n: self.no_answer and none[n] > best[n][0]
    return [('' if empty(n) else best[n][1], list(texts)) for n, texts in enumerate(self.gold)]


def squad(
  path: str,
  tokenizer: Subwords,
  length: int,
  stride: int = 0,
  split: str = 'all',
  holdout: float = 0.0,
  given: Any = None,
  fitted: Mapping[str, Any] | None = None,
  read: bool = True,
  seed: int = 0,
  train: bool = True,
) -> Examples:
  """Reads a file in SQuAD's format -> rows of a question and a part of the paragraph.

  The tokenizer joins both as a pair ("[CLS] question [SEP] part [SEP]"). The arrays are `tokens`,
  `segment_ids`, `types`, `context`, and the answer's `first` and `last` token, 0 if the part does
  not hold it.

  Args:
    path: of the file. `is_impossible` marks a question without an answer (SQuAD 2.0).
    tokenizer: of the texts.
    length: tokens of a row.
    stride: tokens between the beginnings of two windows, at most their length; 0 is half of it.
    split: 'all', 'train' or 'valid'.
    holdout: share of the *articles* in 'valid', so that no paragraph is in both.
    given: questions instead of `path`: a list of {'question': text, 'context': text, ...}, whose
      other keys are those of a question in a file.
    fitted: `state()` of the training data: questions without an answer are predicted if those had
      any.
    read: False returns shapes only.
    seed: of the run.
    train: training data.

  Raises:
    InputError: a file that cannot be read; an answer that differs from the text at its
      `answer_start`; in training, a question with neither an answer nor `is_impossible`; a
      tokenizer that puts nothing before or between two texts.
  """
  if not read:
    place = Spec((), np.dtype(np.int32))
    more = ('context', Spec((length,), np.dtype(np.int32))), ('first', place), ('last', place)
    return shapes(text_spec(length, *more), length=length)
  need_prefix(tokenizer.template, 'questions', pair=True)
  least = 2 * tokenizer.template.added + 1
  if length < least or stride < 0:
    raise InputError(f'length={length}, stride={stride}: at least {least} and 0 are expected')
  paragraphs = squad_paragraphs(path) if given is None else given_paragraphs(given)
  path = path or GIVEN
  titles = list(dict.fromkeys(title for title, _ in paragraphs))
  chosen = {titles[i] for i in split_indices(len(titles), split, holdout, SPLITS)}
  every = [(p['context'], q, t in chosen) for t, p in paragraphs for q in p['qas']]
  for n, (context, qa, _) in enumerate(every, 1):
    check_question(qa, context, f'{path}, question {n}', train)
  asked = [(context, qa) for context, qa, mine in every if mine]
  if not asked:
    raise InputError(f'{path} has no question')
  rows, windows = _windows(tokenizer, asked, length, stride)
  arrays = {k: np.stack([r[k] for r in rows]) for k in rows[0]}
  impossible = [is_impossible(qa) for _, qa in asked]
  source = f'{path}, {split}: {len(asked):,} questions, {sum(impossible):,} without an answer'
  metadata = text_metadata(tokenizer, length, source) | {'questions': len(asked)}
  known = (fitted or {}).get('no_answer')
  no_answer = any(is_impossible(qa) for _, qa, _ in every) if known is None else known
  return QuestionData(
    arrays, metadata, seed, train, fitted={'no_answer': no_answer}, tokenizer=tokenizer,
    windows=windows, contexts=[c for c, _ in asked], ids=[str(q.get('id', '')) for _, q in asked],
    gold=[known_answers(qa) for _, qa in asked], no_answer=no_answer,
  )  # fmt: skip


def _windows(
  tokenizer: Subwords, asked: Sequence[tuple[str, Any]], length: int, stride: int
) -> tuple[list[HostBatch], list[Window]]:
  """Rows of all questions, and which part of a paragraph each has."""
  contexts = list(dict.fromkeys(context for context, _ in asked))
  encoded = dict(zip(contexts, tokenizer.encodings(contexts), strict=True))
  questions = tokenizer.encode([qa['question'] for _, qa in asked])
  rows, windows = [], []
  for n, (context, qa) in enumerate(asked):
    question, text = questions[n][: length // 2].tolist(), encoded[context]
    capacity = length - tokenizer.template.added - len(question)
    for start in _starts(len(text.ids), capacity, min(stride or max(capacity // 2, 1), capacity)):
      part = slice(start, start + capacity)
      joined = tokenizer.template.join(question, text.ids[part])
      stands = iter(text.offsets[part])
      windows.append(Window(n, tuple(next(stands) if p == 2 else (0, 0) for p in joined.parts)))
      row = fill_row(tokenizer, joined.ids, joined.types, length)
      row['context'] = pad([int(p == 2) for p in joined.parts], length)
      rows.append(row | _place(qa, windows[-1].offsets, joined.parts))
  return rows, windows


def _starts(size: int, capacity: int, stride: int) -> list[int]:
  """Returns the starts of windows of `capacity` tokens that cover `size`.

  >>> _starts(10, 6, 3), _starts(4, 6, 3)
  ([0, 3, 6], [0])
  """
  return list(range(0, max(size - capacity, 0) + stride, stride)) if size > capacity else [0]


def _place(qa: Any, offsets: Sequence[tuple[int, int]], parts: Sequence[int]) -> HostBatch:
  """Returns first and last token of the first answer; 0 and 0 if the window lacks a part of it."""
  place = lambda first, last: {'first': np.array(first, np.int32), 'last': np.array(last, np.int32)}
  if not qa.get('answers'):
    return place(0, 0)
  text, begin = (qa['answers'][0][k] for k in ('text', 'answer_start'))
  begin += len(text) - len(text.lstrip())  # no token need hold the space around it
  end = begin + len(text.strip())
  stands = [
    (i, a, b) for i, (a, b) in enumerate(offsets) if parts[i] == 2 and b > begin and a < end
  ]
  if not stands or stands[0][1] > begin or stands[-1][2] < end:
    return place(0, 0)
  return place(stands[0][0], stands[-1][0])
