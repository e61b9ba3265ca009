"""`bmx anonymize FILE`: texts, JSON lines, tables; what it prints; bad input."""

import csv
import json

import pytest

from bmx import cli, modes
from bmx import config as recipes
from bmx.modes.anonymize import capture_hook

TABLE = """name,age,zip,birth,note,ill
Ann,37,10115,1980-03-17,mail ann@x.org,flu
Bob,31,10117,1981-03-17,,cold
Cid,52,20095,1970-01-01,ip 10.0.0.1,flu
"""
GENERAL = ('--ranges=age:10', '--prefixes=zip:3', '--dates=birth:year', '--drop=name')


@pytest.fixture
def table(tmp_path):
  (tmp_path / 't.csv').write_text(TABLE)
  return tmp_path / 't.csv'


@pytest.fixture
def anonymize(command):
  return lambda *arguments: command(*cli.translate(['anonymize', *map(str, arguments)]))


def rows(path):
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


def test_a_text(anonymize, tmp_path):
  (tmp_path / 'a.txt').write_text('Mail bob@x.org or eve@x.org,\ncall +49 30 901820. 😀\n')
  done = anonymize(tmp_path / 'a.txt')
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'a.anonymized.txt').read_text() == (
    'Mail <EMAIL> or <EMAIL>,\ncall <PHONE>. 😀\n'
  )
  assert [line.split() for line in done.stdout.splitlines()[:2]] == [['EMAIL', '2'], ['PHONE', '1']]
  assert 'not looked for without --tagger=RUN: PERSON, LOCATION' in done.stdout
  again = anonymize(tmp_path / 'a.txt')
  assert again.returncode == 2 and 'expected a new file' in again.stderr
  other = anonymize(tmp_path / 'a.txt', '--types=PHONE', '--form=mask',
                    f'--output={tmp_path / "b.txt"}')  # fmt: skip
  assert other.returncode == 0 and 'not looked for' not in other.stdout
  assert (tmp_path / 'b.txt').read_text().splitlines()[1] == 'call *** ** ******. 😀'


def test_json_lines_keep_their_shape(anonymize, tmp_path):
  records = [{'id': 3, 'said': ['a@x.org', {'t': 'hi 10.0.0.1'}], 'other': 'b@x.org', 'n': None},
             {'id': 4}]  # fmt: skip
  (tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, records)))
  done = anonymize(tmp_path / 'a.jsonl', '--columns=said', f'--output={tmp_path / "b.jsonl"}')
  assert done.returncode == 0, done.stderr
  found = [json.loads(line) for line in (tmp_path / 'b.jsonl').read_text().splitlines()]
  assert found == [{**records[0], 'said': ['<EMAIL>', {'t': 'hi <IP>'}]}, records[1]]


def test_a_table_is_generalized_grouped_and_counted(anonymize, table, tmp_path):
  (tmp_path / 'key').write_text('0123456789abcdef')
  words = (*GENERAL, '--quasi=age,zip', '--k=2', '--sensitive=ill', '--l=2')
  done = anonymize(table, *words)
  assert done.returncode == 0, done.stderr
  lines = dict(line.rsplit(maxsplit=1) for line in done.stdout.splitlines()[:-2])
  lines = {k.strip(): int(v) for k, v in lines.items()}
  assert lines == {
    'EMAIL': 1, 'IP': 1, 'age: generalized': 3, 'birth: generalized': 3, 'zip: generalized': 3,
    'name: left out': 3, 'rows': 3, 'rows left out': 1, 'groups': 1, 'smallest group (k)': 2,
    'smallest group before': 1, 'least diverse group (l)': 2, 'least diverse before': 1,
  }  # fmt: skip
  assert rows(tmp_path / 't.anonymized.csv') == [
    {'age': '30-39', 'zip': '101**', 'birth': '1980', 'note': 'mail <EMAIL>', 'ill': 'flu'},
    {'age': '30-39', 'zip': '101**', 'birth': '1981', 'note': '', 'ill': 'cold'},
  ]
  done = anonymize(table, '--pseudonyms=name', f'--key={tmp_path / "key"}',
                   f'--output={tmp_path / "p.csv"}')  # fmt: skip
  assert done.returncode == 0, done.stderr
  found = [row['name'] for row in rows(tmp_path / 'p.csv')]
  assert len(set(found)) == 3 and all(f.startswith('<name_') for f in found)


@pytest.mark.parametrize('arguments, message', [
  (('--drop=nmae',), "anonymize.drop: no column 'nmae'; did you mean 'name'"),
  (('--columns=x',), "anonymize.columns: no column 'x'; known:"),
  (('--ranges=age',), 'anonymize.ranges=age: expected COLUMN:VALUE such as age:10'),
  (('--ranges=note:10',), "row 1, column 'note': expected a number"),
  (('--ranges=age:10', '--drop=age'), "column 'age' is changed by two words"),
  (('--quasi=age',), 'expected both or neither'),
  (('--l=2',), 'expected anonymize.quasi and anonymize.k too'),
  (('--quasi=age', '--k=2'), 'no row is left'),
  (('--quasi=age', '--k=2', '--drop=age'), 'anonymize.drop=age: expected a column that quasi'),
  (('--types=EMIAL',), "unknown type 'EMIAL'; did you mean 'EMAIL'"),
  (('--types=PERSON',), 'expected a tagger'),
  (('--form=pseudonym',), 'expected the key of pseudonyms'),
  (('--pseudonyms=name',), 'expected the key of pseudonyms'),
  (('--tagger=nowhere',), "tagger='nowhere': expected the directory of a run of pii_tagger"),
  (('--output=nowhere/t.csv',), 'expected a folder that exists'),
  (('--frm=mask',), 'frm'),
])  # fmt: skip
def test_bad_words(arguments, message, anonymize, table, tmp_path):
  done = anonymize(table, *arguments)
  assert done.returncode == 2 and message in done.stderr.replace('\n', ' '), done.stderr
  assert 'Traceback' not in done.stderr
  assert sorted(p.name for p in tmp_path.iterdir()) == ['t.csv']


@pytest.mark.parametrize('name, content, message', [
  ('a.txt', b'caf\xe9', 'is not UTF-8: byte 0xe9 at offset 3'),
  ('a.jsonl', b'{"a": 1}\n{', 'line 2: not JSON'),
  ('a.csv', b'a,b\n1\n', '1 fields, expected 2'),
  ('a.csv', b'', 'is empty'),
])  # fmt: skip
def test_bad_files(name, content, message, anonymize, tmp_path):
  (tmp_path / name).write_bytes(content)
  done = anonymize(tmp_path / name)
  assert done.returncode == 2 and message in done.stderr
  assert anonymize(tmp_path / 'none.txt').returncode == 2
  assert anonymize().returncode == 2
  text = tmp_path / 'b.txt'
  text.write_text('x')
  done = anonymize(text, '--drop=name')
  assert done.returncode == 2 and 'anonymize.drop: expected a table' in done.stderr


def test_the_capture_of_a_server_reads_the_same_words():
  config = recipes.plain(recipes.base())
  assert capture_hook(config) is None
  config['capture']['anonymize'], config['anonymize']['types'] = True, ('EMAIL',)
  hook = capture_hook(config)
  assert hook is not None and 'anonymize' in modes.MODES
  assert hook({'asked': {'prompt': 'bob@x.org 10.0.0.1'}}) == {
    'asked': {'prompt': '<EMAIL> 10.0.0.1'}
  }
