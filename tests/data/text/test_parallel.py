"""Pairs of texts: rows, packing, files and what is refused."""

import functools
import gzip
import json

import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.data.batches import Batches
from bmx.data.text.numbers import numbers, spelled
from bmx.data.text.parallel import parallel
from bmx.data.text.tokenizer import Bytes
from bmx.data.text.tokenizer_train import learned

TEXTS = ('ein hund', 'zwei', 'drei katzen laufen', 'vier'), ('a dog', 'two', 'three cats', 'four x')


@functools.cache
def bpe():
  return learned([*TEXTS[0], *TEXTS[1]], 'bpe', 300)


def pairs(count=4):
  return [{'source': a, 'target': b} for a, b in list(zip(*TEXTS, strict=True))[:count]]


def made(**options):
  return parallel(bpe(), **{'length': 24, 'given': pairs(), 'packed': False} | options)


def ids(text):
  return [*bpe().encode([text])[0].tolist(), 0]


def test_a_row_is_a_pair():
  data = made(source_length=30)
  rows = data.rows(np.arange(4), np.arange(4))
  assert {k: v.shape[1:] for k, v in rows.items()} == {k: s.shape for k, s in data.spec.items()}
  for n, (source, target) in enumerate(zip(*TEXTS, strict=True)):
    a, b = ids(source), ids(target)
    assert rows['source'][n].tolist() == a + [0] * (30 - len(a))
    assert rows['source_ids'][n].tolist() == [1] * len(a) + [0] * (30 - len(a))
    assert rows['source_positions'][n, : len(a)].tolist() == list(range(len(a)))
    assert rows['targets'][n, : len(b)].tolist() == b
    assert rows['tokens'][n, : len(b)].tolist() == [0, *b[:-1]]
    assert rows['weights'][n].tolist() == [1] * len(b) + [0] * (24 - len(b))
    assert rows['segment_ids'][n].tolist() == [1] * len(b) + [0] * (24 - len(b))
  assert data.metadata['ends'] == (0,) and data.metadata['begin'] == 0


def test_packed_rows_hold_every_pair_once():
  many = [{'source': f'{n} ' * (n % 5 + 1), 'target': f'{n}' * (n % 3 + 1)} for n in range(50)]
  data = parallel(bpe(), 24, given=many, source_length=30)
  assert data.size < 30
  rows, found = data.rows(np.arange(data.size), np.arange(data.size)), []
  for n in range(data.size):
    count = rows['source_ids'][n].max()
    assert count == rows['segment_ids'][n].max()
    for pair in range(1, count + 1):
      own, other = rows['source_ids'][n] == pair, rows['segment_ids'][n] == pair
      found.append((tuple(rows['source'][n, own]), tuple(rows['targets'][n, other])))
      assert rows['source_positions'][n, own].tolist() == list(range(own.sum()))
      assert rows['positions'][n, other].tolist() == list(range(other.sum()))
      assert rows['tokens'][n, other].tolist() == [0, *rows['targets'][n, other][:-1]]
    np.testing.assert_array_equal(rows['weights'][n], rows['segment_ids'][n] > 0)
  assert sorted(found) == sorted((tuple(ids(p['source'])), tuple(ids(p['target']))) for p in many)
  batches = Batches(data, 4, 0, True)
  assert batches.resident() is not None
  np.testing.assert_array_equal(batches.rows(np.arange(3), np.arange(3))['source'],
                                rows['source'][:3])  # fmt: skip


def test_evaluation_is_never_packed_and_texts_are_its_own():
  data = made(packed=True, train=False)
  assert data.size == 4
  prediction = np.full((4, 9), -1)
  prediction[0, : len(ids('a cat')) - 1] = ids('a cat')[:-1]
  found = data.present({'prediction': prediction, 'score': np.zeros(4)})
  assert found[0] == {'row': 1, 'source': 'ein hund', 'prediction': 'a cat', 'score': 0.0,
                      'target': 'a dog'}  # fmt: skip
  with pytest.raises(InputError, match='packed=True: expected one pair a row'):
    made(packed=True).present({'prediction': prediction})


@pytest.fixture
def files(tmp_path):
  for name, lines in zip(('de', 'en'), TEXTS, strict=True):
    (tmp_path / f'x.{name}').write_text('\n'.join(lines) + '\n')
    (tmp_path / f'x.{name}.gz').write_bytes(gzip.compress('\n'.join(lines).encode()))
  (tmp_path / 'x.jsonl').write_text('\n'.join(json.dumps(p) for p in pairs()))
  return tmp_path


def test_lines_records_and_compressed_lines_are_one_data_set(files):
  expected = made()
  options = {'tokenizer': bpe(), 'length': 24, 'packed': False}
  for path, targets in (('x.de', 'x.en'), ('x.de.gz', 'x.en.gz'), ('x.jsonl', '')):
    targets = str(files / targets) if targets else ''
    data = parallel(path=str(files / path), targets=targets, **options)
    assert data.digest() == expected.digest()
  fields = [{'document': p['source'], 'summary': p['target']} for p in pairs()]
  named = parallel(given=fields, source='document', target='summary', **options)
  assert named.digest() == expected.digest()
  train, valid = (
    parallel(path=str(files / 'x.jsonl'), split=s, holdout=0.25, **options)
    for s in ('train', 'valid')
  )
  assert (train.size, valid.size) == (3, 1)


def test_sources_alone_are_predicted(files):
  data = parallel(bpe(), 24, path=str(files / 'x.de'), train=False)
  assert 'targets' not in data.spec and data.size == 4
  rows = data.rows(np.arange(4), np.arange(4))
  assert rows['segment_ids'].sum() == 4 and not rows['weights'].any()
  assert 'target' not in data.present({'prediction': np.full((4, 2), -1)})[0]


def test_long_pairs():
  """One source is longer than the others; the end of a text is kept where it is cut."""
  sizes = [len(ids(s)) for s in TEXTS[0]]
  most = sorted(sizes)[-2]
  skipped = made(source_length=most, long='skip')
  assert skipped.size == 3 and '1 longer ones left out' in skipped.metadata['source']
  cut = made(source_length=most, long='cut')
  longest = int(np.argmax(sizes))
  row = cut.rows(np.array([longest]), np.zeros(1, int))['source'][0]
  assert row.tolist() == [*ids(TEXTS[0][longest])[: most - 1], 0]
  message = f'record {longest + 1}: the source has {sizes[longest]} tokens: expected at most source'
  for options in ({}, {'long': 'skip', 'train': False}):
    with pytest.raises(InputError, match=message):
      made(source_length=most, **options)
  with pytest.raises(InputError, match='all are longer'):
    made(given=pairs()[2:3], length=2, long='skip')


def test_refused_in_one_line(files):
  lines = files / 'short.en'
  lines.write_text('a dog\ntwo\n')
  hole = files / 'hole.en'
  hole.write_text('a dog\n\nthree cats\nfour\n')
  broken = files / 'broken.gz'
  broken.write_bytes(b'\x1f\x8b nothing')
  at = lambda *names: {
    'given': None, 'path': str(files / names[0]), 'targets': str(files / names[1])
  }  # fmt: skip
  cases = [
    (at('x.de', 'short.en'), r'x.de has 4 lines and .*short.en 2: expected as many'),
    (at('x.de', 'hole.en'), r'hole.en, line 2 is empty: expected a text on both sides'),
    (at('x.de', 'broken.gz'), r'broken.gz is damaged, or not compressed by gzip'),
    (at('x.jsonl', 'x.en'), "targets=.*: expected '' beside records"),
    ({'given': None}, "path='': expected a file of sources"),
    ({'given': None, 'path': str(files / 'x.de')}, 'expected targets to learn; set data.targets'),
    ({'given': [{'source': 'a', 'targte': 'b'}]}, "no text under 'target'; did you mean 'targte'"),
    ({'given': [{'source': ' ', 'target': 'b'}]}, "record 1, 'source' is empty"),
    ({'given': [{'source': 'a', 'target': 'b'}, {'source': 'a'}]}, "record 2: no text under 'tar"),
    ({'long': 'drop'}, "long='drop': expected one of error, cut, skip"),
    ({'length': 1}, 'length=1, source_length=1: expected at least 2 tokens'),
    ({'tokenizer': Bytes()}, 'expected a tokenizer with an end of text'),
  ]
  for options, message in cases:
    with pytest.raises(InputError, match=message):
      parallel(**{'tokenizer': bpe(), 'length': 24, 'given': pairs()} | options)


def test_numbers():
  assert spelled(700_019) == 'seven hundred thousand nineteen'
  train, valid = (numbers(bpe(), 90, 20, 100, split=s) for s in ('train', 'valid'))
  known = [{p.source for p in data.texts} for data in (train, valid)]
  assert len(known[0]) == len(known[1]) == 20 and not known[0] & known[1]
  with pytest.raises(InputError, match='at most half as many pairs'):
    numbers(bpe(), 90, count=60, most=100)
