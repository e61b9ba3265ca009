"""Small drawn data for tests and first tries: clicks, ratings. The same for every seed of a run."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bmx.core import streams
from bmx.data.arrays import ArrayData
from bmx.data.recommend import clicks as click_logs
from bmx.data.recommend import ratings as rated
from bmx.data.recommend.ratings import Ratings

WIDTH = 4  # of the vectors behind the draws


def clicks(
  size: int = 2000,
  split: str = 'all',
  holdout: float = 0.0,
  fitted: Mapping[str, Any] | None = None,
  seed: int = 0,
  train: bool = True,
) -> ArrayData:
  """Clicks on ads at sites; the products of their vectors decide, and the hour a little.

  Args:
    size: records.
    split: 'all', 'train' or 'valid'.
    holdout: share of 'valid'.
    fitted: `state()` of the training data.
    seed: of the run.
    train: training data.
  """
  random = streams.generator(0, streams.SYNTHETIC)
  sites, ads = random.normal(size=(12, WIDTH)), random.normal(size=(15, WIDTH))
  site, ad, hour = (random.integers(n, size=size) for n in (12, 15, 24))
  logit = (sites[site] * ads[ad]).sum(-1) + np.sin(hour / 4) - 1
  label = (random.random(size) < 1 / (1 + np.exp(-logit))).astype(int)
  given = {'click': label.tolist(), 'site': [f's{i}' for i in site], 'ad': [f'a{i}' for i in ad],
           'device': [f'd{i}' for i in random.integers(500, size=size)],
           'hour': hour.tolist()}  # fmt: skip
  return click_logs.clicks(
    target='click', hashed=('device',), buckets=100, split=split, holdout=holdout, given=given,
    fitted=fitted, seed=seed, train=train,
  )  # fmt: skip


def ratings(
  users: int = 200,
  items: int = 100,
  each: int = 20,
  split: str = 'all',
  fitted: Mapping[str, Any] | None = None,
  seed: int = 0,
  train: bool = True,
) -> Ratings:
  """Ratings by users who prefer items of their own direction, and popular ones.

  Args:
    users: number of users.
    items: number of items.
    each: ratings of a user.
    split: 'all', 'train', 'valid' or 'test'.
    fitted: `state()` of the training data.
    seed: of the run.
    train: training data.
  """
  random = streams.generator(0, streams.SYNTHETIC, 1)
  u, v = random.normal(size=(users, WIDTH)), random.normal(size=(items, WIDTH))
  score = 2 * u @ v.T + 0.5 * random.normal(size=items) + random.gumbel(size=(users, items))
  order = np.argsort(-score, 1)[:, :each]
  order = np.take_along_axis(
    order, random.permuted(np.tile(np.arange(each), (users, 1)), axis=1), 1
  )
  given = {'userId': np.repeat(np.arange(1, users + 1), each).tolist(),
           'movieId': (1 + order.reshape(-1)).tolist(), 'rating': [5.0] * users * each,
           'timestamp': np.tile(np.arange(each), users).tolist()}  # fmt: skip
  return rated.ratings(split=split, given=given, fitted=fitted, seed=seed, train=train)
