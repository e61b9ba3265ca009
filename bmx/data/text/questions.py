"""Questions of a file in SQuAD's format: their checks and right answers."""

from collections.abc import Mapping
from typing import Any

from bmx.core.errors import InputError
from bmx.data.text.documents import whole

GIVEN = 'the given questions'


def given_paragraphs(given: Any) -> list[tuple[str, dict[str, Any]]]:
  """Returns (title, paragraph with its 'context' and one question) of questions in memory.

  Raises InputError for a record without a question or a context.
  """
  if not isinstance(given, list | tuple) or not given:
    raise InputError(f'{GIVEN}: expected a list of at least one question')
  found = []
  for n, record in enumerate(given, 1):
    for key in ('question', 'context'):
      text = record.get(key) if isinstance(record, Mapping) else None
      if not isinstance(text, str) or not text.strip():
        raise InputError(f'{GIVEN}, record {n}: {key}={text!r:.60}: expected a text')
      whole(text, f'{GIVEN}, record {n}: {key}')
    found.append((str(n), {'context': record['context'], 'qas': [dict(record)]}))
  return found


def is_impossible(qa: Any) -> bool:
  """Whether the paragraph has no answer (SQuAD 2.0)."""
  return bool(qa.get('is_impossible'))


def known_answers(qa: Any) -> list[str]:
  """Right texts, sorted: [''] without an answer in the paragraph, [] if the answers are hidden."""
  return [''] if is_impossible(qa) else sorted({a['text'] for a in qa.get('answers', ())})


def check_question(qa: Any, context: str, where: str, train: bool) -> None:
  """Raises InputError naming a question that is not one, or whose answers do not fit the paragraph.

  Args:
    qa: an entry of 'qas'.
    context: the paragraph.
    where: file and number of the question, for the message.
    train: the answer must be known.
  """
  if not _has_fields(qa):
    raise InputError(
      f'{where}: expected are question, and answers with text and answer_start, not {str(qa)[:80]}'
    )
  if 'id' in qa:
    where = f'{where} (id {qa["id"]!r})'
  impossible, answers = qa.get('is_impossible', False), qa.get('answers', ())
  if not isinstance(impossible, bool) or (impossible and answers):
    raise InputError(f'{where}: is_impossible={impossible!r} and {len(answers)} answers: expected '
                     'true without answers, or false')  # fmt: skip
  if train and not impossible and not answers:
    raise InputError(f'{where}: no answer; expected one in training, or is_impossible=true')
  for answer in answers:
    text, start = answer['text'], answer['answer_start']
    found = context[start : start + len(text)] if start >= 0 else ''
    if not text.strip():
      raise InputError(f'{where}: answer {text!r}: expected a text, or is_impossible=true')
    if found != text:
      raise InputError(
        f'{where}: answer_start={start}: expected the answer {text[:80]!r} at that character of '
        f'the context, found {found[:80]!r}; count characters from 0'
      )


def _has_fields(qa: Any) -> bool:
  try:
    answers = [(a['text'], a['answer_start']) for a in qa.get('answers', ())]
    texts = [qa['question'], *[text for text, _ in answers]]
  except (AttributeError, KeyError, TypeError):
    return False
  whole_numbers = all(type(start) is int for _, start in answers)
  return whole_numbers and all(isinstance(text, str) for text in texts)
