"""Texts from files: every format, every unit, and refusals by name."""

import json
import os
import pathlib
import sysconfig

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmx.core.errors import InputError
from bmx.data import tfds as source
from bmx.data.text.clean import Length, Unicode
from bmx.data.text.deduplicate import Deduplicate
from bmx.data.text.documents import documents, library_files, part_of, records, squad_paragraphs

RECORDS = [{'text': 'one', 'body': 'uno, due'}, {'text': '', 'body': 'tre'}]
SQUAD = {
  'data': [
    {'title': 'A', 'paragraphs': [{'context': 'p', 'qas': []}, {'context': 'q', 'qas': [1]}]},
    {'paragraphs': [{'context': 'r', 'qas': []}]},
  ]
}


def write(folder, name, content):
  path = folder / name
  path.write_bytes(content.encode() if isinstance(content, str) else content)
  return str(path)


UNITS = {
  'file': ['a\nb\n \n\n  c\nd\n'],
  'paragraph': ['a\nb', '  c\nd\n'],
  'line': ['a', 'b', '  c', 'd'],
}


@pytest.mark.parametrize(('unit', 'found'), UNITS.items())
def test_units_of_plain_text(tmp_path, unit, found):
  path = write(tmp_path, 'a.txt', UNITS['file'][0])
  assert documents((path,), unit=unit) == found


@pytest.mark.parametrize('end', ['\n', '\r\n'])
@pytest.mark.parametrize('between', ['{}{}', '{}{}{}', '{} \t{}', '{} {}{}'])
def test_paragraphs_stand_between_empty_lines(tmp_path, end, between):
  path = write(tmp_path, 'a.txt', f'one{end}two{between.replace("{}", end)}three')
  assert documents((path,), unit='paragraph') == [f'one{end}two', 'three']


def test_formats_and_order(tmp_path):
  paths = (
    write(tmp_path, 'a.jsonl', '\n'.join(map(json.dumps, RECORDS))),
    write(tmp_path, 'b.csv', 'text,body\neins,"x\ny"\nzwei,z\n'),
    write(tmp_path, 'c.json', json.dumps(SQUAD)),
    write(tmp_path, 'd.md', '\ufeffGröße'),
  )
  assert documents(paths) == ['one', '', 'eins', 'zwei', 'p', 'q', 'r', 'Größe']
  assert documents(paths[:2], field='body') == ['uno, due', 'tre', 'x\ny', 'z']
  assert documents(paths[::-1])[:4] == ['Größe', 'p', 'q', 'r']


def test_records_say_where_they_stand(tmp_path):
  lines = write(tmp_path, 'a.jsonl', '{"a": 1}\n\n{"a": null}\n')
  table = write(tmp_path, 'a.csv', 'a,b\n1,2\n3,4\n')
  assert records(lines) == [(f'{lines}, line 1', {'a': 1}), (f'{lines}, line 3', {'a': None})]
  assert records(table)[1] == (f'{table}, record 2', {'a': '3', 'b': '4'})


def test_paragraphs_of_squad_know_their_article(tmp_path):
  path = write(tmp_path, 'a.json', json.dumps(SQUAD))
  found = [title + p['context'] for title, p in squad_paragraphs(path)]
  assert found == ['Ap', 'Aq', 'r']


REFUSED = {
  'missing': ('a.txt', None, {}, r'no file .*a\.txt'),
  'missing lines': ('a.jsonl', None, {}, r'no file .*a\.jsonl'),
  'missing JSON': ('a.json', None, {}, r'no file .*a\.json'),
  'empty': ('a.txt', '', {}, r'a\.txt is empty'),
  'blank': ('a.txt', ' \n\n', {'unit': 'line'}, r'a\.txt is empty'),
  'empty lines': ('a.jsonl', '\n', {}, r'a\.jsonl is empty'),
  'empty table': ('a.csv', 'text\n', {}, r'a\.csv has a header and no records'),
  'empty JSON': ('a.json', '{"data": []}', {}, r'a\.json is empty'),
  'Latin-1': ('a.txt', b'caf\xe9', {}, r'a\.txt is not UTF-8: byte 0xe9 at offset 3'),
  'Latin-1 lines': ('a.jsonl', b'{"\xe9', {}, r'a\.jsonl is not UTF-8: byte 0xe9 at offset 2'),
  'Latin-1 JSON': ('a.json', b'{"\xe9', {}, r'a\.json is not UTF-8: byte 0xe9 at offset 2'),
  'field': ('a.jsonl', '{"texts": "a"}', {}, r"line 1: no text under 'text'; did you mean 'texts'"),
  'column': ('a.csv', 'body\nb\n', {}, r"record 1: no text under 'text'; known: body"),
  'a number': ('a.jsonl', '{"text": 1}', {}, "no text under 'text'; it is 1"),
  'unit': ('a.txt', 'a', {'unit': 'lines'}, "unit 'lines' is not one of file, paragraph, line"),
  'surrogate': (
    'a.jsonl', '{"text": "a"}\n{"text": "bc\\udc80"}', {},
    r"document 2 of .*a\.jsonl holds '\\udc80', half of a surrogate pair, at character 2",
  ),
  **{
    f'SQuAD {n}': ('a.json', text, {}, r"a\.json is not in SQuAD's format")
    for n, text in enumerate((
      'hello', '[]', '{}', '{"data": [{}]}', '{"data": [[]]}', '[' * 99_999,
      '{"data": [{"paragraphs": [{"context": "a"}]}]}',
      '{"data": [{"paragraphs": [{"context": 1, "qas": []}]}]}',
    ))
  },
}  # fmt: skip


@pytest.mark.parametrize(('name', 'content', 'options', 'message'), REFUSED.values(), ids=REFUSED)
def test_what_is_no_text_is_refused_by_name(tmp_path, name, content, options, message):
  path = str(tmp_path / name)
  if content is not None:
    write(tmp_path, name, content)
  with pytest.raises(InputError, match=message):
    documents((path,), **options)


def test_steps_clean_and_are_told_once(tmp_path, caplog):
  caplog.set_level('INFO', 'bmx')
  path = write(tmp_path, 'a.txt', 'e\u0301\nxx\nxx')
  steps = lambda: (Unicode(), Length(1, 5), Deduplicate())
  for _ in range(3):
    assert documents((path,), unit='line', steps=steps()) == ['é', 'xx']
  told = [
    'Unicode: 0 of 3 documents removed, 1 changed',
    'Length: 0 of 3 documents removed, 0 changed',
    'Deduplicate: 1 of 3 documents removed, 0 changed',
  ]
  assert caplog.messages == ['\n'.join(told)]
  assert documents((path,), unit='line') == ['e\u0301', 'xx', 'xx']


def test_a_step_may_be_anything_that_can_be_called(tmp_path):
  class Reverse(list):  # has no hash
    def __call__(self, given):
      return [text[::-1] for text in given]

  path = write(tmp_path, 'a.txt', 'abc\nde')
  assert documents((path,), unit='line', steps=(Reverse(),)) == ['cba', 'ed']


def test_half_a_surrogate_pair_can_be_cleaned_away(tmp_path):
  path = write(tmp_path, 'a.jsonl', '{"text": "bc\\udc80"}')
  assert documents((path,), steps=(Unicode(),)) == ['bc']


def test_a_file_that_was_changed_is_read_again(tmp_path):
  path = write(tmp_path, 'a.txt', 'old')
  assert documents((path,)) == ['old']
  write(tmp_path, 'a.txt', 'new')
  os.utime(path, ns=(1, 1))
  assert documents((path,)) == ['new']


def test_what_is_given_may_be_changed(tmp_path):
  path = write(tmp_path, 'a.txt', 'a')
  documents((path,)).append('b')
  assert documents((path,)) == ['a']


def test_without_paths_it_is_the_standard_library():
  files = library_files()
  folder = pathlib.Path(sysconfig.get_path('stdlib'))
  assert files == sorted(p for p in folder.iterdir() if p.suffix == '.py')
  assert documents() == [p.read_bytes().decode() for p in files]


class Source(list):
  def __getitems__(self, places):
    return [self[i] for i in places]


def test_tfds_gives_texts_and_numbers(monkeypatch):
  asked = []

  def fake(*arguments):
    asked.append(arguments)
    image = np.zeros((2, 2), np.uint8)
    record = {'text': 'Größe'.encode(), 'label': np.int64(3), 'image': image, 'raw': b'\xff'}
    return Source([record]), None

  monkeypatch.setattr(source, 'tfds_source', fake)
  ((where, record),) = records('tfds:glue/sst2/train[:9%]', '/data')
  assert asked == [('glue/sst2', 'train[:9%]', '/data')]
  assert where == 'tfds:glue/sst2/train[:9%], example 0'
  assert (record['text'], record['label'], record['raw']) == ('Größe', 3, b'\xff')
  assert type(record['label']) is int
  assert record['image'].shape == (2, 2)


@pytest.mark.parametrize(
  ('path', 'message'),
  [('tfds:mnist', 'write tfds:NAME/SPLIT'), ('tfds:a/train', 'tfds:a/train is empty')],
)
def test_tfds_without_split_or_examples(monkeypatch, path, message):
  monkeypatch.setattr(source, 'tfds_source', lambda *_: (Source(), None))
  with pytest.raises(InputError, match=message):
    records(path)


def test_records_of_another_format(tmp_path):
  with pytest.raises(
    InputError, match=r'records are read from \.jsonl, \.csv, \.tsv, \.parquet, tfds'
  ):
    records(write(tmp_path, 'a.txt', 'a'))


def test_a_folder_of_classes(tmp_path):
  for label, number, text in (('good', 1, 'fine'), ('bad', 2, 'dull'), ('bad', 10, 'poor')):
    (tmp_path / label).mkdir(exist_ok=True)
    (tmp_path / label / f'{number}.txt').write_text(text)
  found = records(str(tmp_path))
  assert [r for _, r in found] == [
    {'text': 'poor', 'label': 'bad'}, {'text': 'dull', 'label': 'bad'},
    {'text': 'fine', 'label': 'good'},
  ]  # fmt: skip
  assert [where for where, _ in found] == sorted(map(str, tmp_path.rglob('*.txt')))
  assert documents((str(tmp_path),)) == ['poor', 'dull', 'fine']
  (tmp_path / 'loose.txt').write_text('a')
  with pytest.raises(InputError, match='expected a folder for each class'):
    records(str(tmp_path))
  (tmp_path / 'empty').mkdir()
  with pytest.raises(InputError, match=r'expected \.txt files'):
    records(str(tmp_path / 'empty'))


def test_records_of_a_table_in_every_format(tmp_path):
  frame = pyarrow.table({'text': ['a', 'b'], 'label': ['x', 'y']})
  pyarrow.parquet.write_table(frame, tmp_path / 'a.parquet')
  (tmp_path / 'a.tsv').write_text('text\tlabel\na\tx\nb\ty\n')
  expected = [{'text': 'a', 'label': 'x'}, {'text': 'b', 'label': 'y'}]
  for kind in ('parquet', 'tsv'):
    assert [r for _, r in records(str(tmp_path / f'a.{kind}'))] == expected
    assert documents((str(tmp_path / f'a.{kind}'),)) == ['a', 'b']


def test_prepared_tfds(data_dir):
  path, folder = 'tfds:sst2_rebuilt/validation', str(data_dir / 'tfds')
  found = [r for _, r in records(path, folder)]
  assert len(found) == 872
  assert all(isinstance(r['sentence'], str) for r in found)
  assert {r['label'] for r in found} == {0, 1}
  assert documents((path,), 'sentence', data_dir=folder) == [r['sentence'] for r in found]
  with pytest.raises(InputError, match="example 0: no text under 'sentense'; did you mean 'sente"):
    documents((path,), 'sentense', data_dir=folder)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(size=st.integers(2, 10_000))
def test_parts_are_nine_tenths_and_the_rest(size):
  items = range(size)
  train, valid = part_of(items, 'train', 'it'), part_of(items, 'valid', 'it')
  assert [*train, *valid] == [*part_of(items, 'all', 'it')] == [*items]
  assert len(train) == 9 * size // 10


@pytest.mark.parametrize(
  ('size', 'split', 'message'),
  [
    (5, 'test', "unknown split 'test'; known: train, valid, all"),
    (0, 'all', 'it is empty'),
    (1, 'train', "it: 1 are too few for a split 'train'"),
  ],
)
def test_parts_that_cannot_be(size, split, message):
  with pytest.raises(InputError, match=message):
    part_of(range(size), split, 'it')


def test_only_line_ends_end_a_line(tmp_path):
  """Neither U+2028 nor NEL, vertical tab, form feed or a file separator does."""
  inside = 'a\u2028b\x85c\vd\fe\x1cf'
  path = tmp_path / 'a.txt'
  path.write_bytes(f'{inside}\nsecond\r\nthird\rfourth'.encode())
  assert documents((str(path),), unit='line') == [inside, 'second', 'third', 'fourth']


def test_the_case_of_a_suffix_does_not_matter(tmp_path):
  (tmp_path / 'X.CSV').write_text('text,n\none,1\ntwo,2\n')
  (tmp_path / 'Y.JSONL').write_text('{"text": "three"}\n')
  assert documents(tuple(str(tmp_path / n) for n in ('X.CSV', 'Y.JSONL'))) == [
    'one',
    'two',
    'three',
  ]
