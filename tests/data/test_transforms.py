"""Examples around examples: mixtures are exact, and wrappers do not change the rows."""

import jax
import numpy as np
import pytest

from bmx.core.data import Spec
from bmx.core.errors import InputError
from bmx.data.arrays import ArrayData
from bmx.data.batches import Batches
from bmx.data.mixture import BLOCK, Mix
from bmx.data.tables import table
from bmx.data.text.windows import TokenData
from bmx.data.transforms import Filter, Map, Reorder
from bmx.ops.ring import zigzag
from bmx.parallel import Layout, make_mesh
from bmx.train.feed import Feed


def numbers(first, size):
  return ArrayData({'x': first + np.arange(size)[:, None]}, {'source': f'from {first}'})


def mixture(seed=0, train=True, **weights):
  sources = {'a': numbers(0, 30), 'b': numbers(1000, 70), 'c': numbers(2000, 11)}
  return Mix(sources, weights or {'a': 1, 'b': 2, 'c': 0.5}, seed, train)


def read(data, steps, start=0):
  """The numbers that batches read."""
  found = []
  for step in range(start, start + steps):
    positions = step * data.batch_size + np.arange(data.batch_size)
    found.append(data.rows(data.indices(step)[0], positions)['x'][:, 0])
  return np.array(found)


def test_every_block_has_the_shares_of_its_sources():
  data = Batches(mixture(a=1, b=2, c=0.5), 50)
  seen = read(data, 3 * BLOCK // 50).reshape(3, BLOCK) // 1000
  for block in seen:
    assert [int((block == i).sum()) for i in range(3)] == [286, 571, 143]
  assert not np.array_equal(seen[0], seen[1])


def test_a_source_is_read_whole_in_each_of_its_epochs():
  seen = read(Batches(mixture(), 50), 2 * BLOCK // 50).ravel()
  for first, size in ((0, 30), (1000, 70), (2000, 11)):
    own = seen[seen // 1000 == first // 1000]
    epochs = own[: len(own) // size * size].reshape(-1, size)
    assert len(epochs) > 8
    expected = np.tile(first + np.arange(size), (len(epochs), 1))
    np.testing.assert_array_equal(np.sort(epochs, axis=1), expected)
    assert len({tuple(e) for e in epochs}) == len(epochs)


def test_any_step_alone_and_any_part_of_a_batch_is_the_same():
  data, again = Batches(mixture(seed=3), 48), Batches(mixture(seed=3), 48)
  whole = read(data, 60)
  for step in (59, 0, 31):
    np.testing.assert_array_equal(read(again, 1, step)[0], whole[step])
    positions = step * 48 + np.arange(48)
    indices = again.indices(step)[0]
    for processes in (2, 4):
      split = zip(np.split(indices, processes), np.split(positions, processes), strict=True)
      parts = [again.rows(i, p)['x'][:, 0] for i, p in split]
      np.testing.assert_array_equal(np.concatenate(parts), whole[step])
  assert not np.array_equal(read(Batches(mixture(seed=4), 48), 1), whole[:1])


def test_evaluation_reads_one_source_after_another():
  data = Batches(mixture(train=False), 37, train=False)
  expected = np.concatenate([np.arange(30), 1000 + np.arange(70), 2000 + np.arange(11)])
  np.testing.assert_array_equal(read(data, 3).ravel(), expected)


def test_the_feed_of_a_mixture_is_its_rows():
  data = Batches(mixture(), 16)
  layout = Layout(make_mesh({'data': -1}, jax.devices()))
  feed = Feed(data, layout, 3)
  (group, _), *_ = feed.groups([(5, 3)])
  for i in range(3):
    batch = feed.take(feed.constants(), group, i)
    np.testing.assert_array_equal(batch['x'][:, 0], read(data, 1, 5 + i)[0])


def test_texts_are_mixed_with_windows_of_their_own():
  texts = {k: TokenData(np.full(200, v, np.uint8), 256, 8, seed=1) for k, v in (('a', 3), ('b', 9))}
  data = Batches(Mix(texts, {'a': 3, 'b': 1}), 100)
  rows = data.rows(data.indices(0, 10).ravel(), np.arange(1000))
  assert rows['tokens'].shape == (1000, 8)
  assert (rows['tokens'][:, 0] == 3).sum() == 750
  assert (rows['tokens'] == rows['tokens'][:, :1]).all()
  assert data.metadata['vocab_size'] == 256


@pytest.mark.parametrize(('weights', 'message'), [
  ({'a': 1, 'b': 1}, r'mix.weights.c=None: expected a number above 0'),
  ({'a': 1, 'b': 1, 'c': 0}, r'mix.weights.c=0: expected a number above 0'),
  ({'a': 1, 'b': 1, 'c': 1, 'cc': 1}, r'mix.weights.cc: no such source; did you mean'),
  ({'a': 1, 'b': 1, 'c': 1e-9}, 'shares of at least 1 / 1000'),
])  # fmt: skip
def test_weights_that_cannot_be(weights, message):
  with pytest.raises(InputError, match=message):
    mixture(**weights)


def test_sources_of_different_shapes_are_refused():
  other = ArrayData({'x': np.zeros((4, 2), int)}, {})
  with pytest.raises(InputError, match='expected one spec'):
    Mix({'a': numbers(0, 3), 'b': other}, {'a': 1, 'b': 1})


def test_sources_whose_labels_mean_something_else_are_refused(tmp_path):
  for name, classes in (('a', 'xy'), ('b', 'yz'), ('c', 'yx')):
    rows = '\n'.join(f'{i},{c}' for i, c in enumerate(classes * 2))
    (tmp_path / f'{name}.csv').write_text(f'n,kind\n{rows}\n')
  a, b, c = (table(str(tmp_path / f'{n}.csv'), 'kind') for n in 'abc')
  with pytest.raises(InputError, match='differ in class_names'):
    Mix({'a': a, 'b': b}, {'a': 1, 'b': 1})
  mixed = Mix({'a': a, 'c': c}, {'a': 1, 'c': 1})
  assert mixed.state() == a.state() and mixed.metadata['class_names'] == ('x', 'y')
  again = table(str(tmp_path / 'c.csv'), 'kind', fitted=mixed.state(), train=False)
  assert again.arrays['label'].tolist() == [1, 0, 1, 0]
  assert mixed.digest() != Mix({'a': a, 'c': a}, {'a': 1, 'c': 1}).digest()


def test_a_map_sees_rows_and_positions():
  def label(rows, positions):
    return {**rows, 'even': (positions % 2 == 0).astype(np.int32), 'x': rows['x'] * 2}

  data = Batches(Map(numbers(0, 10), label), 4, train=False)
  assert data.spec['even'] == Spec((), np.dtype(np.int32))
  rows = data.rows(data.indices(1)[0], np.arange(4, 8))
  assert rows['x'][:, 0].tolist() == [8, 10, 12, 14]
  assert rows['even'].tolist() == [1, 0, 1, 0]
  assert data.resident() is None


def test_a_map_around_windows_reads_the_same_windows():
  text = TokenData(np.arange(100, dtype=np.uint8), 256, 7, seed=5)
  plain, mapped = Batches(text, 4, 5), Batches(Map(text, lambda rows, _: rows), 4, 5)
  np.testing.assert_array_equal(plain.indices(3), mapped.indices(3))


def test_a_filter_keeps_what_it_says():
  data = Batches(Filter(numbers(0, 3000), lambda rows: rows['x'][:, 0] % 7 == 0), 8, train=False)
  assert data.size == 429
  assert read(data, 2).ravel().tolist() == list(range(0, 16 * 7, 7))
  with pytest.raises(InputError, match='expected to keep at least one of 3'):
    Filter(numbers(0, 3), lambda rows: rows['x'][:, 0] > 9)


def test_reordered_windows_keep_their_order_of_batches():
  text = TokenData(np.arange(100, dtype=np.uint8), 256, 8, seed=5)
  order = np.array([0, 1, 6, 7, 2, 3, 4, 5])
  plain, moved = Batches(text, 4, 5), Batches(Reorder(text, order), 4, 5)
  np.testing.assert_array_equal(plain.indices(2, 3), moved.indices(2, 3))
  rows = [d.rows(d.indices(0)[0], np.arange(4)) for d in (plain, moved)]
  np.testing.assert_array_equal(rows[1]['targets'], rows[0]['targets'][:, order])
  assert moved.spec['positions'].names == ('length',)


class Weighted:
  """Four members and a composition: every batch has two real rows."""

  size, metadata = 10, {}
  spec = {'x': Spec((), np.dtype(np.int64))}  # noqa: RUF012

  def rows(self, indices, positions):
    return {'x': indices}

  def indices(self, positions, batch_size):
    return positions % 10, (positions % batch_size < 2).astype(np.float32)


def test_examples_may_decide_the_weights_of_a_batch():
  data = Batches(Weighted(), 4)
  feed = Feed(data, Layout(make_mesh({}, jax.devices()[:1])), 2)
  (group, _), *_ = feed.groups([(0, 2)])
  for i in range(2):
    batch = feed.take({}, group, i)
    assert batch['weights'].tolist() == [1, 1, 0, 0]
    assert set(batch) == {'x', 'weights'}


@pytest.mark.parametrize(('name', 'names'), [
  ('tokens', ()), ('tokens', (None,)), ('targets', ()), ('weights', ()),
])  # fmt: skip
def test_tokens_are_reordered_whole_or_not_at_all(name, names):
  named = Spec((8,), np.dtype(np.int32), ('length',))
  spec = {k: named for k in ('tokens', 'targets', 'weights')} | {
    'label': Spec((), np.dtype(np.int32))
  }
  given = type('Given', (), {'spec': spec | {name: named._replace(names=names)}})
  with pytest.raises(InputError, match=rf"spec\['{name}'\].names=.*expected .'length',"):
    Reorder(given, zigzag(8, 2))
