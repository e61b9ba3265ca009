"""Files of predictions: one content in three formats, and nothing that is overwritten."""

import csv
import json

import pyarrow.parquet
import pytest

from bmx.core.errors import InputError
from bmx.runtime.rows import check_output, unique, write_rows

ROWS = [
  {'row': 1, 'text': 'a,"b"\nc', 'prediction': 'no', 'probability': {'no': 0.75, 'yes': 0.25}},
  {'row': 2, 'text': None, 'prediction': 'yes', 'probability': {'no': 0.5, 'yes': 0.5}},
]


def test_three_formats_hold_the_same(tmp_path):
  paths = {kind: tmp_path / f'a.{kind}' for kind in ('jsonl', 'csv', 'parquet')}
  for path in paths.values():
    assert write_rows(path, iter(ROWS)) == 2
  assert sorted(p.name for p in tmp_path.iterdir()) == ['a.csv', 'a.jsonl', 'a.parquet']
  assert [json.loads(line) for line in paths['jsonl'].read_text().splitlines()] == ROWS
  assert pyarrow.parquet.read_table(paths['parquet']).to_pylist() == ROWS
  with paths['csv'].open(newline='') as file:
    first, second = csv.DictReader(file)
  assert first == {'row': '1', 'text': 'a,"b"\nc', 'prediction': 'no', 'probability.no': '0.75',
                   'probability.yes': '0.25'}  # fmt: skip
  assert second['text'] == ''


def test_a_failure_leaves_no_file(tmp_path):
  def broken():
    yield ROWS[0]
    raise OSError('no more')

  for kind in ('jsonl', 'csv', 'parquet'):
    with pytest.raises(OSError, match='no more'):
      write_rows(tmp_path / f'a.{kind}', broken())
  assert not list(tmp_path.iterdir())


def test_outputs_that_are_refused(tmp_path):
  (tmp_path / 'there.csv').write_text('')
  for name, message in (
    ('a.txt', 'ends with .jsonl, .csv, .parquet'),
    ('there.csv', 'expected a new file'),
    ('none/a.csv', 'expected a folder that exists'),
  ):
    with pytest.raises(InputError, match=message):
      check_output(tmp_path / name)
  check_output(tmp_path / 'new.csv')


def test_names_do_not_repeat(tmp_path):
  for name in ('a.jsonl', 'a-2.jsonl', 'a-3.jsonl'):
    path = unique(tmp_path / 'a.jsonl')
    assert path.name == name
    path.write_text('')
