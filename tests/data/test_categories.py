"""Columns of click models: numbers and categories against a few lines of numpy, Criteo's files."""

import json
import logging
import math

import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.data.recommend.categories import FieldEncoder, bucket
from bmx.data.recommend.clicks import CATEGORIES, NUMBERS, clicks, criteo

FRAME = {
  'click': [0, 1, 0, 1, 1, 0],
  'site': ['a', 'b', 'a', None, 'b', 'rare'],
  'device': ['x', 'y', 'z', 'x', 'y', 'z'],
  'spent': [0, 9, -3, None, 100, 5],
}
DIGEST = int.from_bytes(bytes.fromhex('3c2f5731db257881'), 'little')
WORDS = {'target': 'click', 'hashed': ('device',), 'buckets': 1000, 'log': ('spent',)}


def test_the_hash_is_blake2b():
  # printf 'device=x' | b2sum -l 64 -> 3c2f5731db257881 (coreutils 9), little-endian.
  assert bucket('device', 'x', 2**31) == DIGEST % 2**31
  assert bucket('device', 'x', 1000) == DIGEST % 1000
  assert bucket('ort', 'Köln', 97) != bucket('stadt', 'Köln', 97)


def test_columns_are_those_of_a_small_oracle():
  data = clicks(given=FRAME, **WORDS)
  log = [math.copysign(math.log1p(abs(v)), v) for v in FRAME['spent'] if v is not None]
  mean, std = np.mean(log), np.std(log)
  expected = [0.0 if v is None else (math.copysign(math.log1p(abs(v)), v) - mean) / std
              for v in FRAME['spent']]  # fmt: skip
  np.testing.assert_allclose(data.arrays['x'][:, 0], expected, atol=1e-6)
  # Rows of `site`: 'a' and 'b' occur twice; a missing one and 'rare' once, so they share row 0.
  np.testing.assert_array_equal(data.arrays['ids'][:, 0], [1, 2, 1, 0, 2, 0])
  hashed = [bucket('device', v, 1000) for v in FRAME['device']]
  np.testing.assert_array_equal(data.arrays['ids'][:, 1], hashed)
  np.testing.assert_array_equal(data.arrays['label'], FRAME['click'])
  assert data.metadata['field_sizes'] == (3, 1000)
  assert (data.metadata['num_numeric'], data.metadata['num_classes']) == (1, 2)


def test_a_run_reads_other_records_as_its_own(caplog):
  state = json.loads(json.dumps(clicks(given=FRAME, **WORDS).state()))
  other = {'site': ['b', 'new', 'newer'], 'device': ['y', 'never', 'x'], 'spent': [9, None, 0]}
  with caplog.at_level(logging.WARNING, 'bmx'):
    data = clicks(given=other, fitted=state, train=False, **WORDS)
  assert 'share one row, in records: site 2' in caplog.text
  np.testing.assert_array_equal(data.arrays['ids'][:, 0], [2, 0, 0])
  own = clicks(given=FRAME, **WORDS).arrays
  np.testing.assert_array_equal(data.arrays['x'][[0, 2], 0], own['x'][[1, 0], 0])
  assert data.arrays['ids'][1, 1] == bucket('device', 'never', 1000)
  assert 'label' not in data.arrays
  assert FieldEncoder.restore(state['fields']).state() == state['fields'] | {
    'logarithms': ('spent',), 'numbers': FieldEncoder.restore(state['fields']).numbers.state(),
  }  # fmt: skip


def test_crosses_are_pairs_of_categories():
  data = clicks(given=FRAME, crosses=('site*device',), **WORDS)
  pairs = [f'{s or ""}\x1f{d}' for s, d in zip(FRAME['site'], FRAME['device'], strict=True)]
  expected = [bucket('site*device', p, 1000) for p in pairs]
  np.testing.assert_array_equal(data.arrays['ids'][:, 2], expected)
  assert data.metadata['field_sizes'] == (3, 1000, 1000)


def test_the_last_records_are_held_out():
  frame = {**FRAME, 'spent': list(range(6))}
  words = {'target': 'click', 'last': True, 'holdout': 0.34, 'use': ('spent',)}
  train = clicks(given=frame, split='train', **words)
  valid = clicks(given=frame, split='valid', fitted=train.state(), train=False, **words)
  assert (train.size, valid.size) == (4, 2)
  mean, std = np.mean(range(4)), np.std(range(4))  # of the training part
  np.testing.assert_allclose(valid.arrays['x'][:, 0], (np.array([4, 5]) - mean) / std, rtol=1e-6)


def lines(label=True, count=30):
  random = np.random.default_rng(0)
  for _ in range(count):
    numbers = [str(v) if v else '' for v in random.integers(-1, 9, 13)]
    words = [f'{v:08x}' if v else '' for v in random.integers(0, 4, 26)]
    # A category of digits and one letter e reads as a number: it must stay a category.
    words[0] = ['68e10000', '05000000'][random.integers(2)]
    yield '\t'.join([str(random.integers(2))] * label + numbers + words)


def test_files_of_criteo(tmp_path):
  (tmp_path / 'train.txt').write_text('\n'.join(lines()))
  (tmp_path / 'test.txt').write_text('\n'.join(lines(label=False)))
  data = criteo(str(tmp_path / 'train.txt'), min_count=2)
  assert data.arrays['x'].shape == (30, 13)
  assert data.arrays['ids'].shape == (30, 26)
  assert data.metadata['field_sizes'][0] == 3
  assert max(data.metadata['field_sizes']) == 5
  test = criteo(str(tmp_path / 'test.txt'), fitted=data.state(), train=False)
  assert 'label' not in test.arrays
  assert test.arrays['ids'].shape == (30, 26)
  (tmp_path / 'short.txt').write_text('1\t2\t3\n')
  with pytest.raises(InputError, match=r'short.txt: 3 fields in the first line: expected 40'):
    criteo(str(tmp_path / 'short.txt'))


def test_the_sample_of_criteo(data_dir):
  data = criteo(str(data_dir / 'ctr/criteo_sample.txt'), min_count=2)
  assert data.size == 200
  assert data.metadata['num_numeric'] == len(NUMBERS)
  assert len(data.metadata['field_sizes']) == len(CATEGORIES)
  assert np.isfinite(data.arrays['x']).all()
  sizes = np.array(data.metadata['field_sizes'])
  assert (data.arrays['ids'] < sizes[None]).all()


@pytest.mark.parametrize(('words', 'message'), [
  ({'target': 'clik'}, "data.target='clik': expected a column.*did you mean 'click'"),
  ({'target': ''}, "data.target='': expected a column of the given records; it has click"),
  ({'target': 'device'}, 'expected two classes, found 3'),
  ({'hashed': ('divice',)}, "no such column; did you mean 'device'"),
  ({'log': ('site',)}, "data.log='site': expected a column of numbers, not category"),
  ({'crosses': ('site',)}, "data.crosses='site': expected two columns, such as 'site\\*device'"),
  ({'buckets': 1}, 'data.buckets=1: expected 2 <= data.buckets'),
  ({'min_count': 0}, 'data.min_count=0: expected'),
  ({'weights': 'w'}, "data.weights='w': expected a column of the given records"),
])  # fmt: skip
def test_mistakes_are_named(words, message):
  with pytest.raises(InputError, match=message):
    clicks(given=FRAME, **{**WORDS, **words})


def test_other_columns_are_refused():
  state = clicks(given=FRAME, **WORDS).state()
  with pytest.raises(InputError, match="missing 'device'; did you mean 'divice'"):
    given = {'site': ['a'], 'divice': ['x'], 'spent': [1]}
    clicks(given=given, fitted=state, train=False, **WORDS)
  with pytest.raises(InputError, match="record 1: spent is 'much', expected a finite number"):
    given = {'site': ['a'], 'device': ['x'], 'spent': ['much']}
    clicks(given=given, fitted=state, train=False, **WORDS)
