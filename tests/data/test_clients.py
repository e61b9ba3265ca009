"""Clients: who holds which examples, and the batches of rounds."""

import itertools

import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.data.arrays import ArrayData
from bmx.data.batches import Batches
from bmx.data.builtin import digits
from bmx.data.clients import Clients, by_column, dirichlet, sources
from bmx.data.tables import table
from bmx.tasks.clients import client_lower_quartile, client_median, client_worst_tenth

SIZES = (5, 1, 9, 3)
STARTS = np.cumsum([0, *SIZES])


def examples(n=18, classes=3):
  x = np.arange(n, dtype=np.float32)[:, None]
  return ArrayData({'x': x, 'label': np.arange(n, dtype=np.int32) % classes},
                   {'num_classes': classes})  # fmt: skip


def clients(per_round=2, passes=1, train=True):
  groups = [np.arange(a, b) for a, b in itertools.pairwise(STARTS)]
  return Clients(examples(), groups, 'abcd', per_round, passes, seed=3, train=train)


@pytest.mark.parametrize('passes', [0, 1, 2])
def test_a_round_has_the_rows_of_its_clients_one_after_another(passes):
  batches = Batches(clients(passes=passes), 12)
  seen = set()
  for step in range(20):
    chosen, weights = batches.compose(step, 1)
    rows = batches.rows(chosen[0], step * 12 + np.arange(12))
    owner = rows['client'].reshape(2, 6)
    assert (owner == owner[:, :1]).all() and owner[0, 0] != owner[1, 0]
    for k, own, weight in zip(owner[:, 0], rows['x'].reshape(2, 6), weights.reshape(2, 6),
                              strict=True):  # fmt: skip
      assert ((own >= STARTS[k]) & (own < STARTS[k + 1])).all()
      assert weight.sum() == (min(6, passes * SIZES[k]) if passes else 6)
      times = np.unique(own[weight > 0], return_counts=True)[1]
      assert times.max() - times.min() <= 1  # each example as often as another
    np.testing.assert_array_equal(rows['client_examples'], np.array(SIZES)[rows['client']])
    seen |= set(owner[:, 0])
  assert seen == {0, 1, 2, 3}
  # A function of the step: in groups of any size, in any order.
  np.testing.assert_array_equal(batches.compose(0, 9)[0][7], batches.compose(7, 1)[0][0])


def test_evaluation_reads_every_example_once():
  batches = Batches(clients(train=False), 18, train=False)
  chosen, weights = batches.compose(0, 1)
  assert weights is None
  np.testing.assert_array_equal(chosen[0], np.arange(18))


def test_shares_are_more_unequal_at_a_small_alpha():
  """Every example has one client; the share of a client's largest class falls with alpha."""
  found = []
  for alpha in (0.1, 1.0, 100.0, 0.0):
    split = dirichlet(digits(), 20, 4, alpha, seed=1)
    assert sorted(np.concatenate(split.groups)) == list(range(1437))
    labels = [digits().arrays['label'][g] for g in split.groups]
    found.append(np.mean([np.bincount(x).max() / len(x) for x in labels]))
  assert found[0] > 0.5 > found[1] > found[2]
  assert np.ptp([len(g) for g in split.groups]) <= 1
  again = dirichlet(digits(), 20, 4, 0.1, seed=1)
  other = dirichlet(digits(), 20, 4, 0.1, seed=2)
  first = dirichlet(digits(), 20, 4, 0.1, seed=1)
  assert all(np.array_equal(a, b) for a, b in zip(first.groups, again.groups, strict=True))
  assert not all(np.array_equal(a, b) for a, b in zip(first.groups, other.groups, strict=True))


def test_clients_of_a_column_that_the_model_does_not_read(tmp_path):
  path = tmp_path / 'visits.csv'
  rows = [f'{["north", "south", "west"][i % 3]},{i},{"yes" if i % 2 else "no"}' for i in range(30)]
  path.write_text('\n'.join(['clinic,age,ill', *rows]))
  read = table(str(path), 'ill', drop=('clinic',))
  split = by_column(read, 'clinic', per_round=2)
  assert tuple(split.names) == ('north', 'south', 'west')
  assert [g.tolist() for g in split.groups] == [list(range(i, 30, 3)) for i in range(3)]
  assert split.describe(np.array([0, 29])) == [
    {'client': 'north', 'clinic': 'north'}, {'client': 'west', 'clinic': 'west'},
  ]  # fmt: skip
  by_number = by_column(examples(), 'label', per_round=1)
  assert [len(g) for g in by_number.groups] == [6, 6, 6]
  with pytest.raises(InputError, match="data.column='clnic': .* found clinic.*did you mean"):
    by_column(read, 'clnic', per_round=2)


def test_a_part_each():
  split = sources({'a': examples(4), 'b': examples(7)}, per_round=2)
  assert split.size == 11 and tuple(split.names) == ('a', 'b')
  rows = split.rows(np.arange(11), np.arange(11))
  np.testing.assert_array_equal(rows['x'][:, 0], [*range(4), *range(7)])
  np.testing.assert_array_equal(rows['client'], [0] * 4 + [1] * 7)


def test_metrics_by_client_against_a_loop():
  batches = Batches(clients(train=False), 18, train=False)
  label = np.zeros(18, int)
  hits = np.array([1, 1, 0, 0, 0, 1, *[1] * 8, 0, 1, 0, 0])
  rows = {'label': label, 'prediction': np.where(hits, 0, 1)}
  each = [2 / 5, 1.0, 8 / 9, 1 / 3]
  assert client_worst_tenth(rows, batches) == pytest.approx(1 / 3)
  assert client_median(rows, batches) == pytest.approx(np.median(each))
  assert client_lower_quartile(rows, batches) == pytest.approx(np.quantile(each, 0.25))
  with pytest.raises(InputError, match='whose examples belong to clients'):
    client_median(rows, Batches(examples(), 4))
  with pytest.raises(InputError, match='expected predictions of classes, found label'):
    client_median({'label': label}, batches)


def test_refusals():
  with pytest.raises(InputError, match="client 'b': expected at least one example; 1 of 2"):
    Clients(examples(), [np.arange(3), np.arange(0)], 'ab', 1)
  with pytest.raises(InputError, match='data.per_round=5: expected from 1 to 4, the number of cl'):
    clients(per_round=5)
  with pytest.raises(InputError, match='data.clients=19: expected from 1 to 18'):
    dirichlet(examples(), 19, 2)
  with pytest.raises(InputError, match='batch_size=9: expected a multiple of data.per_round=2'):
    Batches(clients(), 9).compose(0, 1)
  with pytest.raises(InputError, match='data.alpha=0.001: .* larger alpha or fewer clients'):
    dirichlet(examples(), 18, 2, 0.001)
  with pytest.raises(InputError, match='data.passes=-1'):
    clients(passes=-1)
