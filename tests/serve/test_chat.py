"""Conversations: what is remembered, dropped and stopped, and what a person sees."""

import io
import json

import jax
import jax.numpy as jnp
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core.errors import InputError
from bmx.data.text.chat import trained
from bmx.data.text.chat_template import CHATML, ChatTemplate
from bmx.data.text.tokenizer import Bytes
from bmx.models.gpt import GPT
from bmx.modes import Request, start
from bmx.modes import chat as mode
from bmx.parallel import Layout, jit, make_mesh, unbox
from bmx.serve.chat import Chat, end_of_turn
from bmx.serve.generate import GenerationStats
from bmx.serve.text import Options, TextGenerator
from bmx.train import datafile, loop

ONE = Layout(make_mesh({'data': 1}, jax.devices()[:1]))
TEMPLATE = ChatTemplate(CHATML)
LIMIT = 256


@pytest.fixture(scope='module')
def generator():
  model = GPT(vocab_size=256, max_seq_len=LIMIT, width=16, depth=1, heads=2)
  make = lambda key: unbox(model.init(key, jnp.zeros((1, 4), jnp.int32)))['params']
  params = jit(make, ONE)(jax.random.PRNGKey(0))
  options = Options(max_new_tokens=12, stop=('<|im_end|>',))
  return TextGenerator(model, params, ONE, Bytes(), options)


class Scripted:
  """A generator that says what it is given, and keeps the prompts that it reads."""

  def __init__(self, like, *answers):
    self.model, self.options, self.tokenizer = like.model, like.options, like.tokenizer
    self.answers, self.read = list(answers), []

  def continued(self, encoded, seed, stats):
    self.read.append(self.tokenizer.decode(encoded[0]))
    for part in self.answers.pop(0):
      if part is KeyboardInterrupt:
        raise KeyboardInterrupt
      yield [part]


def turn(question, answer):
  return [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]


def test_an_answer_reads_all_former_messages(generator):
  script = Scripted(generator, [' ', ' One', ' two. '], ['Three', ''])
  chat = Chat(script, TEMPLATE)
  assert ''.join(chat.answer('a')) == 'One two. '
  assert ''.join(chat.answer('b?')) == 'Three'
  assert chat.messages == [*turn('a', 'One two.'), *turn('b?', 'Three')]
  assert script.read[1] == TEMPLATE.render([*turn('a', 'One two.'), turn('b?', '')[0]], True)
  chat.reset()
  assert chat.messages == []


def test_the_oldest_turns_are_dropped_and_a_message_too_long_is_refused(generator):
  chat = Chat(Scripted(generator, *[['x' * 20]] * 4), TEMPLATE)
  for n, kept in enumerate((0, 0, 0, 2)):
    list(chat.answer(f'question {n}'))
    assert chat.dropped == kept and chat.messages[-2]['content'] == f'question {n}'
    assert len(chat.generator.read[-1]) <= LIMIT - 12
  former = list(chat.messages)
  with pytest.raises(InputError, match=r'tokens with its template: expected fewer than the max_'):
    list(chat.answer('y' * LIMIT))
  assert chat.messages == former
  with pytest.raises(InputError, match='half of a surrogate pair'):
    list(chat.answer('\ud800'))


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_was_shown(generator):
  chat = Chat(Scripted(generator, ['One', ' two'], ['never']), TEMPLATE)
  parts = chat.answer('a')
  assert next(parts) == 'One'
  parts.close()
  assert chat.messages == turn('a', 'One')
  chat.answer('b').close()
  assert chat.messages == turn('a', 'One')


def test_answers_are_those_of_the_text_generator(generator):
  """A model that was never trained; a second answer of this length compiles nothing."""
  chat = Chat(generator, TEMPLATE, seed=3)
  first = ''.join(chat.answer('Hi', GenerationStats()))
  prompt = TEMPLATE.render([turn('Hi', '')[0]], True)
  assert first.strip() == generator.generate([prompt], seed=4)[0].strip()
  compiled = generator.generator.engines[1].programs.seconds
  chat.reset()
  list(chat.answer('é'))
  assert len(chat.messages) == 2 and generator.generator.engines[1].programs.seconds == compiled


def test_the_end_of_a_turn(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  line = {'messages': turn('a b', 'c d')}
  (tmp_path / 'a.jsonl').write_text(json.dumps(line))
  coder = trained(320, str(tmp_path / 'a.jsonl'))
  assert end_of_turn(TEMPLATE, coder) == end_of_turn(TEMPLATE, Bytes()) == '<|im_end|>'
  both = ChatTemplate("{{ messages[1]['content'] + ' END<|im_end|>' }}")
  assert end_of_turn(both, coder) == 'END' and end_of_turn(both, Bytes()) == 'END<|im_end|>'
  assert end_of_turn(ChatTemplate("{{ messages[1]['content'] }}"), coder) == ''


class Keys(io.StringIO):
  """Lines of a person; None is Ctrl-C."""

  def __init__(self, *lines):
    super().__init__()
    self.lines = list(lines)

  def isatty(self):
    return True

  def readline(self):
    if not self.lines:
      return ''
    line = self.lines.pop(0)
    if line is None:
      raise KeyboardInterrupt
    return line + '\n'


@pytest.mark.parametrize('at_terminal', [True, False])
def test_what_a_person_sees(generator, at_terminal, monkeypatch, capsys, caplog):
  caplog.set_level('INFO')
  lines = ['a', '', '/rest', '/reset', 'b', 'c', '/quit', 'never']
  keys = Keys(None, *lines) if at_terminal else io.StringIO('\n'.join(lines))
  monkeypatch.setattr('sys.stdin', keys)
  answers = [['One', ' \x1b[2Jtwo'], ['Three', KeyboardInterrupt, 'four'], ['']]
  chat = Chat(Scripted(generator, *answers), TEMPLATE)
  mode.Terminal(chat, GenerationStats()).talk()
  shown = capsys.readouterr().out
  assert shown.replace('> ', '') == 'One \x1b[2Jtwo\nThree\n\n'
  assert shown.count('> ') == (8 if at_terminal else 0)
  assert chat.messages == [*turn('b', 'Three'), *turn('c', '')]
  for said in ('/rest: expected /reset or /quit', '(stopped)', '(an empty answer)'):
    assert said in caplog.text
  assert (mode.HELP + '\n' in caplog.text) or not at_terminal


def test_the_end_of_the_input_and_a_long_conversation(generator, monkeypatch, capsys, caplog):
  caplog.set_level('INFO')
  monkeypatch.setattr('sys.stdin', io.StringIO('a\n' * 6 + 'y' * LIMIT))
  mode.Terminal(Chat(Scripted(generator, *[['x' * 30]] * 6), TEMPLATE), GenerationStats()).talk()
  assert capsys.readouterr().out == ('x' * 30 + '\n') * 6
  assert caplog.text.count('its oldest messages are left out') == 1
  assert 'the message has' in caplog.text


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  path = tmp_path_factory.mktemp('chat')
  talk = {'messages': turn('Are you open?', 'Yes, until six.')}
  (path / 'my.jsonl').write_text((json.dumps(talk) + '\n') * 20)
  small = {'steps': 80, 'length': 48, 'vocab': 302, 'task.model.depth': 1, 'task.model.width': 32}
  other = {'data.path': path / 'my.jsonl', 'mesh.data': 1, 'every.log': 80, 'every.save': 0}
  words = [f'{k}={v}' for k, v in {**small, **other}.items()]
  config, name = recipes.load('chat:tiny', [*words, 'task.model.scan=False', 'schedule.peak=1e-2'])
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(path / 'cache'))
    loop.run(experiment.build(config, name, jax.devices()[:1]), path / 'run')
  (path / 'my.jsonl').unlink()
  return path / 'run'


def talk(workdir, monkeypatch, lines, *words):
  monkeypatch.setattr('sys.stdin', io.StringIO(lines))
  stored = json.loads((workdir / 'config.json').read_text())
  config = recipes.from_stored(stored['config'])
  recipes.apply(config, ['generate.temperature=0.0', *words])
  kept = datafile.read(workdir)
  x = experiment.build(config, 'chat', jax.devices()[:1], evals=False, stored=kept)
  monkeypatch.setattr(start, 'open_run', lambda request, **_: (x, workdir, kept))
  return mode.run(Request(config, 'chat', str(workdir)))


def test_a_run_that_trained_on_conversations_answers(workdir, monkeypatch, capsys):
  """It needs neither the file of the conversations nor other words; it ends its own turn."""
  assert (workdir / 'chat_template.jinja').read_text() == CHATML
  assert talk(workdir, monkeypatch, 'Are you open?\nAre you open?\n') == 0
  assert capsys.readouterr().out == 'Yes, until six.\n' * 2


def test_templates_of_a_run(workdir, monkeypatch, tmp_path):
  other = tmp_path / 'other.jinja'
  other.write_text("{{ raise_exception('not today') }}")
  with pytest.raises(InputError, match='other.jinja: not today'):
    talk(workdir, monkeypatch, 'a\n', f'generate.template={other}')
  with pytest.raises(InputError, match='num_beams=2: expected 1'):
    talk(workdir, monkeypatch, 'a\n', 'generate.num_beams=2')
  coder, state = Bytes(), {'chat_template': CHATML}
  (tmp_path / 'chat_template.jinja').write_text('changed')
  with pytest.raises(InputError, match='expected the template that the run trained with'):
    mode.find_template('', coder, tmp_path, state)
  assert mode.find_template('', coder, tmp_path, {}).text == 'changed'
  (tmp_path / 'chat_template.jinja').unlink()
  assert mode.find_template('', Bytes('own'), tmp_path, {}).text == 'own'
  with pytest.raises(InputError, match=r'has no chat template: .*generate.template=chatml'):
    mode.find_template('', coder, tmp_path, {})
