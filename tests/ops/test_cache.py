"""The key-value cache: decoding token by token equals the whole forward pass."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.core.tree import nbytes
from bmx.models.gpt import GPT
from bmx.ops.cache import Cache, LayerCache
from bmx.ops.stored import dequantize
from tests.models.weights import jit, variables

V, LENGTH, SLOTS = 23, 16, 14
SIZES = (9, 4, 12, 1)  # tokens of each row
PARTS = (5, 5, 1, 1)  # they come so many at a time, the last one by one
LLAMA3 = {
  'factor': 8.0,
  'low_freq_factor': 1.0,
  'high_freq_factor': 4.0,
  'original_max_position_embeddings': 8.0,
}
KINDS = {
  'learned': {},
  'sinusoidal': {'positions': 'sinusoidal', 'tied': False, 'vocab_pad': 9},
  'llama': {'positions': 'rotary', 'rope_scaling': LLAMA3, 'kv_heads': 1, 'norm': 'rms',
            'gated': True, 'bias': False, 'qkv_bias': True},
  'large heads, a window': {'positions': 'rotary', 'head_dim': 12, 'kv_heads': 2, 'window': 4},
}  # fmt: skip


def gpt(**options):
  return GPT(
    **{'vocab_size': V, 'max_seq_len': LENGTH, 'width': 16, 'depth': 2, 'heads': 4} | options
  )


def rows():
  """Tokens from slot 0 on, whatever behind them."""
  return np.random.default_rng(0).integers(0, V, (len(SIZES), LENGTH)).astype(np.int32)


@functools.cache
def start(model):
  return variables(model, rows(), scale=0.3)['params']


@functools.cache
def whole(model):
  run = jit(lambda params, ids: model.apply({'params': params}, ids))
  return np.asarray(run(start(model), rows()), np.float32)


@functools.cache
def extender(model):
  """step(params, tokens, cache) -> (logits, cache)."""

  def step(params, ids, cache):
    hidden, cache = model.apply({'params': params}, ids, cache, method='extend')
    return model.apply({'params': params}, hidden, method='logits'), cache

  return jit(step)


def padded(ids, sizes, length):
  """On the left -> (tokens, first slots)."""
  out = np.full((len(sizes), length), V - 1, np.int32)
  for row, (one, n) in enumerate(zip(ids, sizes, strict=True)):
    out[row, length - n :] = one[:n]
  return out, length - np.array(sizes, np.int32)


def decode(model, ids, first, parts=PARTS, params=None):
  """-> logits [B, T, V], and the cache behind them."""
  cache, said, at = model.empty_cache(len(ids), SLOTS, jnp.asarray(first)), [], 0
  for n in parts:
    logits, cache = extender(model)(params or start(model), ids[:, at : at + n], cache)
    said, at = [*said, np.asarray(logits, np.float32)], at + n
  assert int(cache.at) == at == ids.shape[1]
  return np.concatenate(said, axis=1), cache


@pytest.mark.parametrize('kind', KINDS)
def test_decoding_in_parts_is_the_whole_forward(kind):
  """Rows of unequal length, padded on the left, each as if it were alone and began at once."""
  model = gpt(**KINDS[kind])
  said, _ = decode(model, *padded(rows(), SIZES, 12))
  assert np.isfinite(said).all()
  for row, n in enumerate(SIZES):
    expected = whole(model)[row, :n]
    np.testing.assert_allclose(said[row, 12 - n :], expected, atol=1e-4)
  assert whole(model)[..., :V].std() > 0.1


def test_what_stands_in_the_padding_does_not_matter():
  model = gpt(**KINDS['large heads, a window'])
  ids, first = padded(rows(), SIZES, 12)
  other = np.where(np.arange(12) < first[:, None], 0, ids)
  said, again = (decode(model, x, first)[0] for x in (ids, other))
  for row, n in enumerate(SIZES):
    np.testing.assert_array_equal(said[row, 12 - n :], again[row, 12 - n :])


def test_a_row_does_not_depend_on_those_beside_it():
  model = gpt()
  ids, first = padded(rows(), SIZES, 12)
  other = ids.copy()
  other[1:] = (ids[1:] + 1) % V
  np.testing.assert_array_equal(decode(model, other, first)[0][0], decode(model, ids, first)[0][0])


def test_rows_are_taken_in_any_order():
  """One twice, one not at all: what follows is theirs."""
  model, order = gpt(), np.array([2, 0, 2, 3])
  ids, first = padded(rows(), SIZES, 12)
  _, cache = decode(model, ids[:, :11], first, PARTS[:3])
  step = extender(model)
  said, after = step(start(model), ids[:, 11:], cache)
  moved, behind = step(start(model), ids[order, 11:], cache.rows(jnp.asarray(order)))
  np.testing.assert_array_equal(moved, np.asarray(said)[order])
  np.testing.assert_array_equal(behind.first, first[order])
  for given, expected in zip(behind.keys + behind.values, after.keys + after.values, strict=True):
    np.testing.assert_array_equal(given, np.asarray(expected)[order])


def test_bfloat16_is_near_float32():
  model = gpt(dtype='bfloat16')
  params = start(gpt())
  ids, first = padded(rows(), SIZES, 12)
  said, cache = decode(model, ids, first, params=params)
  assert cache.keys[0].dtype == cache.values[0].dtype == jnp.bfloat16
  for row, n in enumerate(SIZES):
    expected = whole(gpt())[row, :n]
    assert np.abs(said[row, 12 - n :] - expected).max() < 0.05 * np.abs(expected).max()


def test_a_cache_has_the_shape_that_its_model_writes():
  cache = gpt(kv_heads=2, head_dim=12, depth=3).empty_cache(5, SLOTS, jnp.arange(5))
  assert cache.keys[0].shape[2] == SLOTS and len(cache.keys) == len(cache.values) == 3
  assert {x.shape for x in cache.keys + cache.values} == {(5, 2, SLOTS, 12)}
  assert int(cache.at) == 0 and cache.first.tolist() == [0, 1, 2, 3, 4]


def test_positions_count_from_the_first_token():
  cache = Cache.empty(1, 3, 8, 1, 2, jnp.float32, jnp.array([0, 2, 5]))
  assert cache.positions(4).tolist() == [[0, 1, 2, 3], [0, 0, 0, 1], [0, 0, 0, 0]]
  later = cache.advance([cache.layer(0)], 4)
  assert later.positions(2).tolist() == [[4, 5], [2, 3], [0, 0]]


def softmax(x):
  x = np.exp(x - x.max())
  return x / x.sum()


@pytest.mark.parametrize('window', [0, 3])
def test_a_layer_attends_to_what_is_written(window):
  """Against loops; slots that nothing was written to hold anything."""
  random = np.random.default_rng(0)
  draw = lambda *shape: random.normal(size=shape).astype(np.float32)
  slots, at, first = 9, 4, np.array([0, 3])
  key, value, q = draw(2, slots, 2, 4), draw(2, slots, 2, 4), draw(2, 3, 6, 4)
  k, v = draw(2, 3, 2, 4), draw(2, 3, 2, 4)
  heads_first = lambda x: jnp.asarray(x.swapaxes(1, 2))
  layer = LayerCache(*map(heads_first, (key, value)), jnp.int32(at), jnp.asarray(first))
  layer = jit(LayerCache.write)(layer, k, v)
  key[:, at : at + 3], value[:, at : at + 3] = k, v
  np.testing.assert_array_equal(layer.key, heads_first(key))
  np.testing.assert_array_equal(layer.value, heads_first(value))
  given = jit(lambda layer, q: layer.attend(q, window))(layer, q)
  for b, t, n in np.ndindex(2, 3, 6):
    low = max(first[b], at + t - window + 1 if window else 0)
    seen = slice(low, at + t + 1)
    weights = softmax(key[b, seen, n // 3] @ q[b, t, n] / 2)
    np.testing.assert_allclose(given[b, t, n], weights @ value[b, seen, n // 3], atol=1e-5)


def test_a_scanned_stack_keeps_no_cache():
  model = gpt(scan=True)
  params = start(model)
  cache = model.empty_cache(1, SLOTS, jnp.zeros(1))
  with pytest.raises(
    InputError, match='scan=True: a cache expects layers one by one; set scan=False'
  ):
    jax.eval_shape(extender(model), params, rows()[:1, :3], cache)


def test_a_layer_of_codes_attends_to_the_values_that_they_stand_for():
  random = np.random.default_rng(1)
  draw = lambda *shape: random.normal(size=shape).astype(np.float32)
  k, v, q = draw(2, 3, 2, 4), draw(2, 3, 2, 4), draw(2, 3, 6, 4)
  first = jnp.array([0, 1])
  empty, coded = (Cache.empty(1, 2, 9, 2, 4, d, first).layer(0) for d in (jnp.float32, jnp.int8))
  coded = jit(LayerCache.write)(coded, k, v)
  written = lambda slots: dequantize(slots).swapaxes(1, 2)[:, :3]
  rounded = {name: written(getattr(coded, name)) for name in ('key', 'value')}
  for name, given in (('key', k), ('value', v)):
    half_step = np.abs(given).max(-1, keepdims=True) / 127 / 2
    assert (np.abs(rounded[name] - given) <= half_step * 1.001).all()
  plain = jit(LayerCache.write)(empty, rounded['key'], rounded['value'])
  attend = jit(lambda layer, q: layer.attend(q))
  np.testing.assert_allclose(attend(coded, q), attend(plain, q), atol=1e-6)


def test_logits_of_a_cache_of_codes():
  """Root mean square of the difference: at most 2 % of the deviation of the logits."""
  model = gpt(**KINDS['large heads, a window'])
  params = start(model)
  ids, first = padded(rows(), SIZES, 12)
  coded, cache = decode(model.clone(kv_cache='int8'), ids, first, params=params)
  exact, plain = decode(model, ids, first)
  real = np.arange(12) >= first[:, None]
  error = np.sqrt(np.square(coded - exact)[real].mean())
  assert 0 < error < 0.02 * exact[real].std()
  assert nbytes(cache.keys) == nbytes(plain.keys) * (12 + 4) / (12 * 4)
  taken = cache.rows(jnp.array([1, 1]))
  np.testing.assert_array_equal(taken.keys[0]['int8'], np.asarray(cache.keys[0]['int8'])[[1, 1]])
