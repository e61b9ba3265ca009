"""Data as a function of the step: its order, its rows, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bmx.core import streams
from bmx.core.data import Spec
from bmx.core.errors import InputError
from bmx.data import arrays as loader
from bmx.data.arrays import ArrayData, split_indices
from bmx.data.batches import Batches
from bmx.data.images.augment import augment
from bmx.data.images.normalization import Normalise
from bmx.data.text.windows import TokenData
from tests.data.batched import batched

SIZES = {'size': st.integers(1, 30), 'batch': st.integers(1, 40), 'seed': st.integers(0, 9)}


def numbers(size=10, batch_size=4, seed=0, train=True):
  return batched(ArrayData, batch_size, {'x': np.arange(size)[:, None]}, {}, seed, train)


def images(n=12, side=6, channels=2, **options):
  image = np.random.default_rng(1).uniform(1, 2, (n, side, side, channels)).astype(np.float32)
  return batched(ArrayData, 4, {'image': image}, {}, **options)


def positions(data, steps):
  return np.concatenate([data.indices(s)[0] for s in range(steps)])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(**SIZES)
def test_each_epoch_is_a_permutation(size, batch, seed):
  data = numbers(size, batch, seed)
  seen = positions(data, -(-3 * size // batch))[: 3 * size].reshape(3, size)
  assert seen.dtype == np.int64
  np.testing.assert_array_equal(np.sort(seen, 1), np.tile(np.arange(size), (3, 1)))


def test_epochs_and_seeds_differ():
  size = 50
  orders = [positions(numbers(size, 10, seed), 15).reshape(3, size) for seed in (0, 1)]
  rows = {tuple(row) for row in np.concatenate(orders)}
  assert len(rows) == 6
  assert tuple(range(size)) not in rows


def test_a_batch_crosses_the_edge_of_an_epoch():
  data = numbers(10, 4)
  whole = positions(data, 5)
  crossing = data.indices(2)[0]
  assert set(crossing[:2]) == set(range(10)) - set(whole[:8])
  assert set(crossing[2:]) | set(whole[12:20]) == set(range(10))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(**SIZES, step=st.integers(0, 10**6))
def test_a_later_step_can_be_asked_for_first(size, batch, seed, step):
  fresh, used = numbers(size, batch, seed), numbers(size, batch, seed)
  positions(used, 5)
  used.indices(step + 1)[0]
  np.testing.assert_array_equal(fresh.indices(step)[0], used.indices(step)[0])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(**SIZES, step=st.integers(0, 10**6), n=st.integers(1, 9), train=st.booleans())
def test_steps_may_be_asked_for_together(size, batch, seed, step, n, train):
  data = numbers(size, batch, seed, train)
  together = data.indices(step, n)
  np.testing.assert_array_equal(together, [data.indices(step + i)[0] for i in range(n)])


def test_an_order_is_that_of_its_positions_one_by_one():
  """More than two epochs in one call, and batches longer than an epoch."""
  for size, batch in ((10, 4), (3, 8)):
    expected = []
    for position in range(2 * batch, 9 * batch):
      epoch, place = divmod(position, size)
      permutation = streams.generator(5, streams.PERMUTATION, epoch).permutation(size)
      expected.append(permutation[place])
    np.testing.assert_array_equal(numbers(size, batch, 5).indices(2, 7).ravel(), expected)


def test_evaluation_reads_in_file_order():
  data = numbers(10, 4, seed=3, train=False)
  np.testing.assert_array_equal(positions(data, 3)[:10], np.arange(10))
  np.testing.assert_array_equal(
    data.rows(data.indices(1)[0], np.arange(4, 8))['x'][:, 0], [4, 5, 6, 7]
  )


def test_rows_equal_gather():
  data = images(preprocess=Normalise(2.0, (0.1, 0.2), (0.3, 0.4)))
  indices = data.indices(7)[0]
  rows = data.rows(indices, np.arange(28, 32))
  on_host = data.gather(data.resident(), indices)
  on_device = jax.jit(data.gather)(jax.tree.map(jnp.asarray, data.resident()), indices)
  assert set(rows) == set(data.abstract) == {'image', 'weights'}
  for name, spec in data.abstract.items():
    assert (rows[name].shape, rows[name].dtype) == (spec.shape, spec.dtype)
    np.testing.assert_array_equal(rows[name], on_host[name])
    np.testing.assert_allclose(rows[name], on_device[name], rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(rows['weights'], np.ones(4))


def test_only_small_unaugmented_data_is_resident(monkeypatch):
  assert images().resident() is not None
  assert images(augment=augment(crop=1, flip=False)).resident() is None
  assert images(augment=augment(crop=1, flip=False), train=False).resident() is not None
  monkeypatch.setattr(loader, 'RESIDENT_BYTES', 100)
  assert images().resident() is None


@pytest.mark.parametrize('library', [np, jnp])
@pytest.mark.parametrize(
  ('mean', 'std'), [((0.1307,), (0.3081,)), ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))]
)
def test_normalise(library, mean, std):
  image = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3)).astype(np.uint8)
  got = Normalise(255.0, mean, std)({'image': library.asarray(image), 'label': 7})
  expected = (image / 255 - np.array(mean)) / np.array(std)
  np.testing.assert_allclose(got['image'], expected, rtol=1e-5, atol=1e-6)
  assert got['image'].dtype == np.float32
  assert got['label'] == 7


def with_value(value):
  x = np.zeros((5, 3), np.float32)
  x[2, 1] = value
  return x


REFUSED = {
  'nan': ({'x': with_value(np.nan)}, {}, 'x holds nan in example 2, column 1'),
  'infinity': ({'x': with_value(-np.inf)}, {}, 'x holds -inf in example 2, column 1'),
  'target': ({'y': np.array([0.0, np.nan])}, {}, 'y holds nan in example 1: expected finite'),
  'label': (
    {'label': np.array([0, 3, 4])},
    {'num_classes': 4},
    'label 4 of example 2: expected one of the 4 classes',
  ),
  'negative': (
    {'label': np.array([0, -1])},
    {'num_classes': 4},
    'label -1 of example 1: expected one of the 4 classes',
  ),
  'two labels': (
    {'label': np.zeros((4, 2), int)},
    {'num_classes': 4},
    r'shape \(4, 2\): expected one',
  ),
  'weights': ({'x': np.zeros((2, 1)), 'weights': np.array([1.0, -1])}, {}, 'weights of example 1'),
  'no arrays': ({}, {}, 'the data set is empty'),
  'no rows': ({'x': np.zeros((0, 3))}, {}, 'the data set is empty'),
  'lengths': ({'x': np.zeros((4, 3)), 'y': np.zeros(5)}, {}, "lengths: .*'x': 4, 'y': 5"),
}


@pytest.mark.parametrize(('arrays', 'info', 'message'), REFUSED.values(), ids=REFUSED)
def test_what_would_train_silently_wrong_is_refused(arrays, info, message):
  with pytest.raises(InputError, match=message):
    batched(ArrayData, 2, arrays, info)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(size=st.integers(2, 500), share=st.floats(0.01, 0.99))
def test_splits_are_disjoint_and_complete(size, share):
  held = round(size * share)
  if not held:
    return
  names = ('all', 'train', 'valid')
  train, valid = (split_indices(size, split, share, names) for split in ('train', 'valid'))
  assert len(valid) == held
  np.testing.assert_array_equal(np.sort(np.concatenate([train, valid])), np.arange(size))
  np.testing.assert_array_equal(split_indices(size, 'all', share, names), np.arange(size))
  np.testing.assert_array_equal(split_indices(size, 'valid', share, names), valid)
  assert (np.diff(valid) > 0).all()


def test_a_split_is_spread_over_the_file():
  valid = split_indices(10_000, 'valid', 0.2, ('train', 'valid'))
  assert abs(valid.mean() - 5000) < 5 * 10_000 / 12**0.5 / 2000**0.5


def test_a_split_that_cannot_be():
  with pytest.raises(InputError, match="split='test': expected one of train, valid"):
    split_indices(10, 'test', 0.1, ('train', 'valid'))
  with pytest.raises(InputError, match='holdout=0.0: expected a share of 10'):
    split_indices(10, 'valid', 0.0, ('train', 'valid'))
  np.testing.assert_array_equal(split_indices(4, 'train', 0.0, ('train',)), np.arange(4))


@pytest.mark.parametrize('share', [-0.5, 1.5])
def test_a_share_that_is_none(share):
  with pytest.raises(InputError, match='holdout'):
    split_indices(10, 'train', share, ('train', 'valid'))


RECORDED = {  # of the first version, before data sets and batches were two things
  ('array', 0): ([3, 23, 28, 31, 21, 19, 29, 9], [16, 13, 12, 22, 4, 28, 29, 3]),
  ('array', 3): ([14, 22, 26, 32, 17, 25, 1, 4], [6, 13, 31, 33, 36, 19, 12, 15]),
  ('token', 0): ([19, 339, 51, 179, 371, 275, 291, 99], [425, 105, 313, 89, 121, 25, 169, 329]),
  ('token', 3): (
    [226, 338, 370, 450, 178, 482, 402, 274],
    [172, 364, 220, 28, 412, 268, 332, 476],
  ),
}


@pytest.mark.parametrize('case', RECORDED, ids=str)
def test_the_order_of_examples_is_the_one_recorded(case):
  kind, seed = case
  tokens = TokenData(np.zeros(500, np.uint8), 256, 16, seed)
  examples = tokens if kind == 'token' else ArrayData({'x': np.zeros((37, 1))}, {}, seed)
  data = Batches(examples, 8, seed)
  first, later = RECORDED[case]
  assert data.indices(0)[0].tolist() == first
  assert data.indices(4)[0].tolist() == later


@pytest.mark.parametrize(
  'words', [{'scale': 0.0}, {'std': (0.3, 0.0)}, {'std': (-1.0,)}, {'mean': (float('nan'),)}]
)
def test_images_are_not_divided_by_nothing(words):
  name = next(iter(words))
  with pytest.raises(InputError, match=f'^{name}=.*: expected a finite number'):
    Normalise(**words)


class Weighted:
  """Examples of a user, with weights of their own."""

  size = 6

  def __init__(self, bad):
    self.metadata, self.spec = {}, {'weights': Spec((), np.dtype(np.float32))}
    self.weights = np.array([0, 1, 0.25, 2, bad, 1], np.float32)

  def rows(self, indices, positions):
    return {'weights': self.weights[indices]}


@pytest.mark.parametrize('bad', [-1.0, float('nan'), float('inf')])
def test_weights_that_cannot_be(bad):
  """Held on the device or fed from the host: the example is named."""
  data = Batches(Weighted(bad), 3, train=False)
  data.rows(np.arange(3), np.arange(3))
  with pytest.raises(InputError, match=f'weights={bad} of example 4: expected'):
    data.rows(np.arange(3, 6), np.arange(3, 6))

  class Resident(Weighted):
    def resident(self):
      return {'weights': self.weights}

    def gather(self, arrays, indices):
      return {k: v[indices] for k, v in arrays.items()}

  with pytest.raises(InputError, match=f'weights={bad} of example 4: expected'):
    Batches(Resident(bad), 3).resident()
