"""Draws that depend on seed, stream and position, and on nothing else."""

import itertools

import numpy as np
import pytest

from bmx.core import streams


def draws(positions, seed=3, stream=streams.AUGMENTATION):
  return streams.draws(seed, stream, np.asarray(positions, np.int64))


def test_a_row_depends_on_its_position_only():
  whole = draws(range(100, 164))
  alone = np.concatenate([draws([p]) for p in range(100, 164)])
  np.testing.assert_array_equal(alone, whole)
  order = np.random.default_rng(0).permutation(64)
  np.testing.assert_array_equal(draws(100 + order), whole[order])
  np.testing.assert_array_equal(draws(range(110, 120)), whole[10:20])
  np.testing.assert_array_equal(draws(range(163, 99, -1)), whole[::-1])


def test_repeated_positions_and_none():
  given = draws([7, 7, 8, 7])
  np.testing.assert_array_equal(given[[1, 3]], given[[0, 0]])
  assert draws([]).shape == (0, 4)


@pytest.mark.parametrize('start', [0, 2**32 - 2, 2**53 - 2, 2**62])
def test_positions_of_long_runs(start):
  whole = draws(range(start, start + 4))
  assert len(np.unique(whole)) == 16
  np.testing.assert_array_equal(draws([start + 3])[0], whole[3])


def test_against_philox_by_hand():
  """The generator of numpy steps its counter before it draws: position p is block p + 1."""
  key = np.array([3, streams.AUGMENTATION], np.uint64)
  bits = np.random.Philox(key=key).advance(41)
  np.testing.assert_array_equal(draws([41])[0], np.random.Generator(bits).random(4))


def test_seeds_and_streams_are_apart():
  given = [
    draws(range(50), seed, stream) for seed, stream in itertools.product((0, 1, 16, 17), (16, 17))
  ]
  assert len(np.unique(np.stack(given))) == 8 * 50 * 4


def test_uniform():
  """40,000 numbers: mean, variance, a histogram by χ² (99.99 % of 15 degrees is 44), no echo."""
  given = draws(range(10_000))
  assert given.dtype == np.float64
  assert given.min() >= 0
  assert given.max() < 1
  assert abs(given.mean() - 1 / 2) < 0.008
  assert abs(given.var() - 1 / 12) < 0.003
  for column in given.T:
    counts = np.histogram(column, 16, (0, 1))[0]
    assert ((counts - 625) ** 2 / 625).sum() < 44
    assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < 0.05
  assert np.abs(np.corrcoef(given.T) - np.eye(4)).max() < 0.05


def test_generators_are_reproducible_and_apart():
  first = lambda *key: streams.generator(*key).integers(0, 2**62)
  keys = list(itertools.product((0, 1), (streams.PERMUTATION, streams.SHIFT), (0, 1, 2)))
  assert len({int(first(*k)) for k in keys}) == len(keys)
  assert first(5, streams.SPLIT, 2) == first(5, streams.SPLIT, 2)


def test_no_two_streams_share_a_number():
  numbers = [v for k, v in vars(streams).items() if k.isupper()]
  assert len(numbers) == len(set(numbers)) == 22
  assert max(numbers) == streams.MIX, 'one number for each source from there on'
