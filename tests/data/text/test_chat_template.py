"""Templates of conversations: equal to transformers' rendering; refusals; answers have places."""

import json

import pytest

from bmx.core.errors import InputError
from bmx.data.text import chat_template as module
from bmx.data.text.chat_template import CHATML, ChatTemplate, find, read
from bmx.data.text.tokenizer import load
from bmx.data.text.tokenizer_train import trained

# In the manner of Llama 3: a header around each role, dates, a system text of its own.
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {%- generation %}{{- message['content'] | trim + '<|eot_id|>' }}{%- endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
# In the manner of Mistral: roles must alternate; the system text stands in the first question.
MISTRAL = """{%- set ns = namespace(index=0, system='') -%}
{{ bos_token }}{% for message in messages %}
  {% if message['role'] == 'system' %}
    {% set ns.system = message['content'] + '\\n\\n' %}
    {% continue %}
  {% endif %}
  {% if (message['role'] == 'user') != (ns.index % 2 == 0) %}
    {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
  {% endif %}
  {% if message['role'] == 'user' %}
{{ '[INST] ' + ns.system + message['content'] + ' [/INST]' }}
    {% set ns.system = '' %}
  {% else %}
{{ ' ' + message['content'] + eos_token }}
  {% endif %}
  {% set ns.index = ns.index + 1 %}
{% endfor %}
"""
JSON = '{{ messages | tojson }}{{ dict(a=1) | tojson(indent=2) }}{{ tools is none }}'
TEMPLATES = {'chatml': CHATML, 'llama': LLAMA, 'mistral': MISTRAL, 'json': JSON}
SYSTEM = {'role': 'system', 'content': ' Be brief & <kind>. '}
TURNS = [
  {'role': 'user', 'content': 'Was ist 2 + 2?\nÄöü 🙂'},
  {'role': 'assistant', 'content': 'Four.\n'},
  {'role': 'user', 'content': "it's {{ 1 }}"},
  {'role': 'assistant', 'content': ' Yes'},
]
TALKS = {'two': TURNS[:2], 'four': TURNS, 'system': [SYSTEM, *TURNS], 'asked': TURNS[:3]}
NAMES = {'bos': '<s>', 'eos': '</s>'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder of a tokenizer, with template and tokens beside it."""
  path = tmp_path_factory.mktemp('coder')
  (path / 'a.txt').write_text('what a day it was\n' * 9)
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(path / 'cache'))
    inner = trained('bpe', 300, (str(path / 'a.txt'),)).inner
  inner.add_special_tokens(['<s>', '</s>'])
  (path / 'tokenizer.json').write_text(inner.to_str())
  named = {'bos_token': '<s>', 'eos_token': '</s>', 'chat_template': MISTRAL}
  (path / 'tokenizer_config.json').write_text(json.dumps(named))
  return path


@pytest.mark.parametrize('name', TEMPLATES)
def test_rendering_is_that_of_transformers(name, folder):
  transformers = pytest.importorskip('transformers')
  coder = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
  template = ChatTemplate(TEMPLATES[name], NAMES)
  for talk in TALKS.values():
    for answer in (False, True):
      expected = coder.apply_chat_template(
        talk, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=answer
      )
      assert template.render(talk, answer) == expected


def test_rendering_of_a_folder_is_that_of_transformers(folder):
  """Template and tokens are read from the files; ids are those of the rendered text."""
  transformers = pytest.importorskip('transformers')
  coder, ours = transformers.PreTrainedTokenizerFast.from_pretrained(folder), load(str(folder))
  text = ChatTemplate(ours.chat_template, ours.names).render(TURNS)
  assert text == coder.apply_chat_template(TURNS, tokenize=False)
  assert ours.encode([text])[0].tolist() == coder.apply_chat_template(TURNS, return_dict=False)
  with pytest.raises(Exception, match='roles must alternate') as theirs:
    coder.apply_chat_template(TURNS[1:])
  with pytest.raises(InputError, match='roles must alternate') as mine:
    ChatTemplate(MISTRAL, NAMES).render(TURNS[1:])
  assert str(mine.value) == f'chat template: {theirs.value}'


@pytest.mark.parametrize('name', ['chatml', 'llama', 'mistral'])
def test_parts_are_the_whole_and_answers_are_learned(name):
  template = ChatTemplate(TEMPLATES[name], NAMES)
  for talk in TALKS.values():
    parts = template.parts(talk)
    assert ''.join(text for text, _ in parts) == template.render(talk)
    learned = [text for text, learn in parts if learn]
    answers = [m['content'] for m in talk if m['role'] == 'assistant']
    end = {'chatml': '<|im_end|>', 'llama': '<|eot_id|>', 'mistral': '</s>'}[name]
    assert template.end_of_turn == end
    for text, content in zip(learned, answers, strict=True):
      assert text.strip() == content.strip() + end or text.strip() == content + end


def test_answers_without_a_place_of_their_own_are_refused():
  """A template that leaves out former answers."""
  shortened = ChatTemplate(
    "{% for m in messages %}{{ m['content'] if loop.last else '.' }}{% endfor %}"
  )
  with pytest.raises(InputError, match='writes the first 2 messages of a conversation'):
    shortened.parts(TURNS)
  with pytest.raises(InputError, match="at least one message of role 'assistant'"):
    ChatTemplate(CHATML).parts(TURNS[:1])


BAD = {
  'syntax': ('{% for %}\n', 'expected a Jinja template: line 1: '),
  'attributes': ("{{ ''.__class__.__mro__ }}", 'unsafe'),
  'changes': ('{{ messages.append(1) }}', 'unsafe'),
  'names': ('{{ namespace(__html__=1) }}', 'without _ first'),
  'set': ('{% set n = namespace() %}{% set n.__html__ = 1 %}', 'without _ first'),
  'types': ("{{ 'a' + 1 }}", 'can only concatenate'),
}


@pytest.mark.parametrize('name', BAD)
def test_templates_that_are_refused(name):
  text, said = BAD[name]
  with pytest.raises(InputError, match=f'mine.jinja: .*{said}'):
    ChatTemplate(text, source='mine.jinja').render(TURNS)


def test_files_of_a_template(tmp_path, folder):
  """chat_template.jinja comes before tokenizer_config.json; of several the default counts."""
  assert read(folder) == MISTRAL and read(tmp_path) == ''
  config = tmp_path / 'tokenizer_config.json'
  several = [{'name': 'rag', 'template': 'r'}, {'name': 'default', 'template': 'd'}]
  config.write_text(json.dumps({'chat_template': several}))
  assert read(tmp_path) == find(str(tmp_path)) == 'd'
  (tmp_path / 'chat_template.jinja').write_text('own')
  assert read(tmp_path) == find(str(tmp_path / 'chat_template.jinja')) == 'own'
  (tmp_path / 'chat_template.jinja').unlink()
  for wrong, said in (([{'name': 'rag', 'template': 'r'}], 'found rag'), ([3], 'found others'),
                      (3, 'chat_template=3: expected a text')):  # fmt: skip
    config.write_text(json.dumps({'chat_template': wrong}))
    with pytest.raises(InputError, match=said):
      read(tmp_path)
  assert find('chatml') == module.CHATML
  with pytest.raises(InputError, match='template=chatlm: expected chatml, a file'):
    find('chatlm')
