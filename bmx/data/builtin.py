"""Real data that needs no network and no account."""

import functools
import importlib.util
import math
import pathlib
from typing import Any

import numpy as np

from bmx.core.errors import InputError, did_you_mean
from bmx.data.arrays import ArrayData, split_indices
from bmx.data.images.augment import Augmentation, augmentation
from bmx.data.images.normalization import Normalise
from bmx.data.images.pictures import Pixels

TABLES = ('iris', 'wine', 'breast_cancer', 'diabetes')


def digits(
  split: str = 'train',
  holdout: float = 0.0,
  crop: int = 0,
  flip: bool = False,
  augment: Augmentation | None = None,
  seed: int = 0,
  train: bool = True,
) -> ArrayData:
  """Returns 1,797 handwritten digits of 8×8 pixels: `image`, `label`.

  'test' has the 360 examples of `train_test_split(test_size=0.2, random_state=0)`; 'train' has the
  other 1,437, of which a share `holdout` is 'valid'.

  Args:
    split: 'train', 'valid' or 'test'.
    holdout: share of 'valid'.
    crop: pixels of padding of a random crop in training.
    flip: left-right flips in training.
    augment: further augmentation in training, such as `bmx.data.images.augment:augment`.
    seed: of augmentation.
    train: whether examples are augmented.

  Source: scikit-learn; Alpaydin & Kaynak 1998.
  """
  rows = _digits()
  image, labels = rows[:, :-1].reshape(-1, 8, 8, 1), rows[:, -1]
  chosen = _split(len(labels), split, holdout)
  arrays = {'image': image[chosen], 'label': labels[chosen].astype(np.int32)}
  metadata = {'num_classes': 10, 'shape': (8, 8, 1), 'source': f'scikit-learn digits, {split}'}
  state = {'pixels': Pixels((8, 8, 1)).state()}  # files are scaled to 0..1, as 0..16 is here
  operations = augmentation(crop, flip, augment)
  return ArrayData(arrays, metadata, seed, train, operations, Normalise(16.0), fitted=state)


def table(
  name: str,
  split: str = 'train',
  holdout: float = 0.0,
  seed: int = 0,
  train: bool = True,
) -> ArrayData:
  """Returns scikit-learn's iris, wine, breast_cancer (`x`, `label`) or diabetes (`x`, `y`).

  Splits as in `digits`. Columns and diabetes' target are standardized by the training examples.

  Args:
    name: iris, wine, breast_cancer or diabetes.
    split: 'train', 'valid' or 'test'.
    holdout: share of 'valid'.
    seed: of the order.
    train: training data.
  """
  from sklearn import datasets

  if name not in TABLES:
    raise InputError(f'unknown data set {name!r}{did_you_mean(name, TABLES)}')
  x, target = getattr(datasets, f'load_{name}')(return_X_y=True)
  fit = _split(len(x), 'train', holdout)
  chosen = _split(len(x), split, holdout)
  arrays: dict[str, Any] = {'x': _standard(x, fit)[chosen]}
  metadata: dict[str, Any] = {'columns': x.shape[1], 'source': f'scikit-learn {name}, {split}'}
  if name == 'diabetes':
    arrays['y'] = _standard(target[:, None], fit)[chosen]
    metadata['num_targets'] = 1
  else:
    arrays['label'] = target[chosen].astype(np.int32)
    metadata['num_classes'] = int(target.max()) + 1
  return ArrayData(arrays, metadata, seed, train)


def _standard(x: np.ndarray, fit: np.ndarray) -> np.ndarray:
  return ((x - x[fit].mean(0)) / x[fit].std(0)).astype(np.float32)


@functools.cache
def _digits() -> np.ndarray:
  """Returns pixels and labels [1797, 65] of scikit-learn, whose import would take a second."""
  package = importlib.util.find_spec('sklearn')
  assert package and package.origin
  path = pathlib.Path(package.origin).parent / 'datasets/data/digits.csv.gz'
  return np.loadtxt(path, np.float32, delimiter=',')


def _split(size: int, split: str, holdout: float) -> np.ndarray:
  """Returns the rows of a part, as scikit-learn's `train_test_split` draws them."""
  order, tested = np.random.RandomState(0).permutation(size), math.ceil(0.2 * size)
  train, test = order[tested:], order[:tested]
  if split == 'test':
    return test
  if split not in ('train', 'valid'):
    raise InputError(f'unknown split {split!r}; known: train, valid, test')
  return train[split_indices(len(train), split, holdout, ('train', 'valid'))]
