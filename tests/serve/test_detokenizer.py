"""Texts in parts are the whole decoded text, whatever ids a model draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmx.core.errors import InputError
from bmx.data.text.tokenizer import Bytes, Subwords, load
from bmx.serve.text import Detokenizer, stop_ids
from tests.data.text.kinds import write

tokenizers = pytest.importorskip('tokenizers')
decoders = tokenizers.decoders

BYTES = [f'<0x{byte:02X}>' for byte in range(256)]
FIRST = [f'<0x{byte:02X}>' for byte in range(0xC8)]  # a vocabulary that lacks bytes
LETTERS = ['▁', '▁a', 'a', 'b', '▁é', '▁▁']


def byte_level():
  alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
  inner = tokenizers.Tokenizer(
    tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, [])
  )
  inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = decoders.ByteLevel()
  return inner


def llama(fallback=BYTES):
  names = ['<unk>', '<s>', '</s>', *fallback, *LETTERS]
  inner = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      {name: i for i, name in enumerate(names)}, [], unk_token='<unk>', byte_fallback=True
    )
  )
  replace = tokenizers.normalizers.Replace(' ', '▁')
  inner.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Prepend('▁'), replace])
  inner.decoder = decoders.Sequence(
    [
      decoders.Replace('▁', ' '),
      decoders.ByteFallback(),
      decoders.Fuse(),
      decoders.Strip(' ', 1, 0),
    ]
  )
  return inner


def unigram():
  names = ['<unk>', '<s>', '</s>', *BYTES, *LETTERS]
  inner = tokenizers.Tokenizer(
    tokenizers.models.Unigram([(name, -1.0) for name in names], unk_id=0, byte_fallback=True)
  )
  inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
  inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
  return inner


def wordpiece():
  names = ['[UNK]', '<s>', '</s>', 'a', '##a', '.', "'", '##s', 'do', 'not', 'n', "n't", '?']
  inner = tokenizers.Tokenizer(
    tokenizers.models.WordPiece({name: i for i, name in enumerate(names)}, unk_token='[UNK]')
  )
  inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  inner.decoder = decoders.WordPiece()
  return inner


def word_ends():
  names = ['?', '<s>', '</s>', 'a</w>', 'b</w>', 'a', 'b']
  inner = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      {name: i for i, name in enumerate(names)}, [], unk_token='?', end_of_word_suffix='</w>'
    )
  )
  inner.decoder = decoders.BPEDecoder()
  return inner


MADE = {
  'byte-level BPE': byte_level,
  'byte fallback': llama,
  'byte fallback without all bytes': lambda: llama(FIRST),
  'Unigram with byte fallback': unigram,
  'WordPiece': wordpiece,
  'ends of words': word_ends,
}


@pytest.fixture(scope='module')
def coders():
  made = {'bytes': Bytes()}
  for name, make in MADE.items():
    inner = make()
    inner.add_special_tokens(['<s>', '</s>'])
    made[name] = Subwords(inner.to_str())
  return made


KINDS = ('bytes', *MADE)


@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 2**20), max_size=14), st.integers(1, 5))
def test_parts_are_the_whole_text(coders, kind, numbers, size):
  """Random ids: most runs of bytes are not valid UTF-8."""
  coder = coders[kind]
  ids = [n % coder.size for n in numbers]
  parts = Detokenizer(coder, ())
  made = [parts.add(ids[i : i + size]) for i in range(0, len(ids), size)]
  assert ''.join([*made, parts.flush()]) == coder.decode(ids)


@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=100, deadline=None, derandomize=True)
@given(
  st.sampled_from(['a', 'a b', 'é', 'a €', '€', 'a.', '']),
  st.lists(st.integers(0, 2**20), max_size=10),
  st.integers(1, 5),
)
def test_parts_after_a_prompt_are_its_continuation(coders, kind, prompt, numbers, size):
  """Bytes after a prompt of whole characters are spelled as after any other token."""
  coder = coders[kind]
  before = coder.encode([prompt])[0].tolist()
  ids = [n % coder.size for n in numbers]
  parts = Detokenizer(coder, (), before)
  made = [parts.add(ids[i : i + size]) for i in range(0, len(ids), size)]
  text, whole = coder.decode(before), coder.decode([*before, *ids])
  if whole.startswith(text):
    assert ''.join([*made, parts.flush()]) == whole[len(text) :]
  else:  # the prompt's own last character would be lost
    assert ''.join([*made, parts.flush()]).count('\ufffd') >= 1


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
  st.lists(st.sampled_from([*b'abc', 0xC3, 0xA9, 0xFF]), max_size=14),
  st.lists(st.sampled_from(['a', 'ab', 'abc', 'b', 'é', 'cé', 'ca']), max_size=3),
  st.integers(1, 14),
)
@pytest.mark.parametrize('kind', ['bytes', 'byte fallback'])
def test_a_stop_does_not_depend_on_the_parts(coders, kind, values, stop, size):
  """Stops overlap: the one that is complete first ends the text."""
  coder = coders[kind]
  ids = values if kind == 'bytes' else [coder.inner.token_to_id(BYTES[v]) for v in values]
  parts = Detokenizer(coder, stop)
  made = [parts.add(ids[i : i + size]) for i in range(0, len(ids), size)]
  text = coder.decode(ids)
  ends = [n for n in range(len(text) + 1) if text[:n].endswith(tuple(stop)) and stop]
  if ends:
    text = text[: ends[0]]
    text = text[: ends[0] - max(len(s) for s in stop if text.endswith(s))]
  assert ''.join([*made, parts.flush()]) == text


def test_characters_come_as_soon_as_they_are_whole(coders):
  parts = Detokenizer(Bytes(), ())
  assert [parts.add([b]) for b in 'aé€'.encode()] == ['a', '', 'é', '', '', '€']
  level = coders['byte-level BPE']
  parts = Detokenizer(level, ())
  assert [parts.add([i]) for i in level.encode(['aé€'])[0]] == ['a', '', 'é', '', '', '€']
  llama = coders['byte fallback']
  ids = llama.encode(['€a'])[0]
  assert np.size(ids) == 5  # a blank, three bytes and a letter, which ends the run of bytes
  parts = Detokenizer(llama, ())
  assert [parts.add([i]) for i in ids] == ['', '', '', '', '€a']


@pytest.mark.parametrize('kind', ['Llama 2', 'DeepSeek', 'CamemBERT', 'words'])
def test_stop_texts_that_are_special_tokens(tmp_path, kind):
  """Alone they end a row; with other text they are refused, as no decoded text shows both."""
  coder = load(str(write(kind, tmp_path)))
  end = coder.names['eos']
  assert stop_ids(coder, (end, 'and')) == [coder.special['eos']]
  assert stop_ids(coder, ('and', '\n')) == []
  for text in (f'{end}\n', f'and{end}', f'{end}{end}'):
    with pytest.raises(
      InputError, match=r'generate\.stop=.*: expected a text, or one special token'
    ):
      stop_ids(coder, (text,))
