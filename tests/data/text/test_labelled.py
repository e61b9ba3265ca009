"""Labelled text: every label stays with its text, every answer is found again in its window."""

import json
import types
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmx import config as recipes
from bmx import experiment
from bmx.core.data import Resident
from bmx.core.errors import InputError
from bmx.data.batches import Batches
from bmx.data.text import text_classification as labelled
from bmx.data.text.squad import squad as questions
from bmx.data.text.text_classification import library, text_classification
from bmx.data.text.token_classification import read_conll, token_classification
from bmx.data.text.tokenizer_train import trained
from bmx.parallel import Layout, make_mesh
from bmx.tasks.metrics import exact_match
from tests.data.batched import batched
from tests.data.letters import sentences

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


@pytest.fixture(scope='module')
def coder(tmp_path_factory):
  """A WordPiece tokenizer that knows few words and all letters."""
  folder = tmp_path_factory.mktemp('coder')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(folder))
    path = folder / 'text.txt'
    letters = 'abcdefghijklmnopqrstuvwxyz0123456789.,?'
    path.write_text('\n'.join([*sentences(100), ' '.join(letters), letters]))
    return trained('wordpiece', 300, (str(path),))


@pytest.fixture(scope='module')
def unframed(tmp_path_factory):
  folder = tmp_path_factory.mktemp('unframed')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(folder))
    (folder / 'text.txt').write_text('a b')
    return trained('bpe', 300, (str(folder / 'text.txt'),))


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
  lost = int(data.metadata['source'].rsplit(', ', 1)[1].split()[0].replace(',', ''))
  assert data.arrays['weights'].sum() == len(words) - lost


# Questions.


def article(title, contexts):
  """A question on each context: its answer is the text in brackets, which are taken away."""
  paragraphs = []
  for text in contexts:
    start = text.index('[')
    answer = text[start + 1 : text.index(']')]
    qa = {'question': 'the cat?', 'answers': [{'text': answer, 'answer_start': start}]}
    paragraphs.append({'context': text.replace('[', '').replace(']', ''), 'qas': [qa]})
  return {'title': title, 'paragraphs': paragraphs}


def squad(path, *articles):
  return write(path, [json.dumps({'data': articles})])


def gold(data):
  """The rows that a model would give that knows the answers."""
  first, last = (data.arrays[k] for k in ('first', 'last'))
  score = (first > 0).astype(float)
  return {'prediction': np.stack([first, last], 1), 'score': score, 'no_answer': 0 * score}


def test_a_question_by_hand(tmp_path, coder):
  path = squad(tmp_path / 'a.json', article('A', ['The cat saw [a dog] softly.']))
  data = batched(questions, 2, path, coder, 16)
  ask, text = (x.tolist() for x in coder.encode(['the cat?', 'the cat saw a dog softly.']))
  ids, rest = [CLS, *ask, SEP, *text, SEP], [0] * (13 - len(ask) - len(text))
  row = {k: v[0].tolist() for k, v in data.arrays.items()}
  assert data.size == 1
  assert row['tokens'] == ids + rest
  assert row['segment_ids'] == [1] * len(ids) + rest
  assert row['types'] == [0] * (len(ask) + 2) + [1] * (len(text) + 1) + rest
  assert row['context'] == [0] * (len(ask) + 2) + [1] * len(text) + [0] + rest
  assert coder.decode(row['tokens'][row['first'] : row['last'] + 1]) == 'a dog'
  assert data.answers(gold(data)) == [('a dog', ['a dog'])]
  assert data.metadata['questions'] == 1


WINDOWS = {'length': st.integers(7, 24), 'stride': st.integers(0, 9), 'size': st.integers(1, 60)}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(**WINDOWS, place=st.integers(0, 59), asked=st.integers(1, 20))
def test_windows_cover_the_paragraph(tmp_path_factory, coder, length, stride, size, place, asked):
  words = [chr(97 + n % 26) for n in range(size)]
  text, start = ' '.join(words), 2 * (place % size)
  answer = {'text': text[start], 'answer_start': start}
  qa = {'question': '? ' * asked, 'answers': [answer]}
  content = {'title': 'A', 'paragraphs': [{'context': text, 'qas': [qa]}]}
  path = squad(tmp_path_factory.mktemp('a') / 'a.json', content)
  data = batched(questions, 2, path, coder, length, stride)
  arrays, covered = data.arrays, np.zeros(size, bool)
  for n, window in enumerate(data.windows):
    real = arrays['segment_ids'][n].sum()
    assert len(window.offsets) == real
    begins = [window.offsets[t][0] for t in np.flatnonzero(arrays['context'][n])]
    covered[np.array(begins) // 2] = True
    inside = start in begins
    assert (arrays['first'][n] > 0) == inside
    if inside:
      assert arrays['first'][n] == arrays['last'][n]
      assert window.offsets[arrays['first'][n]] == (start, start + 1)
      assert arrays['context'][n, arrays['first'][n]] == 1
    else:
      assert (arrays['first'][n], arrays['last'][n]) == (0, 0)
  assert covered.all()
  assert data.answers(gold(data)) == [(text[start], [text[start]])]


def test_an_answer_cut_by_the_window_is_none(tmp_path, coder):
  context = ' '.join('abcdefghijkl')
  answer = {'text': 'c d e f g h i', 'answer_start': 4}
  qa = {'question': '?', 'answers': [answer]}
  path = squad(tmp_path / 'a.json', {'paragraphs': [{'context': context, 'qas': [qa]}]})
  data = batched(questions, 2, path, coder, 9)  # five tokens of the context at a time
  assert not data.arrays['first'].any()
  assert not data.arrays['last'].any()
  assert data.answers(gold(data)) == [('', ['c d e f g h i'])]


def test_the_surest_window_answers(tmp_path, coder):
  path = squad(tmp_path / 'a.json', article('A', [' '.join('abc[d]efghijkl'), 'sat [over]']))
  data = batched(questions, 2, path, coder, 14)
  mine = [n for n, w in enumerate(data.windows) if w.question == 0]
  assert len(mine) > 1
  for best in mine:
    rows = {'prediction': np.zeros((data.size, 2), np.int32), 'score': np.zeros(data.size)}
    rows['no_answer'] = 0 * rows['score']
    rows['score'][best] = 1
    rows['prediction'][:] = data.arrays['context'].argmax(1)[:, None]
    (told, _), (other, _) = data.answers(rows)
    a, b = data.windows[best].offsets[rows['prediction'][best, 0]]
    assert (told, other) == (data.contexts[0][a:b], 'sat')


def test_space_around_an_answer_does_not_lose_it(tmp_path, coder):
  path = squad(tmp_path / 'a.json', article('A', ['the cat[ saw ]a dog']))
  data = batched(questions, 2, path, coder, 16)
  assert data.answers(gold(data)) == [('saw', [' saw '])]


@pytest.mark.parametrize('answers', [{}, {'answers': []}])
def test_questions_without_answers_can_be_predicted(tmp_path, coder, answers):
  qa = {'question': 'the cat?'} | answers
  path = squad(tmp_path / 'a.json', {'paragraphs': [{'context': 'a dog', 'qas': [qa]}]})
  data = batched(questions, 2, path, coder, 16, train=False)
  assert (data.arrays['first'].tolist(), data.arrays['last'].tolist()) == ([0], [0])
  assert data.gold == [[]]


def test_held_out_articles_share_no_paragraph(tmp_path, coder):
  path = squad(
    tmp_path / 'a.json',
    *[article(f'T{n}', [f'{n} [a] dog', f'{n} the [cat]']) for n in range(10)],
  )
  held = {
    s: batched(questions, 2, path, coder, 16, split=s, holdout=0.3)
    for s in ('train', 'valid', 'all')
  }
  articles = {s: {c[0] for c in d.contexts} for s, d in held.items()}
  assert {s: len(a) for s, a in articles.items()} == {'train': 7, 'valid': 3, 'all': 10}
  assert not articles['train'] & articles['valid']
  assert {s: d.metadata['questions'] for s, d in held.items()} == {
    'train': 14,
    'valid': 6,
    'all': 20,
  }


BAD_QUESTIONS = [
  {},
  {'question': 1},
  'why?',
  {'question': 'why?', 'answers': [{'text': 'a'}]},
  {'question': 'why?', 'answers': [{'text': 'a', 'answer_start': '0'}]},
  {'question': 'why?', 'answers': 3},
]


@pytest.mark.parametrize('qa', BAD_QUESTIONS)
def test_a_question_that_is_none_is_named(tmp_path, coder, qa):
  right = {'question': 'why?', 'answers': [], 'is_impossible': True}
  path = squad(tmp_path / 'a.json', {'paragraphs': [{'context': 'a dog', 'qas': [right, qa]}]})
  with pytest.raises(InputError, match=r'a\.json, question 2: expected are question, and answers'):
    batched(questions, 2, path, coder, 16)


UNFIT = {
  'elsewhere': ({'answers': [{'text': 'dog', 'answer_start': 1}]},
                "answer_start=1: expected the answer 'dog' .*, found ' do'"),
  'before': ({'answers': [{'text': 'g', 'answer_start': -1}]}, 'answer_start=-1: expected'),
  'behind': ({'answers': [{'text': 'dog', 'answer_start': 3}]}, "answer_start=3: .* found 'og'"),
  'second': ({'answers': [{'text': 'dog', 'answer_start': 2}, {'text': 'a', 'answer_start': 2}]},
             "answer_start=2: expected the answer 'a'"),
  'empty': ({'answers': [{'text': ' ', 'answer_start': 1}]}, "answer ' ': expected a text"),
  'both': ({'answers': [{'text': 'a', 'answer_start': 0}], 'is_impossible': True},
           'is_impossible=True and 1 answers'),
  'no flag': ({'answers': [], 'is_impossible': 'yes'}, "is_impossible='yes'"),
  'unknown': ({'answers': []}, 'no answer; expected one in training, or is_impossible=true'),
}  # fmt: skip


@pytest.mark.parametrize(('fields', 'message'), UNFIT.values(), ids=UNFIT)
def test_answers_that_do_not_fit_their_question(tmp_path, coder, fields, message):
  qa = {'id': '57x', 'question': 'why?'} | fields
  path = squad(tmp_path / 'a.json', {'paragraphs': [{'context': 'a dog', 'qas': [qa]}]})
  with pytest.raises(InputError, match=rf"a\.json, question 1 \(id '57x'\): {message}"):
    batched(questions, 2, path, coder, 16)


def test_questions_that_cannot_be_asked(tmp_path, coder, unframed):
  path = squad(tmp_path / 'a.json', article('A', ['the [cat]']))
  with pytest.raises(InputError, match='length=6, stride=0: at least 7 and 0'):
    batched(questions, 2, path, coder, 6)
  with pytest.raises(InputError, match='length=16, stride=-1'):
    batched(questions, 2, path, coder, 16, -1)
  with pytest.raises(InputError, match=r'questions: .* adds no token before .* and none between'):
    batched(questions, 2, path, unframed, 16)
  empty = squad(tmp_path / 'b.json', {'paragraphs': [{'context': 'a', 'qas': []}]})
  with pytest.raises(InputError, match=r'b\.json has no question'):
    batched(questions, 2, empty, coder, 16)


@pytest.fixture(scope='module')
def published(data_dir, tmp_path_factory):
  """XQuAD, English, with a tokenizer learned from it."""
  path = str(data_dir / 'xquad' / 'xquad.en.json')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('xquad')))
    return batched(questions, 8, path, trained('wordpiece', 4000, (path,)), 128)


def test_published_answers_are_found_again(published):
  assert published.metadata['questions'] == 1190
  pairs = published.answers(gold(published))
  assert len(pairs) == 1190
  assert exact_match(gold(published), published) >= 0.995


def test_published_answers_stand_in_their_windows(published):
  """What is decoded from first to last is the answer, as the tokenizer writes it."""
  arrays, coder = published.arrays, published.tokenizer
  plain = lambda text: ''.join(coder.inner.normalizer.normalize_str(text).split())
  rows = np.flatnonzero(arrays['first'])
  right = 0
  for n in rows:
    first, last = arrays['first'][n], arrays['last'][n]
    told = coder.decode(arrays['tokens'][n, first : last + 1])
    right += plain(told) in map(plain, published.gold[published.windows[n].question])
    assert arrays['context'][n, first : last + 1].all()
  assert len(rows) > 1190
  assert right >= 0.995 * len(rows)


PREDICTED = {
  'classified': (['text', 'good', 'bad'], 'a.csv', {'text': 'text', 'label': 'label'}),
  'tagged': (['a\tO', '', 'b\tO'], 'a.conll', {}),
  'questions': ([json.dumps({'data': [article('A', ['a [dog]', 'the [cat]'])]})], 'a.json', {}),
}


@pytest.mark.parametrize(('call', 'case'), PREDICTED.items(), ids=PREDICTED)
def test_a_file_to_predict_is_read_whole(tmp_path, coder, call, case):
  lines, name, options = case
  known = ['text,label', 'x,1', 'y,0'] if call == 'classified' else lines
  train = write(tmp_path / f'train.{name}', known)
  c: dict[str, Any] = recipes.plain(recipes.base()) | {'batch_size': 2}
  part = {'path': train, 'tokenizer': coder, 'length': 12, 'split': 'train', 'holdout': 0.0}
  name_of = {'classified': 'text_classification', 'tagged': 'token_classification'}
  room = name_of.get(call, 'squad')
  c['data'] = {'call': f'bmx.data.text.{room}:{room}'} | part | options
  layout = Layout(make_mesh(c['mesh'], jax.devices()[:1]), c['rules'], c['compute'])
  trained_on = Batches(recipes.build(c['data'], 'data'), 2)
  x = types.SimpleNamespace(config=c, layout=layout, data=trained_on)
  data = experiment.input_data(x, write(tmp_path / name, lines))  # type: ignore
  assert data.size == 2
  assert not data.train  # type: ignore
