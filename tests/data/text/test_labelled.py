"""Labelled text: every label stays with its text, every answer is found again in its window."""

import functools
import json
import re

import numpy as np
import pytest

from bmx.core.data import Resident
from bmx.core.errors import InputError
from bmx.data.arrays import split_indices
from bmx.data.tables import table as table_data
from bmx.data.text import text_classification as labelled
from bmx.data.text.text_classification import library, text_classification
from bmx.data.text.token_classification import read_conll, token_classification
from bmx.tasks.metrics import entity_f1
from tests.data.batched import batched

CLS, SEP = 2, 3
LINES = ['good,1', 'bad,0', 'the good cat,1', 'over,0']
CONLL = 'Anna\tB-person\nsaw\tO\nthe\tO\ngreenest\tO\n\nParis\tB-place\nTexas\tI-place\n'


def classes(path):
  """What a training file of classes fits."""
  names = labelled.class_names(r.get('label') for _, r in labelled.records(path))
  return {'class_names': list(names)}


def tags(path):
  """What a training file of tags fits."""
  names = {tag for words in read_conll(path) for _, tag in words}
  return {'class_names': sorted(names, key=lambda t: (t != 'O', t))}


def write(path, lines):
  path.write_text('\n'.join(lines) + '\n')
  return str(path)


def table(path, lines, header='text,label'):
  return write(path, [header, *lines])


def texts_of(data):
  """What stands in each row, without padding and frame."""
  arrays = data.arrays
  real = [t[s > 0] for t, s in zip(arrays['tokens'], arrays['segment_ids'], strict=True)]
  return [data.tokenizer.decode(ids) for ids in real]


# Classes and numbers.


@pytest.mark.parametrize('name', ['a.csv', 'a.jsonl'])
def test_classes_of_a_file(tmp_path, coder, name):
  cells = [line.split(',') for line in LINES]
  lines = [json.dumps({'text': t, 'label': int(k)}) for t, k in cells]
  path = table(tmp_path / name, LINES) if name == 'a.csv' else write(tmp_path / name, lines)
  data = batched(text_classification, 2, path, 'text', 'label', coder, 8)
  assert isinstance(data.examples, Resident)
  assert texts_of(data) == [t for t, _ in cells]
  assert data.arrays['label'].tolist() == [1, 0, 1, 0]
  assert (data.metadata['num_classes'], data.metadata['class_names']) == (2, ('0', '1'))
  assert (data.metadata['vocab_size'], data.metadata['length']) == (coder.size, 8)
  assert '4 texts, 0 of them cut' in data.metadata['source']
  first = data.arrays['tokens'][0]
  assert (first[0], first[data.arrays['segment_ids'][0].sum() - 1]) == (CLS, SEP)
  assert not data.arrays['types'].any()
  assert data.tokenizer is coder


def test_classes_are_sorted_numbers_before_names(tmp_path, coder):
  said = ['no', '10', '9', 'a', '-1', '2.5']
  path = table(tmp_path / 'a.csv', [f'x,{s}' for s in said])
  data = batched(text_classification, 2, path, 'text', 'label', coder, 8)
  assert data.metadata['class_names'] == ('-1', '2.5', '9', '10', 'a', 'no')
  assert [data.metadata['class_names'][i] for i in data.arrays['label']] == said


def test_the_training_file_says_the_classes(tmp_path, coder):
  train = table(tmp_path / 'train.csv', ['x,c', 'x,a', 'x,b'])
  valid = table(tmp_path / 'valid.csv', ['x,c', 'x,b'])
  data = batched(
    text_classification, 2, valid, 'text', 'label', coder, 8, fitted=classes(train), train=False
  )
  assert data.metadata['class_names'] == ('a', 'b', 'c')
  assert data.arrays['label'].tolist() == [2, 1]
  unseen = table(tmp_path / 'test.csv', ['x,c', 'x,d'])
  with pytest.raises(InputError, match=r"test\.csv, record 2: class 'd'; expected one of a, b, c"):
    batched(text_classification, 2, unseen, 'text', 'label', coder, 8, fitted=classes(train))


def test_both_parts_of_a_file_have_the_classes_of_the_whole(tmp_path, coder):
  """One part may lack a class; its number must not move."""
  lines = [f't{n},{"abcdefgh"[n % 8]}' for n in range(16)]
  path = table(tmp_path / 'a.csv', lines)
  label = {}
  for split in ('train', 'valid'):
    data = batched(
      text_classification, 2, path, 'text', 'label', coder, 8, split=split, holdout=0.2
    )
    assert data.metadata['class_names'] == tuple('abcdefgh')
    label |= dict(zip(texts_of(data), data.arrays['label'].tolist(), strict=True))
  assert label == {f't{n}': n % 8 for n in range(16)}


@pytest.mark.parametrize(
  ('header', 'cells'), [('text', ''), ('text,label', ',-1'), ('text,label', ',')]
)
@pytest.mark.parametrize('regression', [False, True])
def test_a_file_to_predict_has_no_labels(tmp_path, coder, header, cells, regression):
  train = table(tmp_path / 'train.csv', ['x,1', 'x,2'])
  path = table(tmp_path / 'a.csv', ['good' + cells, 'bad' + cells], header)
  options = {'fitted': classes(train), 'regression': regression}
  data = batched(text_classification, 2, path, 'text', 'label', coder, 8, train=False, **options)
  assert set(data.arrays) == {'tokens', 'segment_ids', 'types', 'weights'}
  assert texts_of(data) == ['good', 'bad']
  with pytest.raises(InputError, match=r"a\.csv: no record has a 'label'"):
    batched(text_classification, 2, path, 'text', 'label', coder, 8, **options)


def test_minus_one_is_a_class_where_there_are_others(tmp_path, coder):
  path = table(tmp_path / 'a.csv', ['x,-1', 'x,1'])
  assert batched(text_classification, 2, path, 'text', 'label', coder, 8).metadata[
    'class_names'
  ] == ('-1', '1')


def test_numbers(tmp_path, coder):
  path = table(tmp_path / 'a.csv', ['x,1.5', 'y,-2e1'])
  data = batched(text_classification, 2, path, 'text', 'label', coder, 8, regression=True)
  assert data.arrays['y'].tolist() == [[1.5], [-20.0]]
  assert data.arrays['y'].dtype == np.float32
  assert data.metadata['num_targets'] == 1
  assert 'label' not in data.arrays
  path = table(tmp_path / 'b.csv', ['x,1.5', 'y,two'])
  with pytest.raises(InputError, match=r"b\.csv, record 2: label is 'two', expected a number"):
    batched(text_classification, 2, path, 'text', 'label', coder, 8, regression=True)


def test_pairs_of_texts(tmp_path, coder):
  path = table(tmp_path / 'a.csv', ['the cat,a dog,1', 'sat,green hills,0'], 'text,other,label')
  data = batched(text_classification, 2, path, 'text', 'label', coder, 12, pair='other')
  for n, pair in enumerate([('the cat', 'a dog'), ('sat', 'green hills')]):
    a, b = (x.tolist() for x in coder.encode(pair))
    ids, types = [CLS, *a, SEP, *b, SEP], [0] * (len(a) + 2) + [1] * (len(b) + 1)
    rest = [0] * (12 - len(ids))
    assert data.arrays['tokens'][n].tolist() == ids + rest
    assert data.arrays['types'][n].tolist() == types + rest
    assert data.arrays['segment_ids'][n].tolist() == [1] * len(ids) + rest


@pytest.mark.parametrize('pair', ['', 'other'])
def test_long_texts_are_cut_and_counted(tmp_path, coder, pair):
  cells = [('the ' * 2, 'a'), ('the ' * 30, 'a dog'), ('a', 'the ' * 30), ('the ' * 9, 'a ' * 9)]
  lines = [f'{a},{b},1' for a, b in cells] + ['x,y,0']
  path = table(tmp_path / 'a.csv', lines, 'text,other,label')
  data = batched(text_classification, 2, path, 'text', 'label', coder, 10, pair=pair)
  arrays = data.arrays
  assert f'{3 if pair else 2} of them cut' in data.metadata['source']
  assert len(coder.encode(['the ' * 30])[0]) == 30  # as it was
  for n, (a, b) in enumerate(cells):
    tokens, real = arrays['tokens'][n], arrays['segment_ids'][n]
    assert tokens[real.sum() - 1] == SEP
    if pair:
      first, second = np.flatnonzero(tokens == SEP)
      kept = first - 1, second - first - 1
      sizes = len(a.split()), len(b.split())
      assert sum(kept) == min(7, sum(sizes))
      assert all(k == min(s, k) and k >= min(s, 3) for k, s in zip(kept, sizes, strict=True))


@pytest.mark.parametrize(('pair', 'least'), [('', 3), ('other', 5)])
def test_rows_too_short_for_any_text(tmp_path, coder, pair, least):
  path = table(tmp_path / 'a.csv', ['a b c d,e f g,1'], 'text,other,label')
  make = lambda length: batched(
    text_classification, 2, path, 'text', 'label', coder, length, pair=pair
  )
  with pytest.raises(InputError, match=f'length={least - 1}: expected at least {least} tokens'):
    make(least - 1)
  assert make(least).arrays['segment_ids'].tolist() == [[1] * least]


def test_a_field_that_is_not_there(tmp_path, coder):
  path = table(tmp_path / 'a.csv', LINES)
  with pytest.raises(InputError, match=r"record 1: no text under 'texts'; did you mean 'text'"):
    batched(text_classification, 2, path, 'texts', 'label', coder, 8)
  with pytest.raises(InputError, match="no record has a 'lable'; did you mean 'label'"):
    batched(text_classification, 2, path, 'text', 'lable', coder, 8)
  with pytest.raises(InputError, match="no text under 'pair'"):
    batched(text_classification, 2, path, 'text', 'label', coder, 8, pair='pair')


def test_a_record_without_label_among_others(tmp_path, coder):
  path = write(tmp_path / 'a.jsonl', ['{"text": "x", "label": 1}', '{"text": "y"}'])
  with pytest.raises(InputError, match=r'a\.jsonl, line 2: class None; expected one of 1'):
    batched(text_classification, 2, path, 'text', 'label', coder, 8)


def test_text_that_utf8_cannot_hold(tmp_path, coder):
  path = write(tmp_path / 'a.jsonl', ['{"text": "x\\ud800", "label": 1}'])
  with pytest.raises(InputError, match=r'a\.jsonl, line 1 holds .*surrogate'):
    batched(text_classification, 2, path, 'text', 'label', coder, 8)


def test_prepared_tfds(data_dir, coder):
  path = 'tfds:sst2_rebuilt/validation'
  data = batched(
    text_classification, 2, path, 'sentence', 'label', coder, 64, data_dir=str(data_dir / 'tfds')
  )
  assert data.size == 872
  assert data.metadata['class_names'] == ('0', '1')
  assert 400 < data.arrays['label'].sum() < 472


def test_comments_of_the_library_are_told_from_code(coder, monkeypatch):
  code = [f'over {n}' for n in range(70)]
  lines = ['#!/bin/sh', '#x', '', *[f'  # the cat {n}\n#   a dog' for n in range(10)], *code]
  monkeypatch.setattr(labelled, 'documents', lambda: ['\n'.join(lines), '# last\n'])
  whole = batched(library, 4, coder, 16, 'all')
  said = dict(zip(texts_of(whole), whole.arrays['label'].tolist(), strict=True))
  comments = [f'the cat {n}' for n in range(10)] + ['a dog', 'last']
  assert said == dict.fromkeys(comments, 1) | {f'over {n}': 0 for n in range(0, 70, 4)}
  assert whole.metadata['class_names'] == ('code', 'comment')
  sizes = {split: batched(library, 4, coder, 16, split).size for split in ('train', 'valid')}
  assert sizes == {'train': 35, 'valid': 4}


# Tags of words.


def test_only_the_first_token_of_a_word_has_its_tag(tmp_path, coder):
  data = batched(token_classification, 2, write(tmp_path / 'a.conll', [CONLL]), coder, 24)
  assert data.metadata['class_names'] == ('O', 'B-person', 'B-place', 'I-place')
  arrays, words = data.arrays, [['Anna', 'saw', 'the', 'greenest'], ['Paris', 'Texas']]
  tags = [[1, 0, 0, 0], [2, 3]]
  for n, sentence in enumerate(words):
    pieces = [ids.tolist() for ids in coder.encode(sentence)]
    ids, targets, weights = [CLS], [0], [0]
    for piece, tag in zip(pieces, tags[n], strict=True):
      ids += piece
      targets += [tag] + [0] * (len(piece) - 1)
      weights += [1] + [0] * (len(piece) - 1)
    rest = [0] * (24 - len(ids) - 1)
    assert arrays['tokens'][n].tolist() == [*ids, SEP, *rest]
    assert arrays['targets'][n].tolist() == [*targets, 0, *rest]
    assert arrays['weights'][n].tolist() == [*weights, 0, *rest]
  assert max(len(ids) for ids in coder.encode(['greenest'])) > 1
  assert '2 sentences, 0 words cut off' in data.metadata['source']


def test_words_behind_the_end_are_counted(tmp_path, coder):
  path = write(tmp_path / 'a.conll', ['the\tO'] * 9 + ['', 'a\tO'])
  data = batched(token_classification, 2, path, coder, 6)
  assert '5 words cut off' in data.metadata['source']
  assert data.arrays['weights'].tolist() == [[0, 1, 1, 1, 1, 0], [0, 1, 0, 0, 0, 0]]
  assert data.arrays['tokens'][0, -1] == SEP


def test_a_missing_tag_counts_nothing_and_is_refused_in_training(coder):
  """Of sentences in memory."""
  fitted = {'class_names': ['O', 'B-place']}
  words = {'words': ['in', 'Paris'], 'tags': ['', 'B-place']}
  options = {'tokenizer': coder, 'length': 8, 'fitted': fitted}
  data = token_classification('', given=[words], train=False, **options)
  assert data.arrays['weights'].sum() == 1
  assert data.arrays['targets'][data.arrays['weights'] > 0].tolist() == [1]
  with pytest.raises(InputError, match='in training none that is empty'):
    token_classification('', given=[words], **options)


def test_the_training_file_says_the_tags(tmp_path, coder):
  train = write(tmp_path / 'train.conll', ['a\tO', 'b\tB-x', 'c\tB-y'])
  valid = write(tmp_path / 'valid.conll', ['a\tB-y'])
  data = batched(token_classification, 2, valid, coder, 8, fitted=tags(train))
  assert data.metadata['class_names'] == ('O', 'B-x', 'B-y')
  assert data.arrays['targets'][0, 1] == 2
  with pytest.raises(InputError, match=r"valid\.conll: tag 'B-z'; expected one of O, B-x, B-y"):
    batched(
      token_classification,
      2,
      write(tmp_path / 'valid.conll', ['a\tB-z']),
      coder,
      8,
      fitted=tags(train),
    )


def test_sentences_can_be_held_out(tmp_path, coder):
  path = write(tmp_path / 'a.conll', [f'{"abcdefghij"[n]}\tB-{n}\n' for n in range(10)])
  held = {
    s: batched(token_classification, 2, path, coder, 8, split=s, holdout=0.3)
    for s in ('train', 'valid', 'all')
  }
  assert {s: d.size for s, d in held.items()} == {'train': 7, 'valid': 3, 'all': 10}
  found = [t for s in ('train', 'valid') for t in texts_of(held[s])]
  assert sorted(found) == sorted(texts_of(held['all']))
  assert {d.metadata['class_names'] for d in held.values()} == {tuple(f'B-{n}' for n in range(10))}


def test_conll_in_its_varieties(tmp_path):
  lines = ['-DOCSTART- -X- O O', '', 'U.N. NNP I-NP B-ORG', 'a b\tO\r', ' \t', '', '# \tO']
  found = read_conll(write(tmp_path / 'a.conll', lines))
  assert found == [[('U.N.', 'B-ORG'), ('a b', 'O')], [('#', 'O')]]


@pytest.mark.parametrize('line', ['word', 'word\t', '\tO', 'word\t '])
def test_a_line_without_word_or_tag_is_named(tmp_path, line):
  path = write(tmp_path / 'a.conll', ['a\tO', '', line])
  with pytest.raises(InputError, match=r'a\.conll, line 3: a word and its tag are expected'):
    read_conll(path)


@pytest.mark.parametrize(
  ('content', 'message'), [('', 'is empty'), ('\n\n', 'is empty'), (None, 'no file')]
)
def test_conll_that_is_not_there(tmp_path, content, message):
  if content is not None:
    (tmp_path / 'a.conll').write_text(content)
  with pytest.raises(InputError, match=message):
    read_conll(str(tmp_path / 'a.conll'))


def test_published_tags(data_dir, coder):
  folder = data_dir / 'ner_wnut17'
  train, valid = str(folder / 'wnut17train.conll'), str(folder / 'emerging.dev.conll')
  data = batched(token_classification, 2, valid, coder, 64, fitted=tags(train))
  assert len(data.metadata['class_names']) == 13
  words = [w for sentence in read_conll(valid) for w in sentence]
  assert (data.size, len(words)) == (1009, 15_733)
  source = data.metadata['source']
  lost = re.findall(r'([\d,]+) (?:words cut off|without a token)', source)
  cut, deleted = (int(n.replace(',', '')) for n in lost)
  assert data.arrays['weights'].sum() == len(words) - cut - deleted


def test_words_without_a_token_count_as_outside(tmp_path, coder):
  """One that the tokenizer deletes, and one behind the end, are words of their entities."""
  tags = ['B-person', 'I-person', 'I-person', 'O', 'B-place', 'I-place']
  words = ['a', '\u200b', 'b', 'the', 'cat', 'saw']
  path = write(tmp_path / 'a.conll', [f'{w}\t{t}' for w, t in zip(words, tags, strict=True)])
  for length, expected in ((8, 2 / 5), (6, 0)):
    data = batched(token_classification, 1, path, coder, length)
    cut = max(0, 7 - length)
    assert f'1 sentences, {cut} words cut off, 1 without a token' in data.metadata['source']
    rows = {k: data.arrays[k] for k in ('targets', 'weights')}
    rows['prediction'] = rows['targets']  # of a model that knows all tags
    (told,) = data.present(rows)
    assert (told['words'], told['known']) == (words, tags)
    assert told['tags'] == ['B-person', 'O', 'I-person', *tags[3 : 6 - cut], *['O'] * cut]
    # True: a, 200b, b and cat, saw. Predicted: a; b; cat, saw (or cat alone where it is cut).
    assert entity_f1(rows, data) == pytest.approx(expected)


def test_the_order_of_classes_can_be_given(tmp_path, coder):
  path = write(tmp_path / 'a.conll', [CONLL])
  order = ('I-place', 'B-place', 'O', 'B-person', 'B-work')
  data = batched(token_classification, 2, path, coder, 24, classes=order)
  assert data.metadata['class_names'] == order
  assert sorted(set(data.arrays['targets'][data.arrays['weights'] > 0])) == [0, 1, 2, 3]
  assert data.state()['class_names'] == list(order)
  with pytest.raises(InputError, match=r"tag 'B-person'; expected one of O$"):
    batched(token_classification, 2, path, coder, 24, classes=('O',))
  table_of = table(tmp_path / 'a.csv', ['x,no', 'x,yes'])
  make = lambda classes: batched(
    text_classification, 2, table_of, 'text', 'label', coder, 8, classes=classes
  )
  assert make(('yes', 'no')).arrays['label'].tolist() == [1, 0]
  with pytest.raises(InputError, match=r"class 'no'; expected one of yes"):
    make(('yes',))
  with pytest.raises(InputError, match=r'classes=.*: expected different names'):
    make(('yes', 'yes', 'no'))


def test_classes_of_held_out_records_alone_are_named(tmp_path, coder, caplog):
  """In a table, in texts and in tags: the classes count, and a warning names what was not seen."""
  held = set(split_indices(10, 'valid', 0.2, ('valid',)))
  kinds = ['rare' if i in held else ('good', 'bad')[i % 2] for i in range(10)]
  found = table_data(given={'x': [*range(10)], 'label': kinds}, target='label', split='train',
                     holdout=0.2)  # fmt: skip
  assert found.metadata['class_names'] == ('bad', 'good', 'rare')
  texts = table(tmp_path / 'a.csv', [f'{kind},{kind}' for kind in kinds])
  words = {'tokenizer': coder, 'length': 8, 'holdout': 0.2}
  read = functools.partial(text_classification, texts, text='text', label='label', **words)
  assert read(split='train').metadata['num_classes'] == 3
  tagged = write(tmp_path / 'a.conll', [f'{kind}\t{kind}\n' for kind in kinds])
  token_classification(tagged, split='train', **words)
  read(split='valid', train=False, fitted={'class_names': ['rare']})
  assert [r.getMessage().partition('held-out')[2] for r in caplog.records if 'alone' in r.msg] == [
    ' records alone have rare: training never sees it'
  ] * 3
