"""Tables against a hand computation, against Python's own reading of them, and the real Census."""

import json
import runpy

import numpy as np
import pytest

from bmx import config as recipes
from bmx.core.errors import InputError
from bmx.data.encoder import TabularEncoder
from bmx.data.records import read_csv, read_json_lines
from bmx.data.tables import table
from tests.conftest import ROOT
from tests.data.batched import batched

HEADER = 'age, job, class\n'
TABLE = HEADER + '20, cook, yes\n?, ?, no\n40, judge, yes\n'


def write(path, content):
  path.write_bytes(content if isinstance(content, bytes) else content.encode())
  return str(path)


@pytest.fixture
def path(tmp_path):
  """Returns a function: content -> the path of a file with it."""
  return lambda content, name='a.csv': write(tmp_path / name, content)


def lines(records):
  return ''.join(json.dumps(r) + '\n' for r in records)


def rows(data):
  return data.rows(np.arange(data.size), np.arange(data.size))


CELLS = {
  'plain': ('a,b\n1,x\n2,y\n', [('1', 'x'), ('2', 'y')]),
  'spaces': ('a , b\n 1 ,  x y \n', [('1', 'x y')]),
  'blank lines': ('\na,b\n\n1,x\n  \n,\n2,y\n\n', [('1', 'x'), ('2', 'y')]),
  'quotes': ('a,b\n"1,5","say ""hi"""\n', [('1,5', 'say "hi"')]),
  'no last newline': ('a,b\n1,x', [('1', 'x')]),
  'windows': ('a,b\r\n1,x\r\n', [('1', 'x')]),
  'empty cell': ('a,b\n1,\n', [('1', '')]),
  'unicode': ('a,b\n1,Zürich €\n', [('1', 'Zürich €')]),
  'line in quotes': ('a,b\n1,"x\ny"\n', [('1', 'x\ny')]),
  'line separator': ('a,b\n1,x\u2028y\n', [('1', 'x\u2028y')]),
  'blanks in quotes': ('a,b\n" 1 ", "x " \n', [(' 1 ', 'x ')]),
  'long field': ('a,b\n1,' + 'x' * 200_000 + '\n', [('1', 'x' * 200_000)]),
  'byte order mark': ('\ufeffa,b\n1,x\n', [('1', 'x')]),
}


@pytest.mark.parametrize(('text', 'cells'), CELLS.values(), ids=CELLS)
def test_csv_cells(path, tmp_path, text, cells):
  path(text)
  assert read_csv(tmp_path / 'a.csv') == [{'a': a, 'b': b} for a, b in cells]


def test_names_from_outside_and_another_delimiter(path, tmp_path):
  path('1;x\n2;y\n')
  records = read_csv(tmp_path / 'a.csv', ('n', 'm'), ';')
  assert records == [{'n': '1', 'm': 'x'}, {'n': '2', 'm': 'y'}]


BAD_CSV = {
  'too few': ('a,b\n1,x\n\n2\n', r'a\.csv, line 4: 1 fields, expected 2'),
  'too many': ('a,b\n1,x,9\n', r'a\.csv, line 2: 3 fields, expected 2'),
  'not UTF-8': (b'a,b\n1,x\n2,caf\xe9\n', r'a\.csv is not UTF-8: byte 0xe9 at offset 13'),
  'empty': ('', r'a\.csv is empty'),
  'only a header': ('a,b\n', r'a\.csv has a header and no records'),
}


@pytest.mark.parametrize(('content', 'message'), BAD_CSV.values(), ids=BAD_CSV)
def test_bad_csv_names_the_place(path, tmp_path, content, message):
  path(content)
  with pytest.raises(InputError, match=message):
    read_csv(tmp_path / 'a.csv')


def test_a_column_named_twice_is_refused(path, tmp_path):
  path('a,b,a\n1,2,3\n')
  with pytest.raises(InputError, match="'a'"):
    read_csv(tmp_path / 'a.csv')


def test_a_file_that_is_not_there(tmp_path):
  for read in (read_csv, read_json_lines):
    with pytest.raises(InputError, match='no file .*nowhere'):
      read(tmp_path / 'nowhere')


def test_json_lines(path, tmp_path):
  records = [{'a': 1, 'b': 'ä\u2028'}, {'a': 2.5}, {'b': None}]
  path('\n' + lines(records), 'a.jsonl')
  assert read_json_lines(tmp_path / 'a.jsonl') == records


BAD_JSON = {
  'no JSON': ('{"a": 1}\n\n{"a": \n', 'line 3: not JSON'),
  'no object': ('{"a": 1}\n[1, 2]\n', r"line 2: a JSON object is expected, not '\[1, 2\]'"),
  'empty': ('\n', 'is empty'),
  'not UTF-8': (b'{"a": "\xff"}\n', 'not UTF-8: byte 0xff at offset 7'),
}


@pytest.mark.parametrize(('content', 'message'), BAD_JSON.values(), ids=BAD_JSON)
def test_a_bad_line_is_named(path, tmp_path, content, message):
  path(content, 'a.jsonl')
  with pytest.raises(InputError, match=message):
    read_json_lines(tmp_path / 'a.jsonl')


def fitted(path):
  """What a training file fits."""
  return table(path, 'class').state()


def test_encoding_by_hand(path):
  """Ages 20 and 40: mean 30, deviation 10, the unknown age is the mean; jobs ?, cook, judge."""
  data = batched(table, 2, path(TABLE), 'class', train=False)
  expected = [[-1, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 1]]
  np.testing.assert_allclose(rows(data)['x'], expected)
  np.testing.assert_array_equal(rows(data)['label'], [1, 0, 1])
  assert (data.metadata['columns'], data.metadata['num_classes']) == (4, 2)
  assert data.metadata['class_names'] == ('no', 'yes')
  assert rows(data)['x'].dtype == np.float32


def test_the_training_file_decides_the_encoding(path):
  fit = path(TABLE)
  other = path(HEADER + '50, pilot, no\n?, judge, no\n', 'b.csv')
  data = batched(table, 2, other, 'class', fitted=fitted(fit), train=False)
  np.testing.assert_allclose(rows(data)['x'], [[2, 0, 0, 0], [0, 0, 0, 1]])
  np.testing.assert_array_equal(rows(data)['label'], [0, 0])
  assert data.metadata['num_classes'] == 2


def test_encoding_of_random_tables():
  rng = np.random.default_rng(0)
  values, letters = rng.normal(5, 3, 50), rng.choice([*'abc'], 50)
  records = [{'n': str(v), 'k': str(k)} for v, k in zip(values, letters, strict=True)]
  got = TabularEncoder.fit(records, (), '?').encode(records, 'here')
  np.testing.assert_allclose(got[:, 0].mean(), 0, atol=1e-6)
  np.testing.assert_allclose(got[:, 0].std(), 1, rtol=1e-5)
  np.testing.assert_array_equal(np.array([*'abc'])[got[:, 1:].argmax(1)], letters)
  np.testing.assert_array_equal(got[:, 1:].sum(1), 1)


def test_a_constant_column_is_zero_and_not_nan():
  records = [{'n': '7', 'm': '1'}, {'n': '7', 'm': '2'}]
  got = TabularEncoder.fit(records, (), '?').encode(records, 'here')
  np.testing.assert_allclose(got, [[0, -1], [0, 1]])


@pytest.mark.parametrize('value', ['nan', 'inf', '1e999'])
def test_a_number_that_is_not_finite_is_named(path, value):
  with pytest.raises(InputError, match=rf"a\.csv, record 2: age is '{value}'"):
    batched(table, 2, path(HEADER + f'20,cook,yes\n{value},cook,no\n'), 'class')


def test_a_number_that_is_not_finite_in_the_training_file_is_named(path):
  """Not the file that is encoded with it."""
  fit = path(HEADER + '20,cook,yes\nnan,cook,no\n', 'fit.csv')
  with pytest.raises(InputError, match=r'fit\.csv, record 2: age'):
    batched(table, 2, path(TABLE), 'class', fitted=fitted(fit))


def test_words_in_a_column_of_numbers_are_named(path):
  other = path(HEADER + 'forty, cook, yes\n', 'b.csv')
  message = r"b\.csv, record 1: age is 'forty', expected a finite number"
  with pytest.raises(InputError, match=message):
    batched(table, 2, other, 'class', fitted=fitted(path(TABLE)))


def test_regression(path):
  data = batched(table, 2, path('a,y\n1,0.5\n2,-3e2\n'), 'y', kind='number', train=False)
  np.testing.assert_allclose(rows(data)['y'], [[0.5], [-300]])
  assert data.metadata['num_targets'] == 1
  assert data.metadata['columns'] == 1
  with pytest.raises(InputError, match=r"a\.csv, record 2: y is 'much'; expected a finite number"):
    batched(table, 2, path('a,y\n1,0.5\n2,much\n'), 'y', kind='number')
  with pytest.raises(InputError, match="record 2: y is 'nan'"):
    batched(table, 2, path('a,y\n1,0.5\n2,nan\n'), 'y', kind='number')


def test_a_class_that_the_training_file_lacks(path):
  other = path(HEADER + '20,cook,no\n20,cook,maybe\n', 'b.csv')
  with pytest.raises(InputError, match=r"b\.csv, record 2: class 'maybe'; expected one of no, yes"):
    batched(table, 2, other, 'class', fitted=fitted(path(TABLE)))


def test_a_file_to_predict_needs_no_target(path):
  data = batched(
    table, 1, path('age,job\n30,cook\n', 'b.csv'), 'class', fitted=fitted(path(TABLE)), train=False
  )
  assert set(rows(data)) == {'x', 'weights'}
  np.testing.assert_allclose(rows(data)['x'], [[0, 0, 1, 0]])


def test_a_target_that_is_no_column(path):
  with pytest.raises(InputError, match=r"target='clas': .*a\.csv; did you mean 'class'"):
    batched(table, 2, path(TABLE), 'clas')
  with pytest.raises(InputError, match='no columns but the target'):
    batched(table, 2, path('class\nyes\nno\n'), 'class')


def test_json_lines_equal_csv(path):
  records = [{'age': 20, 'job': 'cook', 'class': 'yes'}, {'age': None, 'job': '?', 'class': 'no'}]
  records += [{'age': 40.0, 'job': 'judge', 'class': 'yes'}]
  a = rows(batched(table, 2, path(lines(records), 'a.jsonl'), 'class', train=False))
  b = rows(batched(table, 2, path(TABLE), 'class', train=False))
  for name, value in a.items():
    np.testing.assert_array_equal(value, b[name])


@pytest.mark.parametrize('second', [{'a': 2}, {'a': 2, 'y': None}])
def test_a_record_without_a_class_is_named(path, second):
  records = [{'a': 1, 'y': 'p'}, second, {'a': 3, 'y': 'q'}]
  with pytest.raises(InputError, match=r'a\.jsonl, record 2'):
    batched(table, 2, path(lines(records), 'a.jsonl'), 'y')


def test_held_out_records(path):
  content = 'a,y\n' + ''.join(f'{i},{"pq"[i % 2]}\n' for i in range(40))
  part = {
    s: batched(table, 2, path(content), 'y', split=s, holdout=0.25) for s in ('train', 'valid')
  }
  assert (part['train'].size, part['valid'].size) == (30, 10)
  np.testing.assert_allclose(rows(part['train'])['x'].mean(), 0, atol=1e-6)
  both = np.concatenate([rows(p)['x'] for p in part.values()])
  spaced = np.diff(np.sort(both[:, 0]))
  np.testing.assert_allclose(spaced, spaced[0], rtol=1e-4)


@pytest.mark.parametrize('holdout', [1.0, -0.5])
def test_a_holdout_that_leaves_nothing(path, holdout):
  with pytest.raises(InputError):
    batched(table, 2, path(TABLE), 'class', split='train', holdout=holdout)


@pytest.fixture(scope='module')
def census(data_dir):
  """The recipe's training and test data, and UCI's lines as Python splits them."""
  folder = data_dir / 'tabular_uci'
  config, _ = recipes.load(str(ROOT / 'configs/adult_mlp.py'), [f'folder={folder}'])
  part = recipes.plain(config.data)
  train = recipes.build(part, 'data')
  other = {**part, 'path': f'{folder}/adult.test'}
  test = recipes.build(other, 'test', train=False, fitted=train.state())
  split = lambda name: [
    line.strip().split(', ') for line in (folder / name).read_text().splitlines() if line.strip()
  ]
  return train, test, split('adult.data'), split('adult.test')


def test_census_has_the_published_counts(census):
  train, test, *_ = census
  assert (train.size, test.size) == (32_561, 16_281)
  assert train.metadata['num_classes'] == test.metadata['num_classes'] == 2
  assert train.metadata['class_names'] == ('<=50K', '>50K')
  assert train.arrays['label'].sum() == 7841
  assert test.arrays['label'].sum() == 3846
  assert train.metadata['columns'] == test.metadata['columns'] == 108


def test_census_columns_are_the_files(census):
  """Six numeric columns first, standardised by the training file, then one-hot categories."""
  train, test, *files = census
  numeric = (0, 2, 4, 10, 11, 12)
  known = np.array([[float(line[i]) for i in numeric] for line in files[0]])
  for data, lines_ in zip((train, test), files, strict=True):
    x = data.arrays['x']
    values = np.array([[float(line[i]) for i in numeric] for line in lines_])
    expected = (values - known.mean(0)) / known.std(0)
    np.testing.assert_allclose(x[:, :6], expected, rtol=1e-4, atol=1e-5)
    categories = [i for i in range(14) if i not in numeric]
    np.testing.assert_array_equal(x[:, 6:].sum(1), len(categories))
    at = 6
    for i in categories:
      names = sorted({line[i] for line in files[0]})
      chosen = [names[j] for j in x[:, at : at + len(names)].argmax(1)]
      assert chosen == [line[i] for line in lines_]
      at += len(names)


def test_the_recipes_columns_are_the_published_ones(data_dir):
  """adult.names lists the attributes, 'education-num: continuous.' a line."""
  told = (data_dir / 'tabular_uci' / 'adult.names').read_text().splitlines()
  names = [line.partition(':')[0] for line in told if ': ' in line and not line.startswith('|')]
  columns = runpy.run_path(str(ROOT / 'configs/adult_mlp.py'))['COLUMNS']
  assert [n.replace('-', '_') for n in names if n] == list(columns[:-1])
