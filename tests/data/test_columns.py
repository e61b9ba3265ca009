"""How columns of tables are read: numbers, dates, categories, mistakes; weights of records."""

import datetime
import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.core.metrics import weighted
from bmx.data.columns import category_line, date
from bmx.data.encoder import TabularEncoder
from bmx.data.tables import table


@pytest.fixture
def made(tmp_path):
  """Rows and words -> the table; `name` is the file's."""

  def make(text, name='a.csv', **words):
    (tmp_path / name).write_text(text)
    return table(str(tmp_path / name), words.pop('target', 'y'), **words)

  return make


def column(*cells):
  """A table of one column `a` with a class each."""
  return 'a,y\n' + ''.join(f'"{cell}",{"pq"[i % 2]}\n' for i, cell in enumerate(cells))


@pytest.mark.parametrize('token', ['', 'NA', 'N/A', 'n/a', 'null', 'NULL', 'None', '-', '?'])
def test_usual_missing_values_are_the_mean(made, token):
  x = made(column('1', token, '3')).arrays['x']
  np.testing.assert_allclose(x, [[-1], [0], [1]])


def test_the_named_missing_value_counts_too(made):
  np.testing.assert_allclose(made(column('1', '-99', '3'), missing='-99').arrays['x'][1], [0])


STRANGE = {
  'decimal comma': ('3,5', "record 2: '3,5'"),
  'unit': ('3 kg', "record 2: '3 kg'"),
  'word': ('unknown', "record 2: 'unknown'"),
  'date': ('2020-01-01', "record 2: '2020-01-01'"),
}


@pytest.mark.parametrize(('cell', 'message'), STRANGE.values(), ids=STRANGE)
def test_a_strange_cell_among_numbers_is_named(made, cell, message):
  with pytest.raises(InputError) as caught:
    made(column('1', cell, '3', '4'))
  for part in ('a.csv: a is a number in 3 records', message, 'missing=', 'categorical=', 'drop='):
    assert part in str(caught.value)
  assert made(column('1', cell, '3', '4'), categorical=('a',)).arrays['x'].shape == (4, 4)


def test_many_strange_cells_are_counted(made):
  with pytest.raises(InputError, match=r"record 1: 'a', record 2: 'b', record 3: 'c' and 1 more;"):
    made(column(*'abcd', *'12345'))
  with pytest.raises(InputError, match="a is a date in 2 records, but not in record 3: 'May'"):
    made(column('2020-01-01', '2020-01-02', 'May'))


def test_dates_are_days():
  days = lambda *ymd: (datetime.date(*ymd) - datetime.date(1970, 1, 1)).days
  assert date('2024-05-31') == days(2024, 5, 31) and date('1969-12-31') == -1
  assert date('2024-05-31T12:00') == date('2024-05-31 12:00:00Z') == days(2024, 5, 31) + 0.5
  assert date('2024-05-31T12:00:00+06:00') == days(2024, 5, 31) + 0.25
  for text in ('2024-02-30', '20240531', '31.5.2024', '2024', '2024-05-31x', 7, None):
    assert date(text) is None


def test_a_column_of_dates_is_one_number(made):
  text = column('2024-01-01', '2024-01-31', '', '2024-01-16')
  data = made(text)
  std = np.std([0, 30, 15])
  np.testing.assert_allclose(data.arrays['x'][:, 0], np.array([-15, 15, 0, 0]) / std, rtol=1e-5)
  fitted = json.loads(json.dumps(data.state()))
  other = made('a\n2024-01-16\n2024-01-17\n', 'b.csv', fitted=fitted, train=False)
  np.testing.assert_allclose(other.arrays['x'][:, 0], [0, 1 / std], atol=1e-5)
  with pytest.raises(InputError, match="b.csv, record 1: a is 'May', expected a date such as"):
    made('a\nMay\n', 'b.csv', fitted=fitted, train=False)


TABLE = (
  'id,age,job,day,none,w,y\n'
  'u1,20,cook,2024-01-01,,1,p\nu2,NA,judge,2024-01-03,NA,2,q\nu3,40,cook,2024-01-02,,3,p\n'
)


def test_one_line_a_column_says_how_it_was_read(made, caplog):
  caplog.set_level(logging.INFO, 'bmx')
  data = made(TABLE, drop=('id',), weights='w')
  lines = [line.strip() for line in caplog.text.splitlines()]
  assert lines[1:-1] == [
    'age: number, mean 30, deviation 10',
    'job: category of 2',
    'day: date, mean 2024-01-02, deviation 0.816497 days',
    'id: dropped',
    'none: dropped, no values',
  ]
  assert data.arrays['x'].shape == (3, 4)
  caplog.clear()
  made(TABLE, 'b.csv', weights='w', fitted=data.state(), train=False)
  assert 'columns' not in caplog.text


def test_a_name_of_each_record_is_questioned(made, caplog):
  caplog.set_level(logging.INFO, 'bmx')
  made(column(*(f'user {i}' for i in range(30))))
  assert (
    'a: category of 30 in 30 records: a name or number of the record? --data.drop=a leaves'
    in caplog.text
  )


def test_use_and_drop(made):
  used = made(TABLE, use=('age', 'job'))
  assert used.arrays['x'].shape == (3, 3)
  np.testing.assert_array_equal(
    used.arrays['x'], made(TABLE, drop=('id', 'day', 'none', 'w')).arrays['x']
  )
  # A dropped column may be in a file to predict, or may not; a new one is an error.
  state = used.state()
  for text in ('age,job\n20,cook\n', 'age,job,id,w\n20,cook,x,y\n'):
    assert made(text, 'b.csv', fitted=state, train=False).arrays['x'].shape == (1, 3)
  with pytest.raises(InputError, match="extra 'new'"):
    made('age,job,new\n20,cook,x\n', 'b.csv', fitted=state, train=False)
  for word in ('use', 'drop', 'categorical'):
    with pytest.raises(InputError, match=r"'agee': .*no such column; did you mean 'age'"):
      made(TABLE, **{word: ('agee',)})


def test_keys_that_the_first_object_lacks_are_read(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"y": "p"}\n{"y": "q", "a": 1, "b": "None"}\n{"y": "p", "a": 3, "b": "x"}\n')
  data = table(str(path), 'y')
  # A lacking category is its own, and is not the text 'None'.
  np.testing.assert_allclose(data.arrays['x'], [[0, 1, 0, 0], [-1, 0, 1, 0], [1, 0, 0, 1]])


def test_a_state_without_dates_is_read():
  state = {'numeric': {'a': [1.0, 2.0]}, 'categories': {'b': ['x']}, 'missing': '?'}
  x = TabularEncoder.restore(state).encode([{'a': '3', 'b': 'x'}], 'here')
  np.testing.assert_allclose(x, [[1, 1]])


def test_weights_of_records(made):
  np.testing.assert_array_equal(made(TABLE, weights='w').arrays['weights'], [1, 2, 3])
  data = made(TABLE, weights='w')
  other = made('id,age,job,day\nu9,20,cook,2024-01-01\n', 'b.csv', weights='w',
               fitted=data.state(), train=False)  # fmt: skip
  np.testing.assert_array_equal(other.arrays['weights'], [1])
  for cell in ('-1', 'x', '', 'inf'):
    with pytest.raises(InputError, match=rf"a\.csv, record 2: weight '{cell}'; expected a number"):
      made(f'a,w,y\n1,1,p\n2,{cell},q\n', weights='w')
  with pytest.raises(InputError, match="weights='ww': .* did you mean 'w'"):
    made(TABLE, weights='ww')


def test_weights_of_classes(made):
  text = column(*'123456').replace('q', 'p', 2)  # five p, one q
  balanced = made(text, class_weights='balanced').arrays
  sklearn = pytest.importorskip('sklearn.utils.class_weight')
  expected = sklearn.compute_sample_weight('balanced', balanced['label'])
  np.testing.assert_allclose(balanced['weights'], expected, rtol=1e-6)
  given = made(text, class_weights={'p': 1.0, 'q': 4.0}).arrays
  np.testing.assert_array_equal(given['weights'], 1 + 3 * given['label'])
  assert (made(text, class_weights='balanced', train=False).arrays['weights'] == 1).all()
  # A record of weight 2 counts as two records.
  loss = jnp.array([1.0, 3.0])
  total, count = weighted(loss, jnp.array([2.0, 1.0]))
  assert float(total / count) == pytest.approx(5 / 3)


BAD = {
  'word': ('balance', "class_weights='balance': expected 'balanced'"),
  'class': ({'p': 1.0, 'r': 2.0}, "'r' is not a class of the data; known: p, q"),
  'missing': ({'p': 1.0}, "every class; 'q' has none"),
  'negative': ({'p': 1.0, 'q': -1.0}, r'class_weights.q=-1.0: expected a finite number'),
}


@pytest.mark.parametrize(('given', 'message'), BAD.values(), ids=BAD)
def test_bad_weights_of_classes(made, given, message):
  with pytest.raises(InputError, match=message):
    made(column(*'1234'), class_weights=given)


def test_a_regression_has_no_classes_to_weigh(made):
  with pytest.raises(InputError, match='expected a table with classes; use weights=COLUMN'):
    made('a,y\n1,2\n2,3\n', kind='number', class_weights='balanced')


def test_decimal_commas_and_names_of_records_are_noted():
  line = category_line('price', ('1,5', '1.000,25', '', '-2,0'), 40)
  assert line == 'price: category of 4; numbers with a decimal comma? write a point'
  assert 'comma' not in category_line('price', ('1,5', 'x'), 40)
  named = category_line('customer id', [str(i) for i in range(40)], 40)
  assert "'--data.drop=customer id' leaves it out" in named
