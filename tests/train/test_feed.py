"""What arrives on the devices is what the data says of each step, whoever carries it there."""

import dataclasses

import jax
import numpy as np
import pytest

from bmx.data.arrays import ArrayData, SourceData
from bmx.data.builtin import digits
from bmx.data.images.augment import augment
from bmx.data.text.windows import TokenData
from bmx.parallel import Layout, jit, make_mesh
from bmx.train.feed import Feed
from tests.data.batched import batched

GROUPS = [(0, 3), (3, 2), (5, 1), (30, 3)]
MESHES = {'one': {}, 'data-fsdp': {'data': 2, 'fsdp': 2}, 'eight': {'data': 2, 'fsdp': 4}}


@dataclasses.dataclass
class Records:
  values: np.ndarray

  def __len__(self):
    return len(self.values)

  def __getitems__(self, numbers):
    return [self.values[n] for n in numbers]


def source(seed=1):
  records = Records(np.random.default_rng(0).normal(size=(21, 3)).astype(np.float32))
  return batched(SourceData, 8, records, lambda rows: {'x': np.stack(rows)}, {}, seed=seed)


def tokens(train=True):
  text = np.random.default_rng(0).integers(0, 256, 999).astype(np.uint8)
  return batched(TokenData, 8, text, 256, length=16, seed=2, train=train)


DATA = {
  'resident': lambda: batched(digits, 8, seed=3),
  'augmented': lambda: batched(digits, 8, seed=3, crop=1),
  'evaluation': lambda: batched(digits, 8, split='test', train=False),
  'flipped': lambda: batched(
    ArrayData, 8, batched(digits, 8).arrays, {}, 4, augment=augment(crop=2, flip=True)
  ),
  'source': source,
  'tokens': tokens,
  'tokens in order': lambda: tokens(train=False),
}
RESIDENT = ('resident', 'evaluation', 'tokens', 'tokens in order')


def layout(shape):
  count = int(np.prod(list(shape.values()), dtype=int))
  return Layout(make_mesh(shape, jax.devices()[:count]))


def expected(data, step):
  b = data.batch_size
  return data.rows(data.indices(step)[0], step * b + np.arange(b))


def delivered(feed):
  """-> [(step, batch)] of all groups, taken from them as a dispatch does."""
  constants, result = feed.constants(), []
  take = jit(feed.take, feed.layout)
  for (start, n), (group, waited) in zip(GROUPS, feed.groups(GROUPS), strict=True):
    assert waited >= 0
    assert all(leaf.shape[0] == feed.depth for leaf in group.values())
    result += [(start + i, take(constants, group, np.int32(i))) for i in range(n)]
  return result


@pytest.mark.parametrize('mesh', MESHES)
@pytest.mark.parametrize('kind', DATA)
def test_batches_are_the_rows_of_the_order(kind, mesh):
  data = DATA[kind]()
  feed = Feed(data, layout(MESHES[mesh]), depth=3)
  assert bool(feed.constants()) == (kind in RESIDENT)
  batches = delivered(feed)
  assert [step for step, _ in batches] == [0, 1, 2, 3, 4, 5, 30, 31, 32]
  for step, batch in batches:
    rows = expected(data, step)
    assert set(batch) == set(rows)
    for name, value in rows.items():
      assert batch[name].dtype == value.dtype
      np.testing.assert_allclose(batch[name], value, rtol=1e-6, err_msg=f'{name}, step {step}')


def test_rows_lie_where_the_layout_says():
  feed = Feed(batched(digits, 8, crop=1), layout({'data': 2, 'fsdp': 2}), depth=2)
  group, _ = next(feed.groups([(0, 2)]))
  for leaf in group.values():
    assert leaf.addressable_shards[0].data.shape == (2, 2, *leaf.shape[2:])
  assert feed.local_rows() == slice(0, 8)


def test_length_is_cut_by_the_seq_axis():
  data = tokens()
  feed = Feed(data, layout({'data': 2, 'seq': 4}), depth=3)
  for step, batch in delivered(feed):
    assert batch['tokens'].addressable_shards[0].data.shape == (4, 4)
    np.testing.assert_array_equal(batch['targets'], expected(data, step)['targets'])


def test_order_alone_travels_for_resident_data():
  feed = Feed(batched(digits, 8), layout({'data': 2, 'fsdp': 2}), depth=3)
  group, _ = next(feed.groups([(4, 2)]))
  assert set(group) == {'indices'}
  assert group['indices'].dtype == np.int32
  np.testing.assert_array_equal(
    group['indices'][:2], [feed.data.indices(4)[0], feed.data.indices(5)[0]]
  )


def test_an_error_of_the_data_reaches_the_loop():
  def decode(rows):
    if len(rows) > 1:
      raise OSError('the disk is gone')
    return {'x': np.stack(rows)}

  data = batched(SourceData, 4, Records(np.zeros((9, 2), np.float32)), decode, {})
  with pytest.raises(OSError, match='the disk is gone'):
    next(Feed(data, layout({}), depth=1).groups([(0, 1)]))


@pytest.mark.parametrize('step', [0, 7, 1_000_000])
@pytest.mark.parametrize('kind', DATA)
def test_any_number_of_processes_and_threads_makes_the_same_batch(kind, step, monkeypatch):
  """A process makes its rows alone, at any step at once: it needs no step before it."""
  data = DATA[kind]()
  whole, b = expected(data, step), data.batch_size
  for processes in (2, 4):
    parts = []
    for i in range(processes):
      mine = slice(i * b // processes, (i + 1) * b // processes)
      parts.append(data.rows(data.indices(step)[0][mine], step * b + np.arange(b)[mine]))
    for name, value in whole.items():
      joined = np.concatenate([p[name] for p in parts])
      np.testing.assert_array_equal(joined, value, err_msg=name)
  for threads in (1, 3):
    monkeypatch.setattr('bmx.train.feed.THREADS', threads)
    groups = [(step + i, 1) for i in range(4)]
    feed = Feed(data, layout({}), depth=1)
    take = jit(feed.take, feed.layout)
    for (at, _), (group, _) in zip(groups, feed.groups(groups), strict=True):
      for name, value in expected(data, at).items():
        got = take(feed.constants(), group, np.int32(0))[name]
        np.testing.assert_allclose(got, value, rtol=1e-6, err_msg=name)
