"""Mixup and CutMix: soft targets, weights, and what they leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.models.mlp import MLP
from bmx.tasks import mixing
from bmx.tasks.classification import Classification

N, CLASSES = 8, 3


def batch(seed=0):
  random = np.random.default_rng(seed)
  return {
    'image': random.normal(size=(N, 6, 10, 2)).astype(np.float32),
    'label': random.integers(0, CLASSES, N).astype(np.int32),
    'weights': np.array([1, 0.5, 0, 2, 1, 1, 0, 1], np.float32),
  }


def noise(number):
  return Noise(jax.random.PRNGKey(number), jnp.int32(0))


def test_mixup_is_a_blend():
  rows = batch()
  shares = []
  for number in range(20):
    got = mixing.mix(rows, 'image', noise(number), 0.4, 0.0)
    share = np.asarray(got['mixed_share'])
    alone = (rows['weights'] == 0) | (np.roll(rows['weights'], 1) == 0)
    assert (share[alone] == 1).all()
    assert len(set(share[~alone])) == 1
    lam = share.reshape(-1, 1, 1, 1)
    expected = lam * rows['image'] + (1 - lam) * np.roll(rows['image'], 1, 0)
    np.testing.assert_allclose(got['image'], expected, rtol=1e-5, atol=1e-6)
    shares.append(share.min())
  assert np.mean([0.3 < s < 0.7 for s in shares]) < 0.5  # Beta(0.4, 0.4) is at the ends
  np.testing.assert_array_equal(got['mixed_label'], np.roll(rows['label'], 1))
  np.testing.assert_array_equal(got['weights'], rows['weights'])


def test_cutmix_exchanges_a_rectangle_of_the_share_that_it_says():
  rows = batch() | {'weights': np.ones(N, np.float32)}
  areas = set()
  for number in range(20):
    got = mixing.mix(rows, 'image', noise(number), 0.0, 1.0)
    changed = (np.asarray(got['image']) != rows['image']).any(-1)
    other = np.where(changed[..., None], np.roll(rows['image'], 1, 0), rows['image'])
    np.testing.assert_array_equal(got['image'], other)
    assert (changed == changed[0]).all()
    rows_in, columns_in = changed[0].any(1), changed[0].any(0)
    assert changed[0].sum() == rows_in.sum() * columns_in.sum()
    assert np.asarray(got['mixed_share']) == pytest.approx(1 - changed[0].mean(), abs=1e-6)
    areas.add(int(changed[0].sum()))
  assert len(areas) > 5


def test_both_kinds_share_the_batches():
  rows = batch() | {'weights': np.ones(N, np.float32)}
  cut = 0
  for number in range(40):
    got = np.asarray(mixing.mix(rows, 'image', noise(number), 1.0, 1.0)['image'])
    cut += ((got == rows['image']) | (got == np.roll(rows['image'], 1, 0))).all()
  assert 8 <= cut <= 32


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_the_loss_is_that_of_soft_targets(smoothing):
  task = Classification(MLP(CLASSES, (4,)), smoothing=smoothing, mixup=1.0)
  rows = task.prepare(batch(), noise(3), train=True)
  logits = np.random.default_rng(1).normal(size=(N, CLASSES)).astype(np.float32)
  total, count, metrics = task.score(jnp.asarray(logits), rows, train=True)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  one_hot = np.eye(CLASSES)
  share = np.asarray(rows['mixed_share'], np.float64)[:, None]
  own = share * rows['weights'][:, None] * one_hot[rows['label']]
  other = (1 - share) * np.roll(rows['weights'], 1)[:, None] * one_hot[np.roll(rows['label'], 1)]
  target = own + other
  smooth = (1 - smoothing) * target + smoothing * target.sum(-1, keepdims=True) / CLASSES
  assert total == pytest.approx(-(smooth * log_p).sum(), rel=1e-5)
  assert count == pytest.approx(target.sum(), rel=1e-6)
  hits = target[np.arange(N), logits.argmax(-1)].sum()
  np.testing.assert_allclose(metrics['accuracy'], [hits, target.sum()], rtol=1e-5)


def test_rows_without_weight_spoil_nothing():
  rows = batch()
  rows['image'][rows['weights'] == 0] = np.nan
  task = Classification(MLP(CLASSES, (4,)), mixup=1.0, cutmix=1.0)
  for number in range(4):
    mixed = task.prepare(rows, noise(number), train=True)
    assert np.isfinite(np.asarray(mixed['image'])[rows['weights'] > 0]).all()
    logits = jnp.asarray(mixed['image'])[:, 0, :CLASSES, 0]
    assert np.isfinite(task.score(logits, mixed, train=True)[0])


def test_evaluation_is_not_mixed():
  task = Classification(MLP(CLASSES, (4,)), mixup=1.0, cutmix=1.0)
  rows = batch()
  assert task.prepare(rows, noise(0), train=False) is rows
  assert Classification(MLP(CLASSES, (4,))).prepare(rows, noise(0), train=True) is rows


def test_mixed_examples_are_coupled():
  assert Classification(MLP(CLASSES, (4,))).coupling == 'none'
  assert Classification(MLP(CLASSES, (4,)), cutmix=0.5).coupling == 'statistics'


def test_mixtures_that_cannot_be():
  for word in ('mixup', 'cutmix'):
    with pytest.raises(InputError, match=f'^{word}=-1.0: expected'):
      Classification(MLP(CLASSES, (4,)), **{word: -1.0})
  with pytest.raises(InputError, match=r'task.cutmix=1.0: expected images .*not x of'):
    rows = batch() | {'x': np.zeros((N, 3), np.float32)}
    mixing.mix(rows, 'x', noise(0), 0.0, 1.0)
