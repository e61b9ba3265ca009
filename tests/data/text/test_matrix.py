"""Tokenizers of the published kinds in rows of encoders: ids, types and words of transformers."""

import json

import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.data.text.squad import squad
from bmx.data.text.text_classification import text_classification
from bmx.data.text.token_classification import token_classification
from bmx.data.text.tokenizer import load
from tests.data.text.kinds import MADE, TEXTS, unigram, write

transformers = pytest.importorskip('transformers')


def t5():
  """An end of text and nothing else."""
  from tokenizers import processors

  inner, names, more = unigram(['<pad>', '</s>', '<unk>', '<s>'], '<unk>')
  inner.post_processor = processors.TemplateProcessing(
    single='$A </s>', pair='$A </s> $B </s>', special_tokens=[('</s>', 1)]
  )
  return inner, {k: names[k] for k in ('eos', 'pad', 'unk')}, more


KINDS = (*MADE, 'T5')
# No token before a text that a head could read.
HEADLESS = ('GPT-2', 'characters', 'words', 'T5')
# These read the space before a word, and add none.
SPACED = ('GPT-2', 'RoBERTa', 'DeepSeek')
MORE = (
  '', ' ', '\u200b', ' spaced  twice ', 'naïve café — 50%', 'ＦＵＬＬ 中文字 🙂', "don't WON'T",
  '[CLS] </s> <|endoftext|>',
)  # fmt: skip


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  place = tmp_path_factory.mktemp('kinds')
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(MADE, 'T5', t5)
    return {kind: write(kind, place / kind.replace(' ', '-')) for kind in KINDS}


@pytest.fixture(params=KINDS)
def kind(request):
  return request.param


@pytest.fixture
def both(folders, kind):
  """The tokenizer, here and in transformers."""
  theirs = transformers.PreTrainedTokenizerFast.from_pretrained(folders[kind])
  return load(str(folders[kind])), theirs


def expected(theirs, *texts, **options):
  """Rows of transformers, padded if it has a token for that -> arrays and lengths."""
  padding = 'max_length' if theirs.pad_token else False
  found = theirs(*texts, padding=padding, return_token_type_ids=True, **options)
  return found, [sum(mask) for mask in found['attention_mask']]


def same_rows(arrays, found, sizes, padded):
  assert arrays['segment_ids'].sum(1).tolist() == sizes
  for name, key in (('tokens', 'input_ids'), ('types', 'token_type_ids')):
    if name in arrays:
      for row, ids, size in zip(arrays[name], found[key], sizes, strict=False):
        end = None if padded else size
        assert row[:end].tolist() == ids[:end]


def lines(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows), 'utf-8')
  return str(path)


def test_ids_of_texts(both):
  coder, theirs = both
  for text in (*TEXTS, *MORE):
    (ids,) = coder.encode([text])
    assert ids.tolist() == theirs(text, add_special_tokens=False)['input_ids']
    whole = [*coder.template.prefix, *ids, *coder.template.suffix]
    assert whole == theirs(text)['input_ids']
    other = coder.encode(['the cat'])[0].tolist()
    pair = coder.template.join(ids.tolist(), other)
    found = theirs(text, 'the cat', return_token_type_ids=True)
    assert (pair.ids, pair.types) == (found['input_ids'], found['token_type_ids'])


@pytest.mark.parametrize('pair', ['', 'b'])
def test_texts_with_classes(tmp_path, both, kind, pair):
  coder, theirs = both
  texts = [t for t in (*TEXTS, *MORE) if t]
  rows = [{'a': t, 'b': texts[n - 3], 'label': str(n % 2)} for n, t in enumerate(texts)]
  make = lambda length: text_classification(
    lines(tmp_path / 'a.jsonl', rows), 'a', 'label', coder, length, pair=pair
  )
  if kind in HEADLESS:
    with pytest.raises(InputError, match='adds no token before a text'):
      make(16)
    return
  given = [texts] + [[row['b'] for row in rows]] * bool(pair)
  for length in (16, 256):
    found, sizes = expected(theirs, *given, truncation=True, max_length=length)
    assert (max(sizes) == length) == (length == 16)
    same_rows(make(length).arrays, found, sizes, 'pad' in coder.special)


def word_reference(kind, theirs, words):
  """Their ids and words of a list: cut to 12 tokens, as examples of token classification do."""
  options = {'truncation': True, 'max_length': 12}
  if kind == 'characters':  # words, and the spaces between them
    found = theirs(' ' + ' '.join(words), return_offsets_mapping=True, **options)
    ends = np.cumsum([len(word) + 1 for word in words])
    places = [int(np.searchsorted(ends, a, 'right')) for a, _ in found['offset_mapping']]
    return found['input_ids'], places
  if kind in SPACED:
    from tokenizers import Tokenizer, pre_tokenizers

    inner = Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=inner)
  found = theirs(words, is_split_into_words=True, **options)
  return found['input_ids'], found.word_ids()


def test_words_with_tags(tmp_path, both, kind):
  coder, theirs = both
  sentences = [text.split() for text in TEXTS] + [['\u200b', 'The', '\u200b', 'cat'], ['Ω']]
  tag = lambda word: f'B-{len(word) % 3}'
  path = tmp_path / 'a.conll'
  path.write_text('\n\n'.join('\n'.join(f'{w}\t{tag(w)}' for w in s) for s in sentences), 'utf-8')
  data = token_classification(str(path), coder, 12)
  names, arrays = data.metadata['class_names'], data.arrays
  for n, words in enumerate(sentences):
    ids, places = word_reference(kind, theirs, words)
    assert arrays['tokens'][n, : len(ids)].tolist() == ids
    assert arrays['segment_ids'][n].tolist() == [1] * len(ids) + [0] * (12 - len(ids))
    heads = {w: t for t, w in reversed(list(enumerate(places))) if w is not None}
    assert np.flatnonzero(arrays['weights'][n]).tolist() == sorted(heads.values())
    assert [names[arrays['targets'][n, t]] for t in heads.values()] == [
      tag(words[w]) for w in heads
    ]


def answer_reference(offsets, parts, start, end):
  """`prepare_train_features` of transformers' run_qa, without the token of no answer."""
  first = parts.index(1)
  last = len(parts) - 1 - parts[::-1].index(1)
  if offsets[first][0] > start or offsets[last][1] < end:
    return 0, 0
  begins = [t for t in range(first, last + 1) if offsets[t][0] <= start]
  ends = [t for t in range(first, last + 1) if offsets[t][1] >= end]
  return begins[-1], ends[0]


def test_questions_with_windows(tmp_path, both, kind):
  coder, theirs = both
  length, step = 32, 5
  asked = [('Where?', TEXTS[0], 'mat'), ('Who saw the cat', TEXTS[1], 'green hills'),
           ('at noon or two?', TEXTS[2], 'They do'), ('how', TEXTS[3], 'ten')]  # fmt: skip
  paragraphs = [
    {'context': c, 'qas': [{'question': q, 'answers': [{'text': a, 'answer_start': c.index(a)}]}]}
    for q, c, a in asked
  ]
  path = lines(tmp_path / 'a.json', [{'data': [{'title': 't', 'paragraphs': paragraphs}]}])
  if kind in HEADLESS:
    with pytest.raises(InputError, match='questions: the tokenizer adds no token before a text'):
      squad(path, coder, length, step)
    return
  data, row = squad(path, coder, length, step), 0
  for question, context, answer in asked:
    room = length - len(coder.encode([question])[0]) - coder.template.added
    found, sizes = expected(
      theirs, question, context, truncation='only_second', max_length=length, stride=room - step,
      return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    mine = slice(row, row + len(sizes))
    # The library gives the types of its template to the first window only.
    found['token_type_ids'] = found['token_type_ids'][:1]
    same_rows({k: v[mine] for k, v in data.arrays.items()}, found, sizes, 'pad' in coder.special)
    start = context.index(answer)
    for n in range(len(sizes)):
      parts, offsets = found.sequence_ids(n), found['offset_mapping'][n]
      place = answer_reference(offsets, parts, start, start + len(answer))
      assert (data.arrays['first'][row], data.arrays['last'][row]) == place
      inside = [t for t, p in enumerate(parts) if p == 1]
      assert np.flatnonzero(data.arrays['context'][row]).tolist() == inside
      spans = ([o[t] for t in inside] for o in (data.windows[row].offsets, offsets))
      stands, known = ([context[a:b].strip() for a, b in some] for some in spans)
      assert stands == known
      row += 1
  assert row == data.size > len(asked)
