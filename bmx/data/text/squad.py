"""Questions on paragraphs, in SQuAD's format, and the texts that answer them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bmx.core.data import Examples, Spec
from bmx.core.errors import InputError
from bmx.core.types import HostBatch
from bmx.data.arrays import split_indices
from bmx.data.shapes import shapes
from bmx.data.text.documents import squad_paragraphs
from bmx.data.text.encoding import SPLITS, TextData, text_metadata, text_spec
from bmx.data.text.tokenizer import Subwords


@dataclasses.dataclass(frozen=True)
class Window:
  """A part of a question's paragraph: which question, and where its tokens stand in the text."""

  question: int
  offsets: tuple[tuple[int, int], ...]


@dataclasses.dataclass
class QuestionData(TextData):
  """Questions on paragraphs, each in as many windows as the paragraph needs."""

  windows: Sequence[Window] = ()
  contexts: Sequence[str] = ()  # of each question
  gold: Sequence[Sequence[str]] = ()

  def present(self, predictions: HostBatch) -> list[dict[str, Any]]:
    """The answer of each question: {'answer': text, 'known': [right texts]}."""
    return [{'answer': a, 'known': known} for a, known in self.answers(predictions)]

  def answers(self, rows: HostBatch) -> list[tuple[str, list[str]]]:
    """(predicted text, texts that are right) of each question, from the predictions of all windows
    in order: the span of the window that is surest."""
    best: dict[int, tuple[float, str]] = {}
    for window, (first, last), score in zip(
      self.windows, rows['prediction'], rows['score'], strict=True
    ):
      text = self.contexts[window.question]
      told = text[window.offsets[int(first)][0] : window.offsets[int(last)][1]]
      if window.question not in best or score > best[window.question][0]:
        best[window.question] = float(score), told
    return [(best[q][1], list(texts)) for q, texts in enumerate(self.gold)]


def squad(
  path: str,
  tokenizer: Subwords,
  length: int,
  stride: int = 0,
  split: str = 'all',
  holdout: float = 0.0,
  read: bool = True,
  seed: int = 0,
  train: bool = True,
) -> Examples:
  """A file in SQuAD's format -> rows "[CLS] question [SEP] part of the paragraph [SEP]":
  `tokens`, `segment_ids`, `types`, `context`, and the answer's `first` and `last` token.

  Args:
    stride: tokens by which a window goes on from the one before, at most its length; 0 is half.
    split, holdout: 'valid' is that share of the *articles*, so that no paragraph is in both.
  """
  if not read:
    place = Spec((), np.dtype(np.int32))
    more = ('context', Spec((length,), np.dtype(np.int32))), ('first', place), ('last', place)
    return shapes(text_spec(length, *more), length=length)
  missing = {'cls', 'sep'} - set(tokenizer.special)
  if missing:
    raise InputError(f'questions need a tokenizer with [CLS] and [SEP]; no {sorted(missing)}')
  if length < 7 or stride < 0:
    raise InputError(f'length={length}, stride={stride}: at least 7 and 0 are expected')
  paragraphs = squad_paragraphs(path)
  titles = list(dict.fromkeys(title for title, _ in paragraphs))
  chosen = {titles[i] for i in split_indices(len(titles), split, holdout, SPLITS)}
  asked = [(p['context'], q) for t, p in paragraphs if t in chosen for q in p['qas']]
  if not asked:
    raise InputError(f'{path} has no question')
  for n, (_, qa) in enumerate(asked, 1):
    if not _is_question(qa):
      raise InputError(f'{path}, question {n}: expected are question, and answers with text and '
                       f'answer_start, not {str(qa)[:80]}')  # fmt: skip
  rows, windows = [], []
  encode = tokenizer.inner.encode
  for n, (context, qa) in enumerate(asked):
    question = encode(qa['question'], add_special_tokens=False).ids
    text = encode(context, add_special_tokens=False)
    room = length - 3 - min(len(question), length // 2)
    for start in _starts(len(text.ids), room, min(stride or max(room // 2, 1), room)):
      part = slice(start, start + room)
      rows.append(_window(tokenizer, question[: length // 2], text.ids[part], length))
      before = 2 + min(len(question), length // 2)
      offsets = [(0, 0)] * before + list(text.offsets[part])
      windows.append(Window(n, tuple(offsets)))
      rows[-1] |= _place(qa, offsets, before)
  arrays = {k: np.stack([r[k] for r in rows]) for k in rows[0]}
  metadata = text_metadata(tokenizer, length, f'{path}, {split}: {len(asked):,} questions')
  metadata['questions'] = len(asked)
  gold = [sorted({a['text'] for a in qa.get('answers', ())}) for _, qa in asked]
  return QuestionData(
    arrays, metadata, seed, train, tokenizer=tokenizer, windows=windows,
    contexts=[c for c, _ in asked], gold=gold,
  )  # fmt: skip


def _is_question(qa: Any) -> bool:
  try:
    answers = [(a['text'], a['answer_start']) for a in qa.get('answers', ())]
    texts = [qa['question'], *[text for text, _ in answers]]
  except (AttributeError, KeyError, TypeError):
    return False
  whole_numbers = all(type(start) is int for _, start in answers)
  return whole_numbers and all(isinstance(text, str) for text in texts)


def _starts(size: int, room: int, stride: int) -> list[int]:
  """Windows of `room` tokens that cover `size`.

  >>> _starts(10, 6, 3), _starts(4, 6, 3)
  ([0, 3, 6], [0])
  """
  return list(range(0, max(size - room, 0) + stride, stride)) if size > room else [0]


def _window(tokenizer: Subwords, question: list[int], part: list[int], length: int) -> HostBatch:
  cls, sep = tokenizer.special['cls'], tokenizer.special['sep']
  ids = [cls, *question, sep, *part, sep]
  before = len(question) + 2
  pad = lambda values: np.pad(np.array(values, np.int32), (0, length - len(values)))
  return {
    'tokens': pad(ids),
    'segment_ids': pad([1] * len(ids)),
    'types': pad([0] * before + [1] * (len(part) + 1)),
    'context': pad([0] * before + [1] * len(part)),
  }


def _place(qa: Any, offsets: Sequence[tuple[int, int]], before: int) -> HostBatch:
  """Tokens of the first answer; 0 and 0 where it is not whole in the window."""
  place = lambda first, last: {'first': np.array(first, np.int32), 'last': np.array(last, np.int32)}
  if not qa.get('answers'):
    return place(0, 0)
  text, begin = (qa['answers'][0][k] for k in ('text', 'answer_start'))
  begin += len(text) - len(text.lstrip())  # no token need hold the space around it
  end = begin + len(text.strip())
  inside = [i for i in range(before, len(offsets)) if offsets[i][1] > begin and offsets[i][0] < end]
  if not inside or offsets[inside[0]][0] > begin or offsets[inside[-1]][1] < end:
    return place(0, 0)
  return place(inside[0], inside[-1])
