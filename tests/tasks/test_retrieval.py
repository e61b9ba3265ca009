"""Retrieval: the loss and the metrics against plain numpy."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.data.batches import Batches
from bmx.data.recommend.synthetic import ratings
from bmx.models.mlp import MLP
from bmx.models.towers import TwoTowers
from bmx.parallel.sharding import unbox
from bmx.tasks.retrieval import (
  Retrieval,
  ndcg_at_10,
  popularity_ndcg_at_10,
  popularity_recall_at_10,
  recall_at_10,
)
from bmx.train.gradients import Accumulate, Gradient

NOISE = Noise(np.zeros(2, np.uint32), 0)
TASK = Retrieval(TwoTowers(9, 7, width=4), temperature=0.5)


def oracle(u, v, item, log_q, weights, temperature):
  """Σ weight · -log softmax, of loops over rows and columns; numpy, float64."""
  total = 0.0
  for i in range(len(item)):
    logits = []
    for j in range(len(item)):
      same = item[j] == item[i] and i != j
      if not same and (weights[j] > 0 or i == j):
        logits.append((i == j, u[i] @ v[j] / temperature - log_q[j]))
    normalizer = np.log(sum(np.exp(x) for _, x in logits))
    own = next(x for mine, x in logits if mine)
    total += weights[i] * (normalizer - own) if weights[i] else 0
  return total


@pytest.mark.parametrize('correction', [True, False])
def test_the_loss_is_that_of_loops(correction):
  random = np.random.default_rng(0)
  item = np.array([3, 1, 3, 0, 6, 1, -1, 2])
  weights = np.float32([1, 1, 1, 0, 2, 1, 1, 1])  # a row of padding, one of weight 2
  batch = {'user': np.arange(8), 'item': item, 'weights': weights,
           'log_q': np.log(random.random(8)).astype(np.float32)}  # fmt: skip
  u, v = random.normal(size=(2, 8, 5)).astype(np.float32)
  task = dataclasses.replace(TASK, correction=correction)
  total, count, _ = task.score((jnp.array(u), jnp.array(v)), batch, train=True)
  weights = weights * (item >= 0)  # an unknown item neither counts nor is a negative
  log_q = batch['log_q'] if correction else np.zeros(8)
  assert float(total) == pytest.approx(oracle(u, v, item, log_q, weights, 0.5), 1e-5)
  assert float(count) == weights.sum() == 7


def test_accumulation_is_refused():
  with pytest.raises(InputError, match='grad.steps=2: expected 1.*micro-batches have another obj'):
    Accumulate(Gradient(TASK), 2, 8)


@functools.cache
def splits():
  train = ratings(60, 30, 12, split='train')
  valid = ratings(60, 30, 12, split='valid', fitted=train.state(), train=False)
  return train, valid


def test_predictions_are_the_best_items_that_were_not_seen():
  train, valid = splits()
  users, items = (train.metadata[k] for k in ('num_users', 'num_items'))
  task = Retrieval(TwoTowers(users, items, width=4, stddev=1.0), train.metadata, block=7, top=12)
  task.validate(train.metadata)
  batch = valid.rows(np.arange(valid.size), np.arange(valid.size))
  task.check_rows(batch, np.arange(valid.size))
  variables = unbox(task.init(NOISE, batch))
  out = task.predict(variables, batch, NOISE)
  p = variables['params']
  table = np.asarray(p['item']['ids']['table'])[:items]
  scores = np.asarray(p['user']['ids']['table'])[batch['user']] @ table.T
  scores += np.asarray(p['bias']['table'])[:items, 0][None]
  for row, seen in enumerate(batch['seen']):
    allowed = [i for i in np.argsort(-scores[row], kind='stable') if i not in seen]
    np.testing.assert_array_equal(out['prediction'][row], allowed[:12])
  again = dataclasses.replace(task, exclude_seen=False).predict(variables, batch, NOISE)
  np.testing.assert_array_equal(again['prediction'][:, 0], scores.argmax(1))


def test_metrics_are_those_of_loops():
  random = np.random.default_rng(0)
  prediction = np.stack([random.permutation(40)[:15] for _ in range(200)])
  item = random.integers(-1, 40, 200)
  recall, gain = [], []
  for ranked, wanted in zip(prediction.tolist(), item, strict=True):
    first = ranked[:10]
    recall.append(wanted in first)
    gain.append(1 / np.log2(first.index(wanted) + 2) if wanted in first else 0)
  rows = {'prediction': prediction, 'item': item}
  assert recall_at_10(rows) == pytest.approx(np.mean(recall))
  assert ndcg_at_10(rows) == pytest.approx(np.mean(gain))
  nothing = {'prediction': np.full((3, 10), -1), 'item': np.full(3, -1)}
  assert recall_at_10(nothing) == ndcg_at_10(nothing) == 0


def test_popularity_is_the_order_of_counts():
  train, valid = splits()
  counts = np.bincount(train.arrays['item'], minlength=train.metadata['num_items'])
  hits, gain = [], []
  for user, wanted in zip(valid.arrays['user'], valid.arrays['item'], strict=True):
    seen = set(train.arrays['item'][train.arrays['user'] == user].tolist())
    ranked = [i for i in np.argsort(-counts, kind='stable') if i not in seen][:10]
    hits.append(wanted in ranked)
    gain.append(1 / np.log2(ranked.index(wanted) + 2) if wanted in ranked else 0)
  data = Batches(valid, 16, train=False)
  rows = {'prediction': np.zeros((60, 10), int), 'item': valid.arrays['item']}
  assert popularity_recall_at_10(rows, data) == pytest.approx(np.mean(hits))
  assert popularity_ndcg_at_10(rows, data) == pytest.approx(np.mean(gain))


@pytest.mark.parametrize(('call', 'message'), [
  (lambda: dataclasses.replace(TASK, temperature=0), 'temperature=0: expected'),
  (lambda: dataclasses.replace(TASK, top=0), 'top=0: expected'),
  (lambda: Retrieval(MLP(3)), 'task.model=MLP: expected bmx.models.towers:TwoTowers'),
  (lambda: TASK.validate({'num_classes': 3}), 'the data have no num_users'),
  (lambda: TASK.validate({'num_users': 9, 'num_items': 8}), "num_items=7: expected 8.*'auto'"),
  (lambda: TASK.check_rows({'user': np.array([0, 9])}, np.array([4, 5])),
   'user=9 of example 5: expected below 9'),
  (lambda: recall_at_10({'prediction': np.zeros((3, 5)), 'item': np.zeros(3)}), 'set task.top=10'),
  (lambda: ndcg_at_10({'prediction': np.zeros((3, 10))}), 'the metric reads prediction, item'),
])  # fmt: skip
def test_mistakes_are_named(call, message):
  with pytest.raises(InputError, match=message):
    call()
