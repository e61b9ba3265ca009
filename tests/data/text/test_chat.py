"""Conversations: the loss counts the answers, whatever the tokenizer; malformed lines are named."""

import json

import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.data.text.chat import chat, conversations, trained
from bmx.data.text.chat_template import ChatTemplate
from bmx.data.text.tokenizer import Bytes

MISTRAL = (
  "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + "
  "' [/INST]' }}{% else %}{{ ' ' + m['content'] + '</s>' }}{% endif %}{% endfor %}"
)
TALKS = [
  [
    {'role': 'system', 'content': 'Be brief.'},
    {'role': 'user', 'content': f'Is {n} 🙂 even?'},
    {'role': 'assistant', 'content': f' {n % 2 == 0}, é!'},
    {'role': 'user', 'content': 'Sure?'},
    {'role': 'assistant', 'content': 'Yes.\n'},
  ]
  for n in range(10)
]


@pytest.fixture
def path(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  (tmp_path / 'a.jsonl').write_text('\n'.join(json.dumps({'messages': t}) for t in TALKS))
  (tmp_path / 'mistral.jinja').write_text(MISTRAL)
  return str(tmp_path / 'a.jsonl')


@pytest.mark.parametrize('name', ['chatml', 'mistral'])
@pytest.mark.parametrize('kind', ['bytes', 'bpe'])
def test_targets_are_the_answers_and_their_ends(path, tmp_path, kind, name):
  """All tokens are those of the rendered conversation; those with weight are of its answers."""
  coder = Bytes() if kind == 'bytes' else trained(400, path)
  template = 'chatml' if name == 'chatml' else str(tmp_path / 'mistral.jinja')
  data = chat(512, path, 'train', coder, template)
  rows = data.rows(np.arange(data.size), np.arange(data.size))
  known = ChatTemplate(data.tokenizer.chat_template)
  end = {'chatml': '<|im_end|>\n', 'mistral': '</s>'}[name]
  lead = {'chatml': '', 'mistral': ' '}[name]
  seen = []
  for row in range(data.size):
    for segment in range(1, rows['segment_ids'][row].max() + 1):
      inside = rows['segment_ids'][row] == segment
      tokens = rows['tokens'][row][inside]
      kept = np.concatenate([[False], rows['weights'][row][inside][:-1] > 0])
      decode = lambda ids: coder.decode(ids) if kind == 'bytes' else coder.inner.decode(
        ids.tolist(), skip_special_tokens=False
      )  # fmt: skip
      talk = next(t for t in TALKS if decode(tokens) == known.render(t))
      seen.append(talk[1]['content'])
      np.testing.assert_array_equal(tokens, coder.encode([known.render(talk)])[0])
      answers = [m['content'] for m in talk if m['role'] == 'assistant']
      assert decode(tokens[kept]) == ''.join(f'{lead}{a}{end}' for a in answers)
  assert sorted(seen) == [t[1]['content'] for t in TALKS[:9]]  # the tenth is of the split 'valid'
  assert data.state()['chat_template'] == data.tokenizer.chat_template
  assert data.metadata['bytes'] == sum(
    len(f'{lead}{m["content"]}{end}'.encode()) for t in TALKS[:9] for m in t[2::2]
  )


def test_a_trained_tokenizer_ends_turns_with_one_token(path):
  coder = trained(400, path)
  (ids,) = coder.encode(['<|im_start|>user\nx<|im_end|>\n'])
  assert ids[0] == coder.size - 2 and coder.ends == (coder.size - 1,) and coder.ends[0] in ids
  assert coder.decode(ids) == 'user\nx\n' and coder.names['eos'] == '<|im_end|>'

  with pytest.raises(InputError, match='vocab_size=301: expected at least 302'):
    trained(301, path)


def test_conversations_of_the_library():
  talks = conversations()
  assert len(talks) > 100
  assert all([m['role'] for m in talk] == ['user', 'assistant'] for _, talk in talks)


ASK, SAY = {'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}
BAD = {
  'key': ({'mesages': [ASK, SAY]}, "line 2: messages: missing among 'mesages': expected a list"),
  'text': ({'messages': 'a'}, "line 2: messages='a': expected a list"),
  'empty': ({'messages': []}, r'line 2: messages=\[\]: expected a list'),
  'no object': ({'messages': [ASK, 'b']}, r"line 2: messages\[1\]='b': expected"),
  'role': ({'messages': [{**ASK, 'role': 'human'}, SAY]},
           r"line 2: messages\[0\].role='human': expected one of system, user, assistant"),
  'no role': ({'messages': [{'from': 'a', 'content': 'a'}]}, r"\[0\].role: missing among 'from'"),
  'content': ({'messages': [ASK, {**SAY, 'content': None}]}, r'messages\[1\].content=None'),
  'parts': ({'messages': [ASK, {**SAY, 'content': [{'type': 'text'}]}]}, r'content=\[{.*a text'),
  'tools': ({'messages': [ASK, {**SAY, 'tool_calls': [1]}]}, r'messages\[1\].tool_calls: expected'),
  'no answer': ({'messages': [ASK]}, "line 2: messages: expected at least one of role 'assistant'"),
  'half': ({'messages': [ASK, {**SAY, 'content': '\ud800'}]}, 'half of a surrogate pair'),
}  # fmt: skip


@pytest.mark.parametrize('name', BAD)
def test_malformed_lines_are_named(tmp_path, name):
  record, said = BAD[name]
  lines = [json.dumps({'messages': [ASK, SAY]}), json.dumps(record)]
  (tmp_path / 'b.jsonl').write_text('\n'.join(lines))
  with pytest.raises(InputError, match=f'b.jsonl, {said}' if 'line 2' in said else said):
    chat(64, str(tmp_path / 'b.jsonl'))


def test_a_template_that_refuses_a_conversation_names_its_line(path, tmp_path):
  (tmp_path / 'strict.jinja').write_text("{{ raise_exception('without a system text') }}")
  with pytest.raises(InputError, match=r'a.jsonl, line 1: .*without a system text'):
    chat(64, path, template=str(tmp_path / 'strict.jinja'))
  with pytest.raises(InputError, match='1 are too few for a split'):
    (tmp_path / 'one.jsonl').write_text(json.dumps({'messages': [ASK, SAY]}))
    chat(64, str(tmp_path / 'one.jsonl'))
