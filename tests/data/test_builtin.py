"""Data that every machine has, against scikit-learn itself."""

import numpy as np
import pytest
from sklearn import datasets
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from bmx.core.errors import InputError
from bmx.data.builtin import TABLES, digits, table
from tests.data.batched import batched

SPLIT = {'test_size': 0.2, 'random_state': 0}


def reference(name):
  """scikit-learn's own split: x of train and test, target of train and test."""
  return train_test_split(*getattr(datasets, f'load_{name}')(return_X_y=True), **SPLIT)


def rows(data):
  return data.rows(np.arange(data.size), np.arange(data.size))


def test_digits_are_scikit_learns():
  x_train, x_test, y_train, y_test = reference('digits')
  test = rows(batched(digits, 8, split='test', train=False))
  np.testing.assert_allclose(test['image'], x_test.reshape(-1, 8, 8, 1) / 16, rtol=1e-6)
  np.testing.assert_array_equal(test['label'], y_test)
  train = rows(batched(digits, 8))
  np.testing.assert_allclose(train['image'], x_train.reshape(-1, 8, 8, 1) / 16, rtol=1e-6)
  np.testing.assert_array_equal(train['label'], y_train)
  assert (len(y_train), len(y_test)) == (1437, 360)
  assert batched(digits, 8).metadata['num_classes'] == 10


def test_a_holdout_is_cut_from_the_training_part():
  whole = rows(batched(digits, 8))
  train, valid = (rows(batched(digits, 8, split, holdout=0.1)) for split in ('train', 'valid'))
  assert len(valid['label']) == 144
  image = lambda part: {x.tobytes() for x in part['image']}
  assert image(train) | image(valid) == image(whole)
  assert len(train['label']) + len(valid['label']) == len(whole['label'])
  np.testing.assert_array_equal(
    rows(batched(digits, 8, 'test', 0.1))['label'], reference('digits')[3]
  )


@pytest.mark.parametrize('name', TABLES)
def test_tables_are_standardised_by_the_training_part(name):
  x_train, x_test, y_train, y_test = reference(name)
  scaler = StandardScaler().fit(x_train)
  for split, x, y in (('train', x_train, y_train), ('test', x_test, y_test)):
    data = batched(table, 8, name, split)
    got = rows(data)
    np.testing.assert_allclose(got['x'], scaler.transform(x), rtol=1e-4, atol=1e-5)
    assert got['x'].dtype == np.float32
    if name == 'diabetes':
      expected = StandardScaler().fit(y_train[:, None]).transform(y[:, None])
      np.testing.assert_allclose(got['y'], expected, rtol=1e-5, atol=1e-6)
      assert data.metadata['num_targets'] == 1
    else:
      np.testing.assert_array_equal(got['label'], y)
      assert data.metadata['num_classes'] == len(np.unique(y_train))


def test_a_holdout_does_not_inform_the_scale():
  """The held-out part is not seen by the scaler either."""
  train = rows(batched(table, 8, 'wine', 'train', holdout=0.3))['x']
  np.testing.assert_allclose(train.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(train.std(0), 1, rtol=1e-5)


def test_names_that_are_not_there():
  with pytest.raises(InputError, match="unknown data set 'irsi'; did you mean 'iris'"):
    batched(table, 8, 'irsi')
  for make in (digits, lambda split: table('iris', split)):
    with pytest.raises(InputError, match="unknown split 'tset'; known: train, valid, test"):
      make(split='tset')
