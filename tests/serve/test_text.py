"""Prompts to texts: whole characters, stops, ends, and what a person sees on the terminal."""

import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmx import config as recipes
from bmx.config.words import IMAGE_WORDS
from bmx.core.errors import InputError
from bmx.core.images import ImageOptions
from bmx.data.text.tokenizer import Bytes, Subwords
from bmx.data.text.tokenizer_train import trained
from bmx.models.gpt import GPT
from bmx.modes import Request, generate, start
from bmx.parallel import Layout, jit, make_mesh, unbox
from bmx.serve.text import Detokenizer, Options, TextGenerator
from tests.conftest import ROOT

ONE = Layout(make_mesh({'data': 1}, jax.devices()[:1]))
CONFIG = 'configs/gpt_char.py:tiny'


def generator(length=40, tokenizer=None, **options):
  model = GPT(vocab_size=256, max_seq_len=length, width=32, depth=1, heads=2)
  make = lambda key: unbox(model.init(key, jnp.zeros((1, 4), jnp.int32)))['params']
  params = jit(make, ONE)(jax.random.PRNGKey(0))
  return TextGenerator(model, params, ONE, tokenizer or Bytes(), Options(**options))


STOPS = [(), ('b',), ('ab', 'ba'), ('é\n', 'x'), ('aé',)]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.text(max_size=30), st.integers(1, 5), st.sampled_from(STOPS))
def test_parts_together_are_the_text_before_its_stop(text, size, stop):
  ids = list(text.encode())
  pieces = Detokenizer(Bytes(), stop)
  told = [pieces.add(ids[i : i + size]) for i in range(0, len(ids), size)]
  told.append(pieces.flush())
  places = [text.find(s) for s in stop if s in text]
  assert ''.join(told) == (text[: min(places)] if places else text)
  if '\ufffd' not in text:
    assert '\ufffd' not in ''.join(told)  # never half a character
  assert pieces.stopped == bool(places)


def test_what_is_told_early_is_never_taken_back():
  pieces = Detokenizer(Bytes(), ('END',))
  assert [pieces.add(list(b)) for b in (b'one E', b'N', b'x EN', b'D two')] == [
    'one ', '', 'ENx ', '',
  ]  # fmt: skip
  assert pieces.flush() == ''


def test_a_stop_within_a_character_that_is_not_whole_yet():
  pieces = Detokenizer(Bytes(), ('ENé',))
  assert pieces.add(list('x ENé'.encode())[:5]) == 'x '
  assert pieces.add(list('é'.encode())[1:]) == '' and pieces.stopped


def test_words_are_apart_from_the_prompt(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  (tmp_path / 'a.txt').write_text('once upon a time there was a king\n' * 9)
  coder = trained('wordpiece', 300, (str(tmp_path / 'a.txt'),))
  before, after = coder.encode(['once upon a', 'time there'])
  assert Detokenizer(coder, (), before.tolist()).add(after.tolist()) == ' time there'


def test_a_stream_is_what_is_written():
  options = {'max_new_tokens': 20, 'temperature': 1.0}
  streamed = list(generator(stream=True, **options).stream(['ab'], seed=3))
  assert (
    ''.join(p for (p,) in streamed)
    == generator(stream=False, **options).generate(['ab'], seed=3)[0]
  )
  assert len(streamed) > 3


def test_a_stop_ends_its_row_only():
  options = {'max_new_tokens': 12, 'temperature': 0.0, 'stream': False}
  plain = generator(**options).generate(['ab', 'q'])
  stop = next(c for c in plain[0] if c not in plain[1] and c != '\ufffd')
  stopped = generator(max_new_tokens=12, temperature=0.0, stop=(stop,), stream=False).generate(
    ['ab', 'q']
  )
  assert stopped == [plain[0][: plain[0].index(stop)], plain[1]]


def test_as_many_tokens_as_the_positions_hold(caplog):
  caplog.set_level('INFO')
  options = {'max_new_tokens': 100, 'temperature': 0.0, 'stream': False, 'slide': 0.0}
  (text,) = generator(length=8, **options).generate(['abcde'])
  assert len(Bytes().encode([text])[0]) <= 3 * 3 and '1 of 1 texts may end early' in caplog.text


def test_a_text_longer_than_the_positions_slides_unless_beams_search(caplog):
  caplog.set_level('INFO')
  options = {'max_new_tokens': 30, 'temperature': 0.0, 'stream': False}
  made = generator(length=8, **options)
  ids = np.concatenate([new for new, _ in made.generator.stream([[97]], 30)], axis=1)
  assert (ids >= 0).sum() == 30
  made.generate(['abcde'])
  assert 'continues from its newest 4 tokens' in caplog.text
  with pytest.raises(InputError, match='generate.slide=0.5: expected 0 with num_beams=2'):
    generator(length=8, num_beams=2, **options).generate(['abcde'])
  with pytest.raises(InputError, match=r'generate.slide=0.05: expected a share that keeps from 1'):
    generator(length=8, slide=0.05)
  with pytest.raises(InputError, match='generate.slide=1.0: expected 0 <= slide < 1'):
    generator(length=8, slide=1.0)


def test_special_tokens_begin_once_and_stop():
  import tokenizers

  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0, 'b': 1, '?': 2}, '?'))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  inner.add_special_tokens(['<|begin_of_text|>', '<|stop|>'])
  inner.post_processor = tokenizers.processors.TemplateProcessing(
    single='<|begin_of_text|> $A', special_tokens=[('<|begin_of_text|>', 3)]
  )
  coder = Subwords(inner.to_str())
  made = generator(tokenizer=coder, stop=('<|stop|>', 'b'))
  assert made._ids(['a b', '<|begin_of_text|> a b']) == [[3, 0, 1], [3, 0, 1]]
  assert made.generator.ends == (4,)
  model, params = made.model, made.generator.params
  assert TextGenerator(model, params, ONE, coder, Options(), (1, 2)).generator.ends == (1, 2)


BAD = {
  'none': ({}, [], 'expected at least one'),
  'empty': ({}, [''], 'prompt 1: expected at least one token'),
  'half': ({}, ['ab\ud800'], 'prompt 1'),
  'long': (
    {'length': 4},
    ['abcd'],
    'prompt 1 has 4 tokens: expected fewer than',
  ),
}


@pytest.mark.parametrize('name', BAD)
def test_prompts_that_cannot_be(name):
  options, prompts, said = BAD[name]
  with pytest.raises(InputError, match=said):
    generator(**options).generate(prompts)


def test_another_models_tokenizer(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  with pytest.raises(InputError, match='has 300 ids: expected at most vocab_size=256'):
    generator(tokenizer=trained('bpe', 300))


@pytest.mark.parametrize(
  'bad',
  [
    {'max_new_tokens': 0},
    {'num_beams': 0},
    {'temperature': -1.0},
    {'stop': (1,)},
    {'repetition_penalty': 2.0, 'num_beams': 2},
  ],
)
def test_options_that_cannot_be(bad):
  with pytest.raises(InputError, match=next(iter(bad))):
    Options(**bad)


def test_the_config_and_the_options_say_the_same():
  words = recipes.plain(recipes.base())['generate']
  images = {k: words.pop(k) for k in IMAGE_WORDS}
  assert Options(**words) == Options()
  assert ImageOptions(**images) == ImageOptions()


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  from bmx import experiment
  from bmx.train import loop

  words = 'steps=10', 'mesh.data=1', f'data.path={ROOT}/LICENSE'
  config, name = recipes.load(CONFIG, words)
  path = tmp_path_factory.mktemp('run') / 'run'
  loop.run(experiment.build(config, name, jax.devices()[:1]), path)
  return path


def test_the_door(command, workdir):
  """The same seed gives the same text; the prompt comes first; the speed is known."""
  words = (
    '--workdir',
    workdir,
    '--mode=generate',
    '--prompt=def f',
    '--config.generate.max_new_tokens=9',
  )
  first, again = command(*words), command(*words)
  assert first.returncode == 0, first.stderr
  assert first.stdout.startswith('def f') and first.stdout == again.stdout
  assert 'tokens/s' in first.stderr and 'of step 10' in first.stderr
  other = command(*words, '--config.seed=1')
  assert other.returncode == 0 and other.stdout != first.stdout


def test_a_file_of_prompts(command, workdir, tmp_path):
  file = tmp_path / 'prompts.jsonl'
  file.write_text('{"prompt": "class A"}\n{"prompt": "x"}\n')
  done = command('--workdir', workdir, '--mode=generate', '--input', file)
  assert done.returncode == 0, done.stderr
  lines = (workdir / 'generations.jsonl').read_text().splitlines()
  assert [json.loads(line)['prompt'] for line in lines] == ['class A', 'x']
  assert all(json.loads(line)['text'] for line in lines)


def test_every_prompt_of_a_file_is_checked_before_the_first_batch(workdir, tmp_path, monkeypatch):
  """And named by its line, though empty lines are not continued."""
  file = tmp_path / 'prompts.txt'
  file.write_text('x\n\n' * 40 + 'x' * 40 + '\n')
  config, name = recipes.load(CONFIG, ['mesh.data=8'])
  monkeypatch.setattr(start, 'start', lambda request: workdir)
  monkeypatch.setattr(TextGenerator, 'generate', None)
  with pytest.raises(InputError, match=r'prompts\.txt, line 81 has 40 tokens: expected fewer than'):
    generate.run(Request(config, name, str(workdir), input=str(file)))


def test_prompts_are_numbered_from_their_first_row():
  with pytest.raises(InputError, match='prompt 34 has 4 tokens'):
    generator(length=4).generate(['a', 'abcd'], row=32)


def test_weights_are_replaced_without_compiling_and_released(monkeypatch):
  plain, traced = GPT.for_decoding, []

  def counted(model, cache):
    form, convert = plain(model, cache)
    return form, lambda params: traced.append(1) or convert(params)

  monkeypatch.setattr(GPT, 'for_decoding', counted)
  made = generator(max_new_tokens=4, temperature=0.0)
  before, params = made.generate(['ab']), made.generator.params['params']
  made.release()
  assert not jax.tree.leaves((made.generator.params, made.search.params))
  made.load(jax.tree.map(jnp.zeros_like, params))
  assert made.generate(['ab']) != before
  made.load(params)
  assert made.generate(['ab']) == before and len(traced) == 1


REFUSED = {
  'none': ((), 'give --prompt=TEXT'),
  'long': (
    ('--prompt=' + 'x' * 40,),
    'prompt 1 has 40 tokens: expected fewer than',
  ),
  'word': (('--prompt=x', '--config.generate.tmp=1'), r"unknown config key 'generate.tmp'"),
}


@pytest.mark.parametrize('name', REFUSED)
def test_the_door_refuses(command, workdir, name):
  arguments, said = REFUSED[name]
  done = command('--workdir', workdir, '--mode=generate', *arguments)
  assert done.returncode == 2 and said in done.stderr and 'Traceback' not in done.stderr
  assert not np.any([line.startswith('  File') for line in done.stderr.splitlines()])


def test_a_run_ends_texts_as_its_weights_and_its_tokenizer_do(tmp_path):
  (tmp_path / 'weights').mkdir()
  (tmp_path / 'weights/config.json').write_text('{"eos_token_id": [7, 3]}')
  (tmp_path / 'run').mkdir()
  tokenizer = types.SimpleNamespace(ends=(3, 5))
  ends = lambda weights, folder: generate.ends_of(
    types.SimpleNamespace(weights=weights), tmp_path / folder, tokenizer
  )
  assert ends(str(tmp_path / 'weights'), 'run') == (7, 3, 5)
  assert ends(str(tmp_path / 'gone'), 'run') == (3, 5)
  assert ends('', 'weights') == (7, 3)
  assert ends('', 'run') == ()  # the tokenizer's by default
