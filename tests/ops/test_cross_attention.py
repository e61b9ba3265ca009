"""Attention to another sequence, with segments of both, a scale and a bias: float64 formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.ops.attention import attend, attention_weights
from bmx.ops.positions import relative_buckets, sinusoidal
from bmx.parallel import Layout, make_mesh, use

B, N, K, H = 2, 4, 2, 16


def tensors(length, keys):
  random = np.random.default_rng(0)
  shapes = [(B, length, N, H), (B, keys, K, H), (B, keys, K, H), (B, length, N, H)]
  return [jnp.asarray(random.normal(size=s), jnp.float32) for s in shapes]


def ids(length, ends):
  return np.stack([np.searchsorted([e, 2 * e], np.arange(length), side='right') for e in ends]) + 1


def oracle(q, k, v, g, own, other, scale, bias):
  """-> (out, dq, dk, dv) of softmax(scale · q kᵀ + bias) v over keys of the same segment."""
  q, k, v, g = (np.asarray(x, np.float64) for x in (q, k, v, g))
  each = N // K
  wide_k, wide_v = np.repeat(k, each, 2), np.repeat(v, each, 2)
  seen = own[:, :, None] == other[:, None, :]
  scores = np.einsum('btnh,bsnh->bnts', q, wide_k) * scale + bias
  scores = np.where(seen[:, None], scores, -np.inf)
  p = np.exp(scores - scores.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  dp = np.einsum('btnh,bsnh->bnts', g, wide_v)
  ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * scale
  narrow = lambda x: x.reshape(*k.shape[:3], each, -1).sum(3)
  dk, dv = np.einsum('bnts,btnh->bsnh', ds, q), np.einsum('bnts,btnh->bsnh', p, g)
  out, dq = np.einsum('bnts,bsnh->btnh', p, wide_v), np.einsum('bnts,bsnh->btnh', ds, wide_k)
  return out, dq, narrow(dk), narrow(dv)


@pytest.mark.parametrize(('impl', 'length', 'keys', 'biased'), [
  ('xla', 5, 12, False), ('xla', 5, 12, True), ('splash', 128, 256, False),
])  # fmt: skip
@pytest.mark.parametrize('scale', [0.0, 1.0])
def test_values_and_gradients(impl, length, keys, biased, scale):
  if impl == 'splash' and scale:
    scale = 0.5
  args = tensors(length, keys)
  own, other = ids(length, (length // 3, length // 2)), ids(keys, (keys // 3, keys // 4))
  bias = np.random.default_rng(1).normal(size=(1, N, length, keys)).astype(np.float32)
  options = {'bias': jnp.asarray(bias)} if biased else {}

  def both(q, k, v, g):
    value = lambda q, k, v: attend(
      q, k, v, segment_ids=jnp.asarray(own), key_ids=jnp.asarray(other), scale=scale, impl=impl,
      interpret=impl == 'splash', **options,
    )  # fmt: skip
    out, back = jax.vjp(value, q, k, v)
    return out, *back(g)

  given = jax.jit(both)(*args)
  expected = oracle(*args, own, other, scale or H**-0.5, bias if biased else 0.0)
  for name, a, b in zip(['o', 'q', 'k', 'v'], given, expected, strict=True):
    assert np.abs(np.asarray(a) - b).max() < 2e-5 * np.abs(b).max(), name
  if impl == 'xla':  # the matrix that `interpret` shows is the one that is computed with
    rows = {'segment_ids': jnp.asarray(own), 'key_ids': jnp.asarray(other)}
    weights = np.asarray(attention_weights(*args[:2], **rows, scale=scale, **options))
    values = np.repeat(args[2], N // K, 2)
    np.testing.assert_allclose(np.einsum('bnts,bsnh->btnh', weights, values), given[0], atol=1e-5)


def test_a_causal_bias_is_cut_with_its_blocks():
  """8 tokens are computed in four blocks of queries."""
  q, k, v, _ = tensors(8, 8)
  bias = jnp.asarray(np.random.default_rng(1).normal(size=(1, N, 8, 8)), jnp.float32)
  given = attend(q, k, v, causal=True, bias=bias)
  ahead = np.where(np.tril(np.ones((8, 8))), 0, -np.inf)
  same = np.ones((B, 8))
  expected = oracle(q, k, v, q, same, same, H**-0.5, np.asarray(bias) + ahead)[0]
  np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)


def test_refused_by_name():
  q, k, v, _ = tensors(8, 16)
  with pytest.raises(InputError, match='causal=True: expected queries and keys of one sequence'):
    attend(q, k, v, causal=True)
  with pytest.raises(InputError, match="'splash' adds no bias to the scores"):
    same = tensors(128, 128)[:3]
    attend(*same, bias=jnp.zeros((1, N, 128, 128)), impl='splash', interpret=True)
  with use(Layout(make_mesh({'seq': 8}))), pytest.raises(InputError, match='to another sequence'):
    attend(q, k, v, impl='ring')


def test_relative_buckets():
  """Raffel et al.'s rule, one distance at a time."""

  def bucket(distance, buckets, most, causal):
    first, size = 0, -distance
    if not causal:
      buckets //= 2
      first, size = (buckets if distance > 0 else 0), abs(distance)
    size = max(size, 0)
    exact = buckets // 2
    if size < exact:
      return first + size
    far = math.log(size / exact) / math.log(most / exact) * (buckets - exact)
    return first + min(exact + int(far), buckets - 1)

  distance = np.arange(-140, 141)
  for causal in (True, False):
    given = relative_buckets(jnp.asarray(distance), 32, 128, causal)
    assert given.tolist() == [bucket(d, 32, 128, causal) for d in distance.tolist()]


def test_halves_of_sinusoids():
  positions = np.array([[0, 3, 50]])
  turns, halves = sinusoidal(positions, 6), sinusoidal(positions, 6, halves=True)
  np.testing.assert_array_equal(halves, np.asarray(turns)[..., [0, 2, 4, 1, 3, 5]])
