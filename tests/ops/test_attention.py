"""`attend` against softmax(q kᵀ / √H) v in float64, and its gradients against torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from bmx.core.errors import InputError
from bmx.ops.attention import attend
from bmx.parallel import Layout, jit, make_mesh

# LLVM's optimisation would be most of the time.
FAST = {'xla_backend_optimization_level': 0}
compiled = jax.jit(attend, static_argnames=('causal', 'impl'), compiler_options=FAST)


def tensors(length, heads=4, groups=2, size=8, keys=None, batch=2, seed=0, scale=1.0):
  random = np.random.default_rng(seed)
  shapes = [(batch, length, heads, size)] + 2 * [(batch, keys or length, groups, size)]
  return [scale * random.normal(size=s).astype(np.float32) for s in shapes]


def segments(length, batch=2):
  """Another split into three segments for each row."""
  ends = [(length // 3 + b, 2 * length // 3 + b) for b in range(batch)]
  return np.stack([np.searchsorted(e, np.arange(length), side='right') for e in ends]) + 1


def visible(length, causal, ids):
  """-> bool [B or 1, T, S], from loops over the indices."""
  see = lambda b, t, s: (not causal or s <= t) and (ids is None or ids[b, t] == ids[b, s])
  return np.array([[[see(b, t, s) for s in range(length)] for t in range(length)]
                   for b in range(1 if ids is None else len(ids))])  # fmt: skip


def oracle(q, k, v, mask=None):
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  k, v = (np.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
  scores = np.einsum('btnh,bsnh->bnts', q, k) / np.sqrt(q.shape[-1])
  if mask is not None:
    scores = np.where(mask[:, None], scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return np.einsum('bnts,bsnh->btnh', weights / weights.sum(-1, keepdims=True), v)


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('causal', [False, True])
@pytest.mark.parametrize(('length', 'size'), [(7, 64), (16, 8), (64, 8)])
def test_values(length, size, causal, packed):
  q, k, v = tensors(length, size=size)
  ids = segments(length) if packed else None
  given = compiled(q, k, v, causal=causal, segment_ids=None if ids is None else jnp.asarray(ids))
  expected = oracle(q, k, v, visible(length, causal, ids))
  np.testing.assert_allclose(given, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_query_head_n_reads_key_head_n_over_group_size(groups):
  q, k, v = tensors(5, heads=4, groups=groups)
  np.testing.assert_allclose(compiled(q, k, v), oracle(q, k, v), rtol=1e-5, atol=2e-6)


def test_other_keys_than_queries():
  q, k, v = tensors(3, keys=11)
  np.testing.assert_allclose(compiled(q, k, v), oracle(q, k, v), rtol=1e-5, atol=2e-6)


def test_blocks_are_the_whole():
  """On a mesh of 8 the causal rows come in one piece, on one device in four."""
  q, k, v = tensors(16)
  fn = lambda *x: attend(*x, causal=True, segment_ids=jnp.asarray(segments(16)))
  whole = jit(fn, Layout(make_mesh({'data': 8})))(q, k, v)
  np.testing.assert_allclose(jax.jit(fn)(q, k, v), whole, rtol=1e-6, atol=1e-6)


def test_a_program_of_symbolic_length_is_the_attention_of_each_length():
  batch, length = export.symbolic_shape('b, t', constraints=('b>=1', 't>=1'))
  abstract = [jax.ShapeDtypeStruct((batch, length, *x.shape[2:]), x.dtype) for x in tensors(1)]
  program = export.export(jax.jit(lambda q, k, v: attend(q, k, v, causal=True, window=3)))
  call = program(*abstract).call
  for size in (5, 8):
    q, k, v = tensors(size)
    near = np.tri(size, k=0) * (1 - np.tri(size, k=-3)) > 0
    np.testing.assert_allclose(call(q, k, v), oracle(q, k, v, near[None]), rtol=1e-5, atol=2e-6)


def torch_gradients(torch, arrays, mask, cotangent):
  """Of sum(out * cotangent), in float64; torch wants heads before positions."""
  q, k, v = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in arrays)
  out = torch.nn.functional.scaled_dot_product_attention(
    *(x.transpose(1, 2) for x in (q, k, v)),
    attn_mask=torch.tensor(mask[:, None]),
    enable_gqa=True,
  )
  (out.transpose(1, 2) * torch.tensor(cotangent)).sum().backward()
  return [x.grad.numpy() for x in (q, k, v)]


@pytest.mark.parametrize(('length', 'causal', 'packed'), [
  (7, True, False), (16, True, False), (16, True, True), (7, False, True), (16, False, False),
])  # fmt: skip
def test_gradients(torch, length, causal, packed):
  arrays = tensors(length)
  ids = segments(length) if packed else None
  cotangent = np.random.default_rng(1).normal(size=arrays[0].shape)
  segment_ids = None if ids is None else jnp.asarray(ids)

  def total(q, k, v):
    out = attend(q, k, v, causal=causal, segment_ids=segment_ids)
    return (out * cotangent.astype(np.float32)).sum()

  given = jax.jit(jax.grad(total, argnums=(0, 1, 2)), compiler_options=FAST)(*arrays)
  expected = torch_gradients(torch, arrays, visible(length, causal, ids), cotangent)
  for name, a, b in zip('qkv', given, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize('size', [8, 64])
def test_bfloat16_is_as_good_as_its_eight_bits(size):
  """Rounding of q/√H, of the weights and of the result: each at most 2⁻⁹ of the largest value."""
  arrays = [jnp.asarray(x, jnp.bfloat16) for x in tensors(16, size=size)]
  given = compiled(*arrays, causal=True)
  assert given.dtype == jnp.bfloat16
  expected = oracle(*arrays, visible(16, True, None))
  error = np.abs(np.asarray(given, np.float64) - expected).max()
  assert error < 4 * 2**-9 * np.abs(np.asarray(arrays[2], np.float64)).max()


def test_softmax_is_float32_under_bfloat16():
  """65,536 equal keys: bfloat16 sums would stop growing at 256."""
  q, k = jnp.ones((1, 1, 1, 1), jnp.bfloat16), jnp.zeros((1, 65536, 1, 1), jnp.bfloat16)
  assert float(compiled(q, k, jnp.ones_like(k))[0, 0, 0, 0]) == pytest.approx(1, rel=2**-8)


def test_huge_scores_pick_one_key():
  q, k, v = tensors(16, scale=1e3)
  given = compiled(q, k, v, causal=True)
  assert np.isfinite(given).all()
  np.testing.assert_allclose(given, oracle(q, k, v, visible(16, True, None)), rtol=1e-3, atol=0.1)


def test_the_first_query_sees_itself_only():
  q, k, v = tensors(16)
  expected = np.repeat(v[:, 0], 2, axis=1)
  np.testing.assert_allclose(compiled(q, k, v, causal=True)[:, 0], expected, rtol=1e-6)


def test_unknown_implementation():
  with pytest.raises(InputError, match=r"attention='flash9': expected one of .*xla"):
    attend(*tensors(4), impl='flash9')


def test_heads_that_do_not_group():
  with pytest.raises(InputError, match='heads=4: expected a multiple of the 3 key heads'):
    attend(*tensors(4, groups=3))
