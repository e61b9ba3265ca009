"""Instances of texts, tags, questions and images are read as files of them are."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import bmx
from bmx import config as recipes
from bmx import experiment
from bmx.core.data import Spec
from bmx.core.errors import InputError
from bmx.data.recommend.clicks import clicks
from bmx.experiment.instances import columns_of
from bmx.train import datafile
from bmx.train.evaluate import predictions
from bmx.train.predicted import lines

WORDS = ['the', 'old', 'river', 'runs', 'past', 'a', 'quiet', 'town', 'of', 'stone', 'and', 'light']
TEXTS = [{'review': ' '.join(WORDS[i:] + WORDS[:i]), 'stars': 'ab'[i % 2]} for i in range(10)]
TAGGED = [[(w, 'B' if w in ('river', 'town') else 'O') for w in t['review'].split()] for t in TEXTS]


@dataclasses.dataclass
class Run:
  """A run that has not trained, and its reader of instances."""

  x: object
  read: experiment.Instances
  state: object

  def rows(self, data):
    parts = predictions(data, self.x.task, self.x.layout, self.state)
    return list(lines(data, self.x.task, parts))


def built(config):
  config.eval, config.keep.metric, config.batch_size = {}, '', 4
  x = experiment.build(config, devices=jax.devices()[:1])
  kept = datafile.describe(x.data)
  spec = {k: Spec(tuple(s), np.dtype(d), tuple(n)) for k, (s, d, n) in kept['spec'].items()}
  stored = datafile.DataFile(x.data.size, spec, kept['metadata'], kept['state'])
  again = experiment.build(config, devices=jax.devices()[:1], stored=stored, evals=False)
  return Run(again, experiment.Instances(again, stored), again.init())


def text_config(folder, data, task=(), **model):
  """The recipe `text`, small, with another data part."""
  (folder / 'plain.txt').write_text('\n'.join(t['review'] for t in TEXTS))
  config, _ = bmx.load('text', ['vocab=300', 'length=24', 'steps=1', 'epochs=0.0'])
  with config.unlocked():
    tokenizer = dict(config.data.tokenizer) | {'path': str(folder / 'plain.txt')}
    tokenizer.pop('field')
    config.data = {'length': 24, 'tokenizer': tokenizer, 'split': 'all', **data}
    config.task.update(dict(task))
    config.task.model = dict(config.task.model) | model
    config.task.model.encoder = dict(config.task.model.encoder)
    config.task.model.encoder.update({'width': 8, 'depth': 1, 'heads': 1})
  return config


def same(found, expected):
  """Equal, but for the last digits of numbers."""
  assert json.loads(json.dumps(found), parse_float=lambda t: round(float(t), 5)) == json.loads(
    json.dumps(expected), parse_float=lambda t: round(float(t), 5)
  )


def test_texts(tmp_path):
  path = tmp_path / 'texts.jsonl'
  path.write_text(''.join(json.dumps(t) + '\n' for t in TEXTS))
  call = 'bmx.data.text.text_classification:text_classification'
  run = built(text_config(tmp_path, {'call': call, 'path': str(path), 'text': 'review',
                                     'label': 'stars'}))  # fmt: skip
  expected = run.rows(experiment.input_data(run.x, path))
  same(run.rows(run.read(TEXTS)), expected)
  bare = [{k: v for k, v in row.items() if k != 'label'} for row in expected]
  same(run.rows(run.read([{'text': t['review']} for t in TEXTS])), bare)
  same(run.rows(run.read([t['review'] for t in TEXTS])), bare)
  for wrong, message in (
    ([{'text': 'a'}, {'review': 3}], r"instances\[1\]: no text under 'review'; it is 3"),
    ([{'review': 'a\ud800'}], r'instances\[0\] holds .* half of a surrogate pair'),
    ([{'revew': 'a'}], "did you mean 'review'"),
    (['a', {'review': 'a', 'text': 'b'}], r"instances\[1\]: 'review' and text name one column"),
    ([{'text': 'a', 'stars': 'z'}], r"instances\[0\]: class 'z'"),
  ):
    with pytest.raises(InputError, match=message):
      run.read(wrong)


def test_tags(tmp_path):
  path = tmp_path / 'tags.conll'
  path.write_text('\n\n'.join('\n'.join(f'{w} {t}' for w, t in s) for s in TAGGED))
  call = 'bmx.data.text.token_classification:token_classification'
  task = {'call': 'bmx.tasks.encoder:TokenClassification'}
  run = built(text_config(tmp_path, {'call': call, 'path': str(path)}, task,
                          call='bmx.models.bert:Tagger'))  # fmt: skip
  expected = run.rows(experiment.input_data(run.x, path))
  words = [[w for w, _ in s] for s in TAGGED]
  tags = [[t for _, t in s] for s in TAGGED]
  given = [{'words': w, 'tags': t} for w, t in zip(words, tags, strict=True)]
  same(run.rows(run.read(given)), expected)
  bare = [{k: v for k, v in row.items() if k != 'known'} for row in expected]
  same(run.rows(run.read([{'words': w} for w in words])), bare)
  for wrong, message in (
    ([{'words': ['a']}, {'words': []}], r'instances\[1\]: words=\[\]'),
    ([{'words': 'river'}], r'instances\[0\]: words='),
    ([{'words': ['a', 3]}], r'instances\[0\]: words='),
    ([{'words': ['a'], 'tags': ['O', 'O']}], 'expected a tag for each of 1 words'),
    ([{'words': ['a'], 'tags': ['Q']}], "tag 'Q'"),
  ):
    with pytest.raises(InputError, match=message):
      run.read(wrong)


def test_questions(tmp_path):
  contexts = [' '.join([t['review']] * 3) for t in TEXTS]  # several windows each
  answer = lambda c: {'text': 'quiet town', 'answer_start': c.find('quiet town')}
  asked = []
  for n, context in enumerate(contexts):
    there = 'quiet town' in context
    asked.append({'id': str(n), 'question': 'where ?', 'is_impossible': not there,
                  'answers': [answer(context)] if there else []})  # fmt: skip
  paragraphs = [{'context': c, 'qas': [qa]} for c, qa in zip(contexts, asked, strict=True)]
  path = tmp_path / 'questions.json'
  path.write_text(json.dumps({'data': [{'title': 'one', 'paragraphs': paragraphs}]}))
  task = {'call': 'bmx.tasks.question_answering:QuestionAnswering'}
  run = built(text_config(tmp_path, {'call': 'bmx.data.text.squad:squad', 'path': str(path)}, task,
                          call='bmx.models.bert:Tagger', num_outputs=2))  # fmt: skip
  expected = run.rows(experiment.input_data(run.x, path))
  given = [qa | {'context': c} for c, qa in zip(contexts, asked, strict=True)]
  assert run.read(given).size > len(given)
  same(run.rows(run.read(given)), expected)
  bare = [{'question': g['question'], 'context': g['context']} for g in given]
  answers = [row['answer'] for row in run.rows(run.read(bare))]
  assert answers == [row['answer'] for row in expected]
  with pytest.raises(InputError, match=r'instances\[1\]: context=3: expected a text'):
    run.read([bare[0], {'question': 'a', 'context': 3}])


def test_images(tmp_path):
  config, _ = bmx.load('digits_mlp:tiny', ['steps=3'])
  run = built(config)
  images = np.random.default_rng(0).random((5, 8, 8, 1), np.float32)
  np.savez(tmp_path / 'images.npz', image=images)
  expected = run.rows(experiment.input_data(run.x, tmp_path / 'images.npz'))
  same(run.rows(run.read([{'image': i.tolist()} for i in images])), expected)
  good = images[0].tolist()
  for wrong, message in (
    ([{'image': good}, {'image': good[0]}], r'instances\[1\].image has shape \(8, 1\)'),
    ([{'image': [[1], [2, 3]]}], r'instances\[0\].image: expected numbers in nested lists'),
    ([{'image': 'abc'}], r'instances\[0\].image: expected numbers'),
    ([{'image': (images[0] * np.inf).tolist()}], r'image\[\d\]\[\d\]\[0\]: expected a finite'),
    ([{'picture': good}], "unknown column 'picture'"),
    ([{}], "missing column 'image'"),
  ):
    with pytest.raises(InputError, match=message):
      run.read(wrong)


def test_arrays_are_scaled_as_in_training(tmp_path):
  images = np.random.default_rng(0).integers(0, 255, (6, 4, 4, 1), np.uint8)
  np.savez(tmp_path / 'a.npz', image=images, label=np.arange(6) % 3)
  config, _ = bmx.load('digits_mlp:tiny', ['steps=3', 'classes=3'])
  with config.unlocked():
    config.data = {'call': 'bmx.data.arrays:arrays', 'path': str(tmp_path / 'a.npz'),
                   'scale': 255.0}  # fmt: skip
  run = built(config)
  np.savez(tmp_path / 'new.npz', image=images)
  data = experiment.input_data(run.x, tmp_path / 'new.npz')
  rows = data.rows(np.arange(6), np.arange(6))
  np.testing.assert_allclose(rows['image'], images / 255.0, rtol=1e-6)
  same(run.rows(run.read([{'image': i.tolist()} for i in images])), run.rows(data))


def test_a_language_model_reads_no_instances():
  config, _ = bmx.load('gpt_char:tiny', ['steps=30'])
  with pytest.raises(InputError, match='expected a part whose examples are single instances'):
    built(config)


def test_columns_of_clicks_and_of_users():
  frame = {'click': [0, 1] * 3, 'site': ['a', 'b'] * 3, 'device': list('xyzxyz'), 'spent': range(6)}
  state = clicks(given=frame, target='click', hashed=('device',)).state()
  part = {'call': 'bmx.data.recommend.clicks:clicks', 'target': 'click'}
  found = {c.name: (c.kind, c.required) for c in columns_of(part, {}, state)}
  assert found == {'spent': ('number', True), 'site': ('category', True),
                   'device': ('category', True), 'click': ('other', False)}  # fmt: skip
  users = columns_of({'call': 'bmx.data.recommend.ratings:ratings', 'user': 'customer'}, {}, {})
  assert [(c.name, c.required) for c in users] == [('customer', True)]


def test_users_of_requests(tmp_path):
  events = [f'{user},{(user + i) % 12},5,{i}' for user in range(6) for i in range(6)]
  (tmp_path / 'rated.csv').write_text('\n'.join(['userId,movieId,rating,timestamp', *events]))
  words = [f'data.path={tmp_path}/rated.csv', 'data.items=', 'data.item_features=()', 'epochs=1']
  run = built(recipes.load('movielens_two_tower', words)[0])
  data = run.read([{'userId': 1}, {'userId': 'new'}])
  assert set(run.read.spec) <= set(data.spec), 'a served batch has all that predictions read'
  first, new = run.rows(data)
  items = [int(item['item']) for item in first['items']]
  assert (first['user'], new['fallback']) == ('1', 'popular')
  assert items and not {1, 2, 3, 4, 5, 6} & {*items}
