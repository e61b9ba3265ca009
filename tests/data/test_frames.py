"""One table from every source, and the kinds of its target."""

import datetime
import decimal

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from bmx.core.errors import InputError
from bmx.data.frames import frame_records, read_records
from bmx.data.tables import table
from bmx.data.targets import kind_of_target

COLUMNS = {
  'age': [30, 41, None, 25],
  'job': ['cook', 'smith', 'cook', None],
  'day': [datetime.date(2024, 1, d) for d in (1, 2, 3, 4)],
  'income': ['low', 'high', 'low', 'high'],
}
CSV = """age,job,day,income
30,cook,2024-01-01,low
41,smith,2024-01-02,high
,cook,2024-01-03,low
25,,2024-01-04,high
"""


def test_every_source_of_a_table_gives_the_same_rows(tmp_path):
  frame = pyarrow.table(COLUMNS)
  pyarrow.parquet.write_table(frame, tmp_path / 'a.parquet')
  (tmp_path / 'a.csv').write_text(CSV)
  (tmp_path / 'a.tsv').write_text(CSV.replace(',', '\t'))
  files = [table(str(tmp_path / f'a.{kind}'), 'income') for kind in ('csv', 'tsv', 'parquet')]
  for other in (*files, table(target='income', given=frame), table(target='income', given=COLUMNS)):
    np.testing.assert_array_equal(other.arrays['x'], files[0].arrays['x'])
    assert other.arrays['label'].tolist() == [1, 0, 1, 0]
    assert other.metadata['class_names'] == ('high', 'low')
    assert other.state() == files[0].state()


def test_cells_of_frames():
  given = {'a': [1.5, float('nan')], 'b': [decimal.Decimal('2.5'), None], 'c': [True, False]}
  assert frame_records(given) == [
    {'a': 1.5, 'b': 2.5, 'c': True},
    {'a': None, 'b': None, 'c': False},
  ]
  for bad, message in (
    ({'a': [[1], [2]]}, 'record 1: a is a list'),
    ({'a': [1, 2], 'b': [1]}, 'expected a data frame'),
    ({'a': []}, 'is empty'),
    (5, 'int: expected a data frame'),
  ):
    with pytest.raises(InputError, match=message):
      frame_records(bad)


def test_words_of_another_format_are_refused(tmp_path):
  (tmp_path / 'a.jsonl').write_text('{"a": 1}\n')
  with pytest.raises(InputError, match='delimiter'):
    read_records(tmp_path / 'a.jsonl', delimiter=';')
  (tmp_path / 'a.parquet').write_text('a,b')
  with pytest.raises(InputError, match='not a Parquet file'):
    read_records(tmp_path / 'a.parquet')
  with pytest.raises(InputError, match='no file'):
    read_records(tmp_path / 'b.parquet')


@pytest.mark.parametrize(
  ('values', 'kind'),
  [
    (['yes', 'no'], 'class'),
    (['0', '1', '0'], 'class'),
    ([str(i) for i in range(20)], 'class'),
    ([str(i) for i in range(21)], 'number'),
    (['1.5', '2', '3'], 'number'),
    ([1.0, 2.0, None], 'class'),
    (['1', '2', 'many'], 'class'),
    ([True, False], 'class'),
  ],
)
def test_kind_of_a_target(values, kind):
  assert kind_of_target(values) == kind


@pytest.mark.parametrize(
  ('target', 'words', 'message'),
  [
    (['a', 'a', 'a'], {}, 'has one class only'),
    (['', None, ''], {}, 'has no value'),
    ([f'name {i}' for i in range(60)], {}, 'has 60 classes in 60 records'),
    (['1', '2', 'x'], {'kind': 'number'}, "record 3: y is 'x'"),
    (['1', '2', 'inf'], {'kind': 'number'}, 'expected a finite number'),
    (['1', '2', '3'], {'kind': 'both'}, "expected 'auto', 'class' or 'number'"),
    (['1', '2', '1'], {'target': 'z'}, "data.target='z'"),
    (['1', '2', '1'], {'target': ''}, 'it has x, y'),
  ],
)
def test_targets_that_are_refused(target, words, message):
  given = {'x': list(range(len(target))), 'y': target}
  with pytest.raises(InputError, match=message):
    table(given=given, **({'target': 'y'} | words))


def test_a_number_is_standardized_by_the_training_part():
  y = np.random.default_rng(0).normal(3e5, 1e4, 200)
  given = {'x': np.arange(200.0), 'y': y}
  train = table(target='y', given=given, split='train', holdout=0.25)
  part = train.arrays['y'][:, 0]
  assert len(part) == 150
  assert train.metadata['target_mean'] == pytest.approx(part.mean(), rel=1e-5)
  assert train.metadata['target_std'] == pytest.approx(part.std(), rel=1e-4)
  held = table(target='y', given=given, split='valid', holdout=0.25, fitted=train.state())
  assert held.metadata['target_mean'] == train.metadata['target_mean']
  alone = table(target='y', given={'x': [1.0]}, fitted=train.state(), train=False)
  assert 'y' not in alone.arrays
