"""Text in windows: no token lost, none read twice, none shifted by the wrong amount."""

import hashlib
import json
import sys
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmx.core.errors import InputError
from bmx.data.text import windows as module
from bmx.data.text.documents import library_files
from bmx.data.text.windows import TokenData, text, tokens
from tests.data.batched import batched
from tests.data.letters import Letters

B = 4


def data(size=103, length=10, train=True, seed=0, dtype=np.int32):
  """Tokens that are their own places, so that a window says where it was cut."""
  return batched(TokenData, B, np.arange(size, dtype=dtype), 10**6, length, seed, train)


def windows(source, epoch):
  """The rows of a whole epoch, in the order of the text."""
  n, first = source.size, epoch * source.size
  steps = range(first // B, (first + n) // B + 1)
  order = np.concatenate([source.indices(s)[0] for s in steps])
  chosen = order[first - steps[0] * B :][:n]
  rows = source.rows(chosen, first + np.arange(n))
  by_place = np.argsort(rows['tokens'][:, 0])
  return {k: v[by_place] for k, v in rows.items()}


def file(path, ids, dtype: Any = np.uint16):
  if path.suffix == '.npy':
    np.save(path, np.asarray(ids, dtype))
  else:
    np.asarray(ids, dtype).tofile(path)
  return str(path)


@pytest.mark.parametrize('train', [True, False])
def test_targets_are_the_tokens_that_follow(train):
  source = data(train=train)
  for step in range(6):
    rows = source.rows(source.indices(step)[0], step * B + np.arange(B))
    real = rows['weights'] == 1
    np.testing.assert_array_equal(rows['targets'][real], rows['tokens'][real] + 1)
    inner = real[:, :-1]
    np.testing.assert_array_equal(rows['tokens'][:, 1:][inner], rows['targets'][:, :-1][inner])
    assert np.isin(rows['weights'], (0, 1)).all()
    for name, spec in source.abstract.items():
      assert (rows[name].shape, rows[name].dtype) == (spec.shape, spec.dtype)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(size=st.integers(11, 400), length=st.integers(1, 10))
def test_evaluation_tiles_the_text_once(size, length):
  source = data(size, length, train=False)
  rows = windows(source, 0)
  real = rows['weights'] == 1
  assert rows['weights'].sum() == size - 1
  np.testing.assert_array_equal(rows['tokens'][real], np.arange(size - 1))
  np.testing.assert_array_equal(rows['targets'][real], np.arange(1, size))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(size=st.integers(11, 400), length=st.integers(1, 10), epoch=st.integers(0, 5))
def test_training_windows_are_next_to_each_other_and_inside(size, length, epoch):
  source = data(size, length)
  rows = windows(source, epoch)
  starts = rows['tokens'][:, 0]
  assert source.size == (size - 1) // length
  assert 0 <= starts[0] < length
  np.testing.assert_array_equal(np.diff(starts), length)
  real = rows['weights'] == 1
  seen = rows['targets'][real]
  np.testing.assert_array_equal(seen, np.arange(starts[0] + 1, starts[0] + 1 + len(seen)))
  assert seen[-1] <= size - 1
  assert len(seen) >= source.size * length - starts[0]


def test_each_epoch_begins_elsewhere():
  source = data(4001, 100)
  shifts = [int(windows(source, e)['tokens'][0, 0]) for e in range(12)]
  assert len(set(shifts)) > 8
  assert shifts == [int(windows(data(4001, 100), e)['tokens'][0, 0]) for e in range(12)]
  other = data(4001, 100, seed=1)
  assert shifts != [int(windows(other, e)['tokens'][0, 0]) for e in range(12)]


def test_windows_of_an_epoch_are_shuffled():
  source = data(4001, 10)
  starts = np.concatenate([source.indices(s)[0] for s in range(source.size // B)])
  assert len(set(starts)) == len(starts)
  assert abs(np.corrcoef(starts, np.arange(len(starts)))[0, 1]) < 0.3


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int32])
@pytest.mark.parametrize('train', [True, False])
def test_the_device_gathers_what_the_host_does(dtype, train):
  source = data(101, train=train, dtype=dtype)
  order = source.indices(2)[0]
  host = source.rows(order, np.arange(B))
  on_device = jax.jit(source.gather)(source.resident(), order.astype(np.int32))
  for name, value in host.items():
    np.testing.assert_array_equal(value, on_device[name])
    assert value.dtype == on_device[name].dtype


def test_a_large_text_stays_on_the_host(monkeypatch):
  assert data().resident() is not None
  monkeypatch.setattr(module, 'RESIDENT_BYTES', 10)
  assert data().resident() is None


def test_too_short_a_text():
  with pytest.raises(InputError, match='length=10: expected at most 9, the targets of 10 tokens'):
    data(10, 10)
  assert data(11, 10).size == data(11, 10, train=False).size == 1


def test_windows_of_no_length():
  with pytest.raises(InputError, match='length'):
    data(10, 0)


def test_splits_are_nine_tenths_and_the_rest(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes(bytes(i % 127 for i in range(1000)))
  parts = {s: batched(text, 2, 8, str(path), split=s).tokens for s in ('train', 'valid', 'all')}
  assert [len(parts[s]) for s in ('train', 'valid', 'all')] == [900, 100, 1000]
  joined = np.concatenate([parts['train'], parts['valid']])
  assert joined.tobytes() == parts['all'].tobytes() == path.read_bytes()
  with pytest.raises(InputError, match="unknown split 'test'; known: train, valid, all"):
    batched(text, 2, 8, str(path), split='test')


def test_text_is_its_bytes(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('Größe: 3 €', encoding='utf-8')
  source = batched(text, 2, 4, str(path), split='all')
  assert source.tokens.tobytes() == 'Größe: 3 €'.encode()
  assert (source.metadata['vocab_size'], source.metadata['length']) == (256, 4)
  assert source.metadata['sha256'] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_field_of_json_lines(tmp_path):
  path = tmp_path / 'a.jsonl'
  records = [{'text': 'first', 'body': 'no'}, {'text': 'zwölf', 'body': 'yes'}]
  path.write_text('\n\n'.join(json.dumps(r) for r in records) + '\n')
  assert batched(text, 2, 2, str(path), split='all').tokens.tobytes() == 'first\nzwölf'.encode()
  read = batched(text, 2, 2, str(path), split='all', field='body')
  assert read.tokens.tobytes() == b'no\nyes'


def test_a_record_without_the_field_is_named(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"text": "a"}\n\n{"body": "b"}\n')
  message = r"a\.jsonl, line 3: no text under 'text'; known: body"
  with pytest.raises(InputError, match=message):
    batched(text, 2, 2, str(path))


def test_text_that_is_not_there(tmp_path):
  with pytest.raises(InputError, match='no file .*nowhere'):
    batched(text, 2, 2, str(tmp_path / 'nowhere.txt'))
  (tmp_path / 'empty.txt').touch()
  with pytest.raises(InputError, match=r'empty\.txt is empty'):
    batched(text, 2, 2, str(tmp_path / 'empty.txt'))


def test_text_that_is_not_utf8(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes('Größe'.encode('latin-1'))
  with pytest.raises(InputError, match=r'a\.txt is not UTF-8: byte 0xf6 at offset 2'):
    batched(text, 2, 2, str(path))


def test_documents_of_a_tokenizer_end_with_its_end_of_text(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  path = tmp_path / 'a.jsonl'
  path.write_text('\n'.join(json.dumps({'text': t}) for t in ('abc', '', 'de', 'fghi')))
  ids = {}
  for end in ({}, {'eos': 130}):
    source = batched(text, 2, 2, str(path), 'all', tokenizer=Letters(end))
    ids[len(end)] = source.tokens.tolist()
    assert (source.metadata['vocab_size'], source.metadata['bytes']) == (140, 9)
    assert source.metadata['sha256'] == hashlib.sha256(b'abc\n\nde\nfghi').hexdigest()
  assert ids[0] == [ord(c) for c in 'abcdefghi']
  assert ids[1] == [*map(ord, 'abc'), 130, 130, *map(ord, 'de'), 130, *map(ord, 'fghi'), 130]


def test_the_bytes_of_a_split_are_counted(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  path = tmp_path / 'a.txt'
  path.write_text('abcdefghij' * 10)
  for coder in (None, Letters({'eos': 130})):
    size = {
      s: batched(text, 2, 2, str(path), s, tokenizer=coder).metadata['bytes']
      for s in ('train', 'valid')
    }
    assert size == {'train': 90, 'valid': 10}


@pytest.mark.parametrize(
  ('name', 'dtype'), [('a.npy', np.uint16), ('a.npy', np.int32), ('a.bin', np.uint16)]
)
def test_token_files(tmp_path, name, dtype):
  ids = np.random.default_rng(0).integers(0, 300, 500)
  path = file(tmp_path / name, ids, dtype)
  source = batched(tokens, 4, path, 300, 10, split='all')
  np.testing.assert_array_equal(source.tokens, ids)
  assert source.metadata == {'vocab_size': 300, 'length': 10, 'tokens': 500, 'source': path}
  rows = source.rows(np.array([0, 77]), np.arange(2))
  np.testing.assert_array_equal(rows['tokens'], [ids[:10], ids[77:87]])
  np.testing.assert_array_equal(rows['targets'], [ids[1:11], ids[78:88]])
  assert len(batched(tokens, 4, path, 300, 10, split='valid').tokens) == 50


def test_raw_tokens_of_another_type(tmp_path):
  ids = [70_000, 3, 128_255, 5]
  path = file(tmp_path / 'a.bin', ids, np.uint32)
  np.testing.assert_array_equal(batched(tokens, 2, path, 128_256, 2, 'all', 'uint32').tokens, ids)


@pytest.mark.parametrize(('name', 'bad'), [('a.npy', 300), ('a.npy', -1), ('a.bin', 65_535)])
def test_an_id_outside_the_vocabulary_names_file_and_offset(tmp_path, name, bad):
  ids = np.random.default_rng(0).integers(0, 300, 500)
  ids[[321, 400]] = bad
  path = file(tmp_path / name, ids, np.uint16 if name == 'a.bin' else np.int32)
  message = rf'token id {bad} at offset 321 of .*{name} is outside the vocabulary of 300 \(0\.\.29'
  with pytest.raises(InputError, match=message):
    batched(tokens, 4, path, 300, 10)


UNREADABLE = {
  'no numpy file': ('a.npy', lambda p: p.write_bytes(b'hello'), 'uint16'),
  'empty .npy': ('a.npy', lambda p: p.touch(), 'uint16'),
  'empty .bin': ('a.bin', lambda p: p.touch(), 'uint16'),
  'half a number': ('a.bin', lambda p: p.write_bytes(bytes(301)), 'uint16'),
  'no such type': ('a.bin', lambda p: p.write_bytes(bytes(300)), 'uint61'),
  'floats': ('a.npy', lambda p: np.save(p, np.linspace(0, 5, 100)), 'uint16'),
  'a table': ('a.npy', lambda p: np.save(p, np.zeros((50, 3), np.int32)), 'uint16'),
}


@pytest.mark.parametrize(('name', 'write', 'dtype'), UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_no_row_of_tokens_is_refused(tmp_path, name, write, dtype):
  write(tmp_path / name)
  with pytest.raises(InputError, match=rf'{name}|uint61'):
    batched(tokens, 4, str(tmp_path / name), 300, 10, dtype=dtype)


def test_tokens_that_are_not_there(tmp_path):
  with pytest.raises(InputError, match='no token file .*nowhere'):
    batched(tokens, 4, str(tmp_path / 'nowhere.bin'), 300, 10)


def test_the_standard_library_is_real_text():
  files = library_files()
  assert len(files) > 100
  assert files == sorted(files)
  data = b'\n'.join(path.read_bytes() for path in files)
  source = batched(text, 12, 64)
  assert source.metadata['sha256'] == hashlib.sha256(data).hexdigest()
  assert sys.version.split()[0] in str(source.metadata['source'])
  assert source.tokens.tobytes() == data[: int(len(data) * 0.9)]
