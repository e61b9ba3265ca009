"""Conversations as training data: the loss counts what the assistant writes."""

import ast
import functools
import warnings
from collections.abc import Sequence
from typing import Any

from bmx.core.data import Examples
from bmx.core.errors import InputError
from bmx.data.records import Record
from bmx.data.shapes import shapes
from bmx.data.text import chat_template as templates
from bmx.data.text.chat_template import ChatTemplate
from bmx.data.text.corpus import Parts, encode
from bmx.data.text.documents import describe, library_files, part_of, records, whole
from bmx.data.text.packing import PackedData, packed_spec
from bmx.data.text.special import special_facts
from bmx.data.text.tokenizer import Bytes, Subwords, Tokenizer
from bmx.data.text.tokenizer_train import learned

ROLES = ('system', 'user', 'assistant')
LIBRARY_FILES = 60  # public modules whose docstrings are read
# Tokens of the template `chatml`; a tokenizer that is trained here knows them.
BEGIN, END = '<|im_start|>', '<|im_end|>'

Message = dict[str, str]


def chat(
  length: int,
  path: str = '',
  split: str = 'train',
  tokenizer: Tokenizer | None = None,
  template: str = '',
  data_dir: str = '',
  read: bool = True,
) -> Examples:
  """Packs conversations into rows, for causal language models.

  The text of a conversation is that of the chat template; the loss counts the assistant's answers
  and the ends of their turns. A conversation that is longer than a row is cut.

  Args:
    length: tokens of a row.
    path: .jsonl of {"messages": [{"role": "user", "content": "..."}, ...]}, or .parquet; '' is
      questions about functions of the standard library, answered by their docstrings.
    split: 'train' is the first 90 % of the conversations, 'valid' the rest, 'all' both.
    tokenizer: of the text; None is bytes.
    template: 'chatml', a file, or a folder with one; '' is the tokenizer's own, else 'chatml'.
    data_dir: of TFDS.
    read: False returns shapes only.

  Raises:
    InputError: a malformed conversation (file and line named), one that the template refuses, or a
      template without a place for each answer.
  """
  if not read:
    return shapes(packed_spec(length), length=length)
  coder = _with_template(tokenizer or Bytes(), template)
  rendered = ChatTemplate(coder.chat_template, coder.names)
  talks = conversations(path, data_dir)
  found = [_parts(rendered, messages, where) for where, messages in talks]
  corpus = encode(found, coder, joined=True)
  part = part_of(range(len(found)), split, _source(path))
  corpus = corpus.part(part[0], part[-1] + 1)
  more: dict[str, Any] = special_facts(coder.special)
  more['bytes'] = sum(len(text.encode()) for i in part for text, learn in found[i] if learn)
  data = PackedData(corpus, coder.size, length, more=more, tokenizer=coder)
  targets = int(corpus.loss_mask.sum())
  if not targets:
    raise InputError(f'{_source(path)}: expected answers with at least one token')
  kind = template or ('of the tokenizer' if tokenizer and tokenizer.chat_template else 'chatml')
  cut = len(data.pieces) - len(part)
  data.metadata['source'] = (
    f'{_source(path)}: {len(part):,} conversations (template {kind}) of {len(corpus.tokens):,} '
    f'tokens, {targets:,} of answers, in {data.size:,} rows'
    + (f'; {cut:,} cuts of those longer than a row' if cut else '')
  )
  return data


def trained(vocab_size: int = 4096, path: str = '', data_dir: str = '') -> Subwords:
  """Trains byte-level BPE on the messages of conversations, with the tokens of 'chatml'.

  Args:
    vocab_size: ids wanted; a small text gives fewer.
    path: of the conversations, see `chat`.
    data_dir: of TFDS.
  """
  if vocab_size < 302:
    raise InputError(
      f'vocab_size={vocab_size}: expected at least 302, which hold all bytes and those of turns'
    )
  texts = [m['content'] for _, talk in conversations(path, data_dir) for m in talk]
  inner = learned([*texts, *ROLES], 'bpe', vocab_size - 2).inner
  inner.add_special_tokens([BEGIN, END])
  names = {'eos': END, 'pad': '<|endoftext|>'}
  return Subwords(inner.to_str(), 'trained', names, templates.CHATML)


def conversations(path: str = '', data_dir: str = '') -> list[tuple[str, list[Message]]]:
  """Reads (place, such as 'FILE, line 7'; messages) of conversations, see `chat`.

  Raises InputError naming the place of a malformed one.
  """
  if not path:
    return list(_library())
  return [(where, _messages(record, where)) for where, record in records(path, data_dir)]


def _messages(record: Record, where: str) -> list[Message]:
  """Checks the messages of a record."""
  found = record.get('messages')
  if not isinstance(found, list | tuple) or not len(found):
    raise InputError(
      f'{where}: {_given(record, "messages")}: expected a list such as [{{"role": "user", '
      '"content": "Hi"}, {"role": "assistant", "content": "Hello!"}]'
    )
  messages = [_message(m, f'{where}: messages[{n}]') for n, m in enumerate(found)]
  if all(m['role'] != 'assistant' for m in messages):
    raise InputError(
      f"{where}: messages: expected at least one of role 'assistant', whose content is learned; "
      'add an answer or remove the line'
    )
  return messages


def _message(value: Any, where: str) -> Message:
  if not isinstance(value, dict):
    raise InputError(f'{where}={value!r:.40}: expected {{"role": ..., "content": ...}}')
  if value.get('role') not in ROLES:
    raise InputError(f'{where}.{_given(value, "role")}: expected one of {", ".join(ROLES)}')
  if not isinstance(value.get('content'), str):
    raise InputError(f'{where}.{_given(value, "content")}: expected a text')
  more = sorted(key for key in value if key not in ('role', 'content') and value[key] is not None)
  if more:
    raise InputError(
      f'{where}.{more[0]}: expected role and content only; other keys, of tools for instance, are '
      'not read'
    )
  return {'role': value['role'], 'content': whole(value['content'], f'{where}.content')}


def _given(values: Record, key: str) -> str:
  """Returns 'key=VALUE' for a message; without the key, the keys that there are."""
  if key in values:
    return f'{key}={values[key]!r:.40}'
  return f'{key}: missing among {", ".join(map(repr, values)) or "no keys"}'


def _parts(template: ChatTemplate, messages: list[Message], where: str) -> Parts:
  try:
    return template.parts(messages)
  except InputError as error:
    raise InputError(f'{where}: {error}') from None


def _with_template(tokenizer: Tokenizer, name: str) -> Tokenizer:
  """Returns the tokenizer with the template that a config names, else its own, else 'chatml'."""
  if not name and tokenizer.chat_template:
    return tokenizer
  text = templates.find(name or 'chatml')
  if isinstance(tokenizer, Bytes):
    return Bytes(text)
  return Subwords(tokenizer.text, names=tokenizer.names, chat_template=text)


def _source(path: str) -> str:
  return path or f'docstrings of {describe(())}'


@functools.cache  # a recipe's splits and its tokenizer read the same
def _library() -> list[tuple[str, list[Message]]]:
  """Makes conversations of the docstrings of the installed Python's standard library."""
  talks: list[tuple[str, list[Message]]] = []
  public = [file for file in library_files() if not file.stem.startswith('_')]
  for file in public[:LIBRARY_FILES]:
    for name, summary in _summaries(file.read_text('utf-8', 'replace')):
      question = f'What does {file.stem}.{name} do?'
      messages = [
        {'role': 'user', 'content': question},
        {'role': 'assistant', 'content': summary},
      ]
      talks.append((f'{file.name}, {name}', messages))
  return talks


def _summaries(source: str) -> Sequence[tuple[str, str]]:
  """Returns (name, first paragraph of its docstring) of functions and classes of a module."""
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # escapes in old sources
    tree = ast.parse(source)
  kinds = ast.FunctionDef, ast.ClassDef
  found = [(node.name, ast.get_docstring(node)) for node in tree.body if isinstance(node, kinds)]
  return [(name, text.split('\n\n')[0]) for name, text in found if text and name[0] != '_']
