"""Click models and towers against oracles of a few lines of numpy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.models.recsys import DCN, DeepFM, WideDeep, pairwise, rounded
from bmx.models.towers import TwoTowers
from bmx.parallel.sharding import unbox

SIZES, NUMBERS, B, D = (5, 300, 7), 2, 6, 4
KEY = jax.random.PRNGKey(0)


def examples():
  random = np.random.default_rng(0)
  x = random.normal(size=(B, NUMBERS)).astype(np.float32)
  ids = np.stack([random.integers(n, size=B) for n in SIZES], 1).astype(np.int32)
  return x, ids


def made(kind, **words):
  model = kind(SIZES, NUMBERS, width=D, widths=(8,), stddev=0.5, **words)
  x, ids = examples()
  params = unbox(model.init(KEY, x, ids))['params']
  return (
    model,
    jax.tree.map(np.asarray, params),
    np.asarray(model.apply({'params': params}, x, ids)),
  )


def embedded(block, x, ids):
  """The rows that each field has in the shared table, behind the vectors of the numbers."""
  starts = np.cumsum([0, *SIZES[:-1]])
  rows = block['categories']['table'][ids + starts[None]]
  return np.concatenate([x[..., None] * block['numeric'][None], rows], 1)


def perceptron(p, v):
  hidden = np.maximum(v.reshape(B, -1) @ p['dense_0']['kernel'] + p['dense_0']['bias'], 0)
  return hidden @ p['head']['kernel'] + p['head']['bias']


def test_pairs_are_the_sum_over_all_pairs():
  v = np.random.default_rng(1).normal(size=(B, 9, D)).astype(np.float32)
  expected = [sum(a @ b for a, b in itertools.combinations(row, 2)) for row in v]
  np.testing.assert_allclose(pairwise(jnp.asarray(v)), expected, rtol=1e-4)


def test_wide_and_deep():
  _, p, out = made(WideDeep)
  x, ids = examples()
  expected = embedded(p['linear'], x, ids).sum(1) + perceptron(
    p['deep'], embedded(p['embed'], x, ids)
  )
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-6)


def test_deepfm_adds_the_pairs():
  _, p, out = made(DeepFM)
  x, ids = examples()
  v = embedded(p['embed'], x, ids)
  pairs = [[sum(a @ b for a, b in itertools.combinations(row, 2))] for row in v]
  expected = embedded(p['linear'], x, ids).sum(1) + np.array(pairs) + perceptron(p['deep'], v)
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(('rank', 'structure'), [(0, 'stacked'), (3, 'parallel')])
def test_crosses_of_dcn(rank, structure):
  _, p, out = made(DCN, crosses=2, rank=rank, structure=structure)
  x, ids = examples()
  v = embedded(p['embed'], x, ids)
  first = y = v.reshape(B, -1)
  for i in range(2):
    if rank:
      up = p[f'cross_{i}_up']
      product = y @ p[f'cross_{i}_down']['kernel'] @ up['kernel'] + up['bias']
    else:
      product = y @ p[f'cross_{i}']['kernel'] + p[f'cross_{i}']['bias']
    y = first * product + y
  expected = perceptron(p['deep'], y)
  if structure == 'parallel':
    expected = y @ p['head']['kernel'] + perceptron(p['deep'], v)
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-6)


def test_counts_and_tables():
  model, p, _ = made(DeepFM)
  assert model.facts.sparse_tables == ('embed/categories/table', 'linear/categories/table')
  assert set(model.facts.sparse_tables) <= set(tree.named(p))
  fields = NUMBERS + len(SIZES)
  published = (sum(SIZES) + NUMBERS) * (D + 1) + (fields * D + 1) * 8 + 8 + 1
  assert tree.count(p) - model.facts.padded_parameters == published
  assert rounded(sum(SIZES)) % 128 == 0
  assert DeepFM(SIZES, NUMBERS, sparse=False).facts.sparse_tables == ()


@pytest.mark.parametrize(('model', 'message'), [
  (DeepFM((), 0), 'expected at least one column'),
  (DeepFM((5, 0, 3), 2), 'field_sizes=.* expected at least 1'),
  (DeepFM((5, 3), 2), 'x and ids have .2, 3. columns: expected num_numeric=2 and 2 field_sizes'),
  (DeepFM((2**30, 2**30, 2**30), 2), 'field_sizes: 3,221,225,472 rows: expected below'),
  (DCN(SIZES, NUMBERS, structure='deep'), "structure='deep': expected 'stacked' or 'parallel'"),
])  # fmt: skip
def test_mistakes_are_named(model, message):
  with pytest.raises(InputError, match=message):
    jax.eval_shape(model.init, KEY, *examples())


def test_towers():
  features = np.array([[0, 2], [1, -1], [-1, -1]], np.int32)
  model = TwoTowers(4, 3, width=D, item_features=(3, 2), stddev=0.5)
  variables = unbox(model.init(KEY, jnp.zeros(2, int)))
  p = jax.tree.map(np.asarray, variables['params'])
  given = {'params': variables['params'], 'catalog': {'item': {'features': jnp.array(features)}}}
  own = p['item']['features']
  mean = np.stack([(own[0] + own[2]) / 2, own[1], np.zeros(D)])
  items = np.concatenate([p['item']['ids']['table'][:3] + mean, p['bias']['table'][:3]], 1)
  user = np.array([3, 1])
  u, v = model.apply(given, user)
  np.testing.assert_allclose(v, items, rtol=1e-5)
  np.testing.assert_allclose(u[:, :D], p['user']['ids']['table'][user])
  np.testing.assert_array_equal(u[:, D], 1)
  pair = model.apply(given, user, None, np.array([2, 0]), method='pairs')
  np.testing.assert_allclose(pair[1], items[[2, 0]], rtol=1e-5)
  deep = TwoTowers(4, 3, width=D, widths=(8,))
  assert deep.apply(unbox(deep.init(KEY, user)), user)[1].shape == (3, D + 1)


def test_a_history_is_the_mean_of_its_rows():
  past = np.array([[2, 0, -1], [-1, -1, -1]])
  model = TwoTowers(4, 3, history=3, user_ids=False, width=D, stddev=0.5)
  user = np.array([3, 1])
  variables = unbox(model.init(KEY, user, past))
  rows = np.asarray(variables['params']['past']['table'])
  u, _ = model.apply(variables, user, past)
  np.testing.assert_allclose(u[:, :D], [(rows[2] + rows[0]) / 2, np.zeros(D)], rtol=1e-6)
  assert model.facts.sparse_tables == ('item/ids/table', 'past/table', 'bias/table')
  assert set(model.facts.sparse_tables) <= set(tree.named(variables['params']))
  with pytest.raises(InputError, match='history=3: expected as many items of each user, not 2'):
    model.apply(variables, user, past[:, :2])
  with pytest.raises(InputError, match='user_ids=False: expected a history'):
    jax.eval_shape(TwoTowers(4, 3, user_ids=False).init, KEY, user)
