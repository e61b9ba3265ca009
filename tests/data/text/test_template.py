"""What post-processors add to texts, against the library itself."""

import json

import pytest

from bmx.core.errors import InputError
from bmx.data.text.pairs import pairs
from bmx.data.text.text_classification import text_classification
from bmx.data.text.tokenizer import Subwords, frame
from tests.data.letters import WORDS

SPECIAL = ('<s>', '</s>', '<pad>', '<|endoftext|>')


def made(post_processor=None):
  """A tokenizer of whole words with this post-processor."""
  tokenizers = pytest.importorskip('tokenizers')
  vocab = {name: n for n, name in enumerate((*SPECIAL, '?', *WORDS))}
  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token='?'))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  inner.add_special_tokens(list(SPECIAL))
  if post_processor:
    inner.post_processor = post_processor(tokenizers.processors)
  return Subwords(inner.to_str())


def template(single, pair):
  names = [('<s>', 0), ('</s>', 1)]
  return lambda p: p.TemplateProcessing(single=single, pair=pair, special_tokens=names)


PROCESSORS = {
  'BERT': lambda p: p.BertProcessing(('</s>', 1), ('<s>', 0)),
  'RoBERTa': lambda p: p.RobertaProcessing(('</s>', 1), ('<s>', 0)),
  'Llama 2': template('<s> $A', '<s> $A <s>:1 $B:1'),
  'T5': template('$A </s>', '$A </s> $B </s>'),
  'reversed': template('<s> $A', '<s>:2 $B </s>:2 $A:1'),
  'in two steps': lambda p: p.Sequence([p.ByteLevel(), template('<s> $A', '<s> $A $B')(p)]),
  'none': None,
}


@pytest.mark.parametrize('name', PROCESSORS)
def test_a_pair_is_joined_as_the_library_joins_it(name):
  coder = made(PROCESSORS[name])
  texts = 'the cat sat', 'over hills'
  first, second = (ids.tolist() for ids in coder.encode(texts))
  one, two = coder.inner.encode(texts[0]), coder.inner.encode(*texts)
  joined = coder.template.join(first, second)
  assert (joined.ids, joined.types) == (two.ids, two.type_ids)
  assert joined.parts == [0 if s is None else s + 1 for s in two.sequence_ids]
  assert [*coder.template.prefix, *first, *coder.template.suffix] == one.ids
  assert coder.template.added == coder.inner.num_special_tokens_to_add(True)


FRAMES = {'BERT': ((0,), (1,), True), 'Llama 2': ((0,), (3,), False), 'T5': ((), (1,), False),
          'none': ((), (3,), False)}  # fmt: skip


@pytest.mark.parametrize('name', FRAMES)
def test_what_stands_around_documents(name):
  """The end of text where the post-processor adds no end."""
  found = frame(made(PROCESSORS[name]))
  assert (found.prefix, found.suffix, found.whole) == FRAMES[name]


def test_a_text_that_is_repeated():
  with pytest.raises(InputError, match='leaves out or repeats a text'):
    made(template('$A', '$A </s> $A $B')).template  # noqa: B018


BETWEEN = 'adds no token between two texts'
BEFORE = r'adds no token before a text \(\[CLS\] or <s>\), which the head reads'
REFUSED = {
  'T5': (BEFORE, BEFORE), 'none': (BEFORE, f'{BEFORE} and none between'),
  'in two steps': ('', BETWEEN), 'Llama 2': ('', ''),
}  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_heads_need_their_tokens(tmp_path, name):
  coder, path = made(PROCESSORS[name]), tmp_path / 'a.jsonl'
  path.write_text('\n'.join(json.dumps({'a': w, 'b': w, 'label': w}) for w in WORDS))
  calls = [
    lambda: text_classification(str(path), 'a', 'label', coder, 8),
    lambda: text_classification(str(path), 'a', 'label', coder, 8, pair='b'),
  ]
  for call, message in zip(calls, REFUSED[name], strict=True):
    if message:
      with pytest.raises(InputError, match=message):
        call()
    else:
      assert call().size == len(WORDS)
  if REFUSED[name][1]:
    with pytest.raises(InputError, match=f'pairs of texts: the tokenizer {REFUSED[name][1]}'):
      pairs(8, coder, (str(path),), field='a')
