"""Questions on paragraphs: every answer is found again in its window."""

import json
import types
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmx import config as recipes
from bmx import experiment
from bmx.core.errors import InputError
from bmx.core.types import Facts
from bmx.data.batches import Batches
from bmx.data.text.squad import squad as questions
from bmx.data.text.tokenizer_train import trained
from bmx.parallel import Layout, make_mesh
from bmx.tasks.metrics import answer_f1, exact_match
from bmx.tasks.question_answering import QuestionAnswering
from tests.data.batched import batched

CLS, SEP = 2, 3


def write(path, lines):
  path.write_text('\n'.join(lines) + '\n')
  return str(path)


@pytest.fixture(scope='module')
def unframed(tmp_path_factory):
  folder = tmp_path_factory.mktemp('unframed')
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv('XDG_CACHE_HOME', str(folder))
    (folder / 'text.txt').write_text('a b')
    return trained('bpe', 300, (str(folder / 'text.txt'),))


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


# Questions without an answer, SQuAD 2.0.


def second_version(path, count=24):
  """Every third question has no answer; paragraphs need several windows."""
  draw = np.random.default_rng(0)
  qas = []
  for n in range(count):
    words = [chr(97 + i) for i in draw.integers(0, 26, 30)]
    start = 2 * int(draw.integers(0, 26))
    context = ' '.join(words)
    answers = [{'text': context[start : start + 5], 'answer_start': start}] * (n % 3 > 0)
    qa = {'id': f'q{n}', 'question': '?', 'answers': answers, 'is_impossible': n % 3 == 0}
    qas.append({'context': context, 'qas': [qa]})
  return squad(path, {'title': 'A', 'paragraphs': qas})


def test_questions_without_an_answer(tmp_path, coder):
  path = second_version(tmp_path / 'a.json')
  data = batched(questions, 2, path, coder, 16)
  rows = [n for n, w in enumerate(data.windows) if w.question % 3 == 0]
  assert not data.arrays['first'][rows].any() and not data.arrays['last'][rows].any()
  assert [g == [''] for g in data.gold] == [n % 3 == 0 for n in range(24)]
  assert data.state()['no_answer']
  assert '24 questions, 8 without an answer' in data.metadata['source']
  known = gold(data) | {'score': np.where(data.arrays['first'] > 0, 1.0, -1.0)}
  assert exact_match(known, data) == answer_f1(known, data) == 1
  assert [p['id'] for p in data.examples.present(known)] == [f'q{n}' for n in range(24)]
  first = batched(questions, 2, path, coder, 16, fitted={'no_answer': False}, train=False)
  assert not first.state()['no_answer']
  told = known['prediction'].max(1) == 0
  known['prediction'][told] = data.arrays['context'].argmax(1)[
    told, None
  ]  # a span, as a task gives
  assert [a == '' for a, _ in data.answers(known)] == [n % 3 == 0 for n in range(24)]
  assert all(answer for answer, _ in first.answers(known))


def reference(data, out, longest):
  """`postprocess_qa_predictions` of transformers' run_qa, with all spans as its n best."""
  answers = []
  for q, context in enumerate(data.contexts):
    spans, none = [], np.inf
    for n in (n for n, w in enumerate(data.windows) if w.question == q):
      start, end = out[n, :, 0], out[n, :, 1]
      none = min(none, start[0] + end[0])
      places = np.flatnonzero(data.arrays['context'][n])
      spans += [(start[a] + end[b], data.windows[n].offsets[a][0], data.windows[n].offsets[b][1])
                for a in places for b in places if a <= b < a + longest]  # fmt: skip
    best = max(spans)
    answers.append('' if none > best[0] else context[best[1] : best[2]])
  return answers


def official(answers, known):
  """Exact match and F1 of evaluate-v2.0.py."""
  plain = lambda text: [w for w in text.split() if w not in ('a', 'an', 'the')]
  exact, f1 = [], []
  for answer, texts in zip(answers, known, strict=True):
    pairs = [(plain(answer), plain(text)) for text in [t for t in texts if plain(t)] or ['']]
    exact.append(max(told == true for told, true in pairs))
    same = [sum((Counter(told) & Counter(true)).values()) for told, true in pairs]
    f1.append(max(
      float(told == true) if not told or not true else 2 * n / (len(told) + len(true))
      for n, (told, true) in zip(same, pairs, strict=True)
    ))  # fmt: skip
  return np.mean(exact), np.mean(f1)


@pytest.mark.parametrize('seed', range(3))
def test_predictions_and_their_score_are_those_of_the_reference(tmp_path, coder, seed):
  data = batched(questions, 2, second_version(tmp_path / 'a.json'), coder, 16)
  out = np.random.default_rng(seed).normal(size=(data.size, 16, 2)).astype(np.float32)
  out[:, 0] += 2.4  # no answer wins in about half of the questions
  answered = out[np.arange(data.size), data.arrays['first'], 0]
  out[np.arange(data.size), data.arrays['first'], 0] = answered + 2
  task = QuestionAnswering(types.SimpleNamespace(facts=Facts(num_outputs=2)), 4)  # type: ignore
  rows = {k: np.asarray(v) for k, v in task.postprocess(jnp.asarray(out), data.arrays).items()}
  found, expected = [a for a, _ in data.answers(rows)], reference(data, out, 4)
  assert found == expected
  assert 3 < found.count('') < 21
  exact, overlap = official(expected, data.gold)
  assert 0 < exact <= overlap < 1
  assert exact_match(rows, data) == pytest.approx(exact)
  assert answer_f1(rows, data) == pytest.approx(overlap)
