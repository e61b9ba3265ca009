"""Text to ids and back: nothing lost that should be kept, learned once, and the same each time."""

import json
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bmx import config as recipes
from bmx import experiment
from bmx.core.errors import InputError
from bmx.data.text import tokenizer_train as module
from bmx.data.text.clean import Unicode
from bmx.data.text.tokenizer import Bytes, Subwords, Tokenizer, frame, load
from bmx.data.text.tokenizer_train import trained
from bmx.train.rundir import RunDir
from tests.data.letters import sentences
from tests.data.text.kinds import write as write_kind

KINDS = ('wordpiece', 'bpe', 'unigram')
BERT = {'pad': 0, 'unk': 1, 'cls': 2, 'sep': 3, 'mask': 4}
ANY_TEXT = st.text(st.characters(codec='utf-8'), max_size=60)
PROPERTY = settings(
  max_examples=200,
  deadline=None,
  derandomize=True,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  return tmp_path / 'cache'


def write(folder, lines, name='text.txt'):
  path = folder / name
  path.write_text('\n'.join(lines), 'utf-8')
  return str(path)


@pytest.fixture(scope='module')
def coders(tmp_path_factory):
  """One of each kind, from the same text."""
  folder = tmp_path_factory.mktemp('coders')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(folder))
    path = write(folder, sentences(200))
    return {kind: trained(kind, 320, (path,)) for kind in KINDS}


@pytest.mark.parametrize('kind', KINDS)
def test_special_tokens_come_first_and_ids_are_below_the_size(coders, kind):
  coder = coders[kind]
  assert coder.special == ({'eos': 0} if kind == 'bpe' else BERT)
  assert isinstance(Bytes(), Tokenizer)
  assert isinstance(coder, Tokenizer)
  assert isinstance(coder, Subwords)
  vocab = coder.inner.get_vocab()
  assert sorted(vocab.values()) == list(range(coder.size))
  assert coder.size <= 320
  assert not coder.inner.get_added_tokens_decoder().keys() - set(coder.special.values())


@pytest.mark.parametrize('kind', KINDS)
def test_text_it_was_learned_from_comes_back(coders, kind):
  for text in sentences(20, seed=1):
    expected = text if kind == 'bpe' else text.lower()
    (ids,) = coders[kind].encode([text])
    assert ids.dtype == np.int32
    assert coders[kind].decode(ids) == expected


@PROPERTY
@given(text=ANY_TEXT)
def test_bpe_and_bytes_bring_back_any_text(coders, text):
  for coder in (coders['bpe'], Bytes()):
    (ids,) = coder.encode([text])
    assert coder.decode(ids) == text
    assert ((ids >= 0) & (ids < coder.size)).all()
    assert len(coder.word_starts([text])[0]) == len(ids)
  assert len(ids) == len(text.encode())


@PROPERTY
@given(text=ANY_TEXT)
def test_every_id_of_any_text_is_below_the_size(coders, text):
  for kind in ('wordpiece', 'unigram'):
    (ids,) = coders[kind].encode([text])
    assert ((ids > 0) & (ids < coders[kind].size)).all()
    assert len(coders[kind].word_starts([text])[0]) == len(ids)


@pytest.mark.parametrize('kind', ['wordpiece', 'unigram'])
def test_letters_never_seen_are_unknown(coders, kind):
  assert 1 in coders[kind].encode(['the Ω cat'])[0]
  assert 1 not in coders[kind].encode(['the cat'])[0]


def test_case_is_kept_on_demand(tmp_path):
  path = write(tmp_path, ['Anna saw anna'] * 9)
  lower, upper = (trained(paths=(path,), lowercase=value) for value in (True, False))
  assert lower.decode(lower.encode(['Anna'])[0]) == 'anna'
  assert upper.decode(upper.encode(['Anna'])[0]) == 'Anna'


@pytest.mark.parametrize('kind', KINDS)
def test_it_is_learned_once(tmp_path, monkeypatch, kind):
  path = write(tmp_path, sentences(30))
  first = trained(kind, 300, (path,))

  def unwanted(*_):
    raise RuntimeError('learned again')

  monkeypatch.setattr(module, f'_{kind}', unwanted)
  assert trained(kind, 300, (path,)) == first
  for change in ({'vocab_size': 301}, {'lowercase': False}, {'paths': (path, path)}):
    options: dict[str, Any] = {'kind': kind, 'vocab_size': 300, 'paths': (path,)} | change
    with pytest.raises(RuntimeError, match='learned again'):
      trained(**options)
  monkeypatch.setattr(module, 'LEARNED', 0)
  with pytest.raises(RuntimeError, match='learned again'):
    trained(kind, 300, (path,))


@pytest.mark.parametrize('kind', ['wordpiece', 'bpe'])
@pytest.mark.parametrize('letters', [0, 400])
def test_the_same_text_gives_the_same_file(tmp_path, monkeypatch, kind, letters):
  """The library alone does not: it meets words in another order each time."""
  rare = [f'{chr(0x3B1 + i)}{chr(0x4E00 + i)}' for i in range(letters)]
  path = write(tmp_path, sentences(150) + rare)
  made = []
  for n in range(4):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / str(n)))
    made.append(trained(kind, 400, (path,)).text)
  assert len(set(made)) == 1


def test_of_more_letters_than_fit_the_rarest_are_unknown(tmp_path):
  often, seldom = 'abcdefgh', ''.join(chr(0x4E00 + i) for i in range(500))
  path = write(tmp_path, [often] * 3 + list(seldom) * 2 + ['x'])
  coder = trained('wordpiece', 300, (path,))
  assert coder.size <= 300
  assert coder.special == BERT
  assert 1 not in coder.encode([often])[0]
  assert coder.encode(['x'])[0].tolist() == [1]


def test_a_small_text_gives_fewer_ids(tmp_path):
  path = write(tmp_path, ['a b'])
  assert trained('wordpiece', 1000, (path,)).size == 7


@pytest.mark.parametrize('kind', ['wordpiece', 'unigram'])
def test_one_text_and_two_are_framed(coders, kind):
  inner = coders[kind].inner
  a, b = (coders[kind].encode([text])[0].tolist() for text in ('the cat', 'a dog'))
  assert inner.encode('the cat').ids == [2, *a, 3]
  both = inner.encode('the cat', 'a dog')
  assert both.ids == [2, *a, 3, *b, 3]
  assert both.type_ids == [0] * (len(a) + 2) + [1] * (len(b) + 1)


def test_words_begin_where_wordpieces_have_no_mark(coders):
  coder = coders['wordpiece']
  texts = ['the greenest, softest cats', '', 'hills.']
  for text, ids, starts in zip(texts, coder.encode(texts), coder.word_starts(texts), strict=True):
    pieces = [coder.inner.id_to_token(i) for i in ids]
    assert starts.tolist() == [not p.startswith('##') for p in pieces]
    assert starts.dtype == bool
    assert starts.sum() == len(text.replace(',', ' ,').replace('.', ' .').split())
  assert any(not s.all() for s in coder.word_starts(texts))


@PROPERTY
@given(text=st.text('ab \n\t', max_size=30))
def test_words_of_bytes_begin_after_space(text):
  (starts,) = Bytes().word_starts([text])
  assert starts.sum() == len(text.split())
  for place in np.flatnonzero(starts):
    assert not text[place].isspace()
    assert place == 0 or text[place - 1].isspace()


def test_load_reads_a_file_and_a_folder(tmp_path, coders):
  coder = coders['wordpiece']
  (tmp_path / 'tokenizer.json').write_text(coder.text, 'utf-8')
  for path in (tmp_path, tmp_path / 'tokenizer.json'):
    found = load(str(path))
    assert found == coder
    assert hash(found) == hash(coder)
    assert found.text == coder.text
    assert found.encode(['a cat'])[0].tolist() == coder.encode(['a cat'])[0].tolist()
  assert load(str(tmp_path)) != coders['bpe']


UNREADABLE = {
  'not there': (None, 'no tokenizer.json in .*'),
  'not JSON': (b'hello', r'tokenizer\.json is not a tokenizer\.json'),
  'other JSON': (b'{"a": 1}', r'tokenizer\.json is not a tokenizer\.json'),
  'not UTF-8': (b'{"a\xff', r'tokenizer\.json is not UTF-8: byte 0xff at offset 3'),
}


@pytest.mark.parametrize(('content', 'message'), UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_no_tokenizer_is_refused(tmp_path, content, message):
  if content is not None:
    (tmp_path / 'tokenizer.json').write_bytes(content)
  with pytest.raises(InputError, match=message):
    load(str(tmp_path))


def test_an_empty_path_says_what_to_set(tmp_path, monkeypatch, coders):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'tokenizer.json').write_text(coders['bpe'].text, 'utf-8')
  with pytest.raises(InputError, match=r'--config\.init\.path'):
    load('')


def test_a_file_that_cuts_and_pads_does_neither_here(coders):
  inner = Subwords(coders['wordpiece'].text).inner
  inner.enable_truncation(3)
  inner.enable_padding(length=50)
  coder = Subwords(inner.to_str())
  text = 'the cat sat on a mat'
  assert [x.tolist() for x in coder.encode([text, 'a'])] == [
    x.tolist() for x in coders['wordpiece'].encode([text, 'a'])
  ]


def test_the_size_counts_ids_that_are_left_out(coders):
  content = json.loads(coders['wordpiece'].text)
  content['model']['vocab']['zebra'] = 900
  coder = Subwords(json.dumps(content))
  assert coder.size == 901
  assert coder.encode(['zebra'])[0].tolist() == [900]


ROLES = {
  'BERT': (['[PAD]', '[CLS]', '[SEP]'], {'pad': 0, 'cls': 1, 'sep': 2}),
  'RoBERTa': (['<s>', '<pad>', '</s>', '<mask>'], {'cls': 0, 'pad': 1, 'sep': 2, 'mask': 3}),
  'Llama': (['<|eot_id|>', '<|begin_of_text|>', '<|end_of_text|>'], {'eos': 2, 'bos': 1}),
  'none': ([], {}),
}


@pytest.mark.parametrize(('names', 'special'), ROLES.values(), ids=ROLES)
def test_roles_of_published_spellings(names, special):
  library = module.library()
  inner = library.Tokenizer(library.models.WordLevel({}, unk_token='?'))
  inner.add_special_tokens(names)
  assert Subwords(inner.to_str()).special == special


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'kind': 'sentencepiece'}, "'sentencepiece' is not one of wordpiece, bpe, unigram"),
    ({'vocab_size': 299}, 'vocab_size=299: expected at least 300'),
    ({'paths': ('nowhere.txt',)}, 'no file nowhere.txt'),
  ],
)
def test_what_cannot_be_learned(options, message):
  with pytest.raises(InputError, match=message):
    trained(**options)


def test_more_letters_than_unigram_can_have(tmp_path):
  path = write(tmp_path, [chr(0x4E00 + i) for i in range(500)])
  with pytest.raises(InputError, match=r'kind=unigram, vocab_size=300: .*not large enough'):
    trained('unigram', 300, (path,))


def test_unigram_is_not_learned_by_several_processes(monkeypatch):
  """Its training sums in another order each time, so that they would not agree."""
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(InputError, match='learn it in one'):
    trained('unigram', 300)


def test_half_a_surrogate_pair_is_refused_or_cleaned_away(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"text": "a cat \\ud800"}\n')
  with pytest.raises(InputError, match='half of a surrogate pair'):
    trained(paths=(str(path),))
  assert trained(paths=(str(path),), steps=(Unicode(),)).size > 5


def test_without_the_library_it_says_what_to_install(monkeypatch, coders):
  monkeypatch.setitem(__import__('sys').modules, 'tokenizers', None)
  with pytest.raises(InputError, match=r'pip install "bmx-jax\[text\]"'):
    Subwords(coders['bpe'].text)


def test_a_run_keeps_its_tokenizer(tmp_path):
  path = write(tmp_path, sentences(100))
  overrides = [f'paths={(path,)!r}', 'task.model.encoder.width=16', 'task.model.encoder.depth=1']
  config, _ = recipes.load('configs/bert_small.py:tiny', overrides)
  config.data.unit, config.mesh.data = 'line', 1
  x = experiment.build(config, devices=jax.devices()[:1])
  RunDir(tmp_path / 'run', x).write_config(0, {})
  assert load(str(tmp_path / 'run')) == x.data.examples.tokenizer  # type: ignore


def test_unigram_without_an_unknown_token():
  library = module.library()
  inner = library.Tokenizer(library.models.Unigram([('a', -1.0), ('b', -2.0)]))
  coder = Subwords(inner.to_str())
  assert coder.encode(['ab'])[0].tolist() == [0, 1]
  with pytest.raises(InputError, match='cannot encode a text: .*unk'):
    coder.encode(['abc'])


NAMES = {
  'a token that is not there': ({'eos_token': '[stop]'}, r"expected eos_token='\[stop\]'"),
  'a number': ({'eos_token': 3}, 'eos_token=3: expected a token, as text'),
  'a flag': ({'add_bos_token': 'yes'}, "add_bos_token='yes': expected true or false"),
  'no object': ([], 'tokenizer_config.json holds no object'),
}


@pytest.mark.parametrize(('config', 'message'), NAMES.values(), ids=NAMES)
def test_special_tokens_that_cannot_be(tmp_path, config, message):
  write_kind('words', tmp_path)
  (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
  with pytest.raises(InputError, match=message):
    load(str(tmp_path))


def test_what_names_the_end_of_a_text(tmp_path):
  """tokenizer_config.json, else config.json; ids that the tokenizer lacks, and [PAD], may be."""
  write_kind('words', tmp_path)
  file = tmp_path / 'tokenizer_config.json'
  assert load(str(tmp_path)).ends == (1,)
  file.write_text(json.dumps({'eos_token': {'content': 'cat'}, 'pad_token': '[PAD]'}))
  coder = load(str(tmp_path / 'tokenizer.json'))
  cat = coder.inner.token_to_id('cat')
  assert (coder.ends, frame(coder).suffix) == ((cat,), (cat,))
  file.write_text('{}')
  (tmp_path / 'config.json').write_text('{"eos_token_id": [1, 0]}')
  assert (load(str(tmp_path)).ends, frame(load(str(tmp_path))).suffix) == ((1,), (1,))
  (tmp_path / 'config.json').write_text('{"eos_token_id": 50256}')
  assert load(str(tmp_path)).ends == ()
