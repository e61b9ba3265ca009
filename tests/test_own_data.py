"""Data of one's own: a table from a file and from memory, by command line and from Python."""

import json

import jax
import numpy as np
import pytest

import bmx
from bmx import experiment
from bmx import main as entry
from bmx.core.errors import InputError
from bmx.tasks.classification import Classification
from bmx.tasks.regression import Regression

N = 120
WORDS = [
  'epochs=20',
  'batch_size=16',
  'task.model.widths=(16,)',
  'schedule.peak=0.01',
]


@pytest.fixture(scope='module')
def frame():
  random = np.random.default_rng(0)
  x, color = random.normal(size=N), random.choice(['red', 'green', 'blue'], N)
  price = 1000 + 200 * x + 50 * (color == 'red')
  return {'x': x, 'color': color, 'price': price, 'dear': np.where(price > 1000, 'yes', 'no')}


def built(frame, target, drop, words=()):
  config, name = bmx.load(
    'table', [f'data.target={target}', f"data.drop=('{drop}',)", *WORDS, *words]
  )
  return bmx.build(config, name, jax.devices()[:1], given=frame)


def test_classes_of_a_frame(frame, tmp_path):
  x = built(frame, 'dear', 'price')
  assert isinstance(x.task, Classification)
  assert x.choices['num_outputs'] == 2
  assert (x.data.size, x.evals['valid'].data.size) == (96, 24)
  assert (x.steps, x.every.log, x.every.eval) == (120, 6, 12)  # 20 and 10 times
  metrics = bmx.train(x, tmp_path / 'run')['metrics']
  assert metrics['eval/valid/accuracy'] > 0.75
  assert bmx.evaluate(x, tmp_path / 'run')['eval/valid/loss'] == metrics['eval/valid/loss']
  rows = list(bmx.predict(x, tmp_path / 'run', frame))
  assert rows[0]['price'] == frame['price'][0]  # a column that is no input names the row
  assert [row['row'] for row in rows] == list(range(1, N + 1))
  assert set(rows[0]['probability']) == {'no', 'yes'}
  assert sum(rows[0]['probability'].values()) == pytest.approx(1)
  assert [row['label'] for row in rows] == frame['dear'].tolist()
  right = [row['prediction'] == label for row, label in zip(rows, frame['dear'], strict=True)]
  assert np.mean(right) > 0.9
  stored = json.loads((tmp_path / 'run/config.json').read_text())
  assert stored['resolved']['num_outputs'] == 2


def test_a_number_of_a_file_by_the_command_line(frame, tmp_path, capsys):
  names = [k for k in frame if k != 'dear']
  lines = [','.join(names), *(','.join(str(frame[k][i]) for k in names) for i in range(N))]
  (tmp_path / 'my.csv').write_text('\n'.join(lines))
  words = [f'--config.{word}' for word in WORDS]
  assert entry.main(['--config=table', f'--config.data.path={tmp_path}/my.csv', *words,
                     '--config.data.target=price', f'--workdir={tmp_path}/run']) == 0  # fmt: skip
  assert 'target price: a number' in capsys.readouterr().err
  metrics = json.loads((tmp_path / 'run/summary.json').read_text())['metrics']
  assert metrics['eval/valid/mae'] < 0.5 * np.std(frame['price'])


def test_texts_of_a_folder(tmp_path):
  for i in range(40):
    label = ('good', 'bad')[i % 2]
    (tmp_path / 'texts' / label).mkdir(parents=True, exist_ok=True)
    (tmp_path / f'texts/{label}/{i}.txt').write_text(f'a {label} film, number {i}')
  words = ['vocab=300', 'length=16', 'batch_size=8', 'task.model.encoder.width=16',
           'epochs=15', 'task.model.encoder.depth=1', 'schedule.peak=0.01']  # fmt: skip
  config, name = bmx.load('text', [f'data.path={tmp_path}/texts', *words])
  x = bmx.build(config, name, jax.devices()[:1])
  assert x.choices['num_outputs'] == 2
  summary = bmx.train(x, tmp_path / 'run')
  assert summary['metrics']['eval/valid/accuracy'] == 1
  (tmp_path / 'new.csv').write_text('text\na bad film\na good film\n')
  rows = list(bmx.predict(x, tmp_path / 'run', tmp_path / 'new.csv'))
  assert [(r['text'], r['prediction']) for r in rows] == [
    ('a bad film', 'bad'), ('a good film', 'good'),
  ]  # fmt: skip


def test_sizes_follow_the_data(frame):
  x = built(frame, 'price', 'dear')
  assert isinstance(x.task, Regression)
  assert x.choices['num_outputs'] == 1
  with pytest.raises(InputError, match='num_outputs=3'):
    built(frame, 'dear', 'price', ['task.model.num_outputs=3'])
  with pytest.raises(InputError, match='num_outputs=many'):
    built(frame, 'dear', 'price', ['task.model.num_outputs=many'])
  with pytest.raises(InputError, match='smoothing'):
    built(frame, 'price', 'dear', ['task.smoothing=0.1'])


def test_data_in_memory_need_a_part_that_takes_them(frame):
  config, _ = bmx.load('digits_mlp:tiny')
  with pytest.raises(InputError, match='takes data from memory'):
    bmx.build(config, given=frame)
  config, _ = bmx.load('digits_mlp:tiny', ['data.call=bmx.data.arrays:arrays'])
  config.data = {'call': 'bmx.data.arrays:arrays', 'path': ''}
  config.eval = {}
  given = {'x': np.ones((64, 5), np.float32), 'label': np.arange(64) % 10}
  x = experiment.build(config, given=given)
  assert (x.data.size, x.data.metadata['num_classes']) == (64, 10)
