"""Cross-entropy in chunks is cross-entropy: values, and the norm of every gradient, to 1e-6."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.metrics import weighted
from bmx.ops.losses import chunked_cross_entropy, cross_entropy
from bmx.parallel import Layout, jit, make_mesh
from bmx.tasks.language import CHUNKED_VOCAB, CausalLM

B, T, D, V, PAD = 8, 24, 32, 500, 12
MESHES = {
  'one': {},
  'fsdp': {'data': 2, 'fsdp': 4},
  'vocabulary': {'data': 2, 'model': 4},
  'all': {'fsdp': 2, 'seq': 2, 'model': 2},
}


@pytest.fixture(scope='module')
def given():
  keys = jax.random.split(jax.random.key(0), 4)
  hidden = jax.random.normal(keys[0], (B, T, D))
  table = jax.random.normal(keys[1], (V + PAD, D))
  labels = jax.random.randint(keys[2], (B, T), 0, V)
  weights = jnp.maximum(jax.random.normal(keys[3], (B, T)), 0)  # half of them are 0
  return hidden, table, labels, weights


def plain(hidden, table, labels, weights):
  logits = jnp.einsum('btd,vd->btv', hidden, table[:V])
  return weighted(cross_entropy(logits, labels), weights)[0], logits.argmax(-1) == labels


def run(fn, mesh, hidden, table, labels, weights):
  """Value, hits and the gradient under a cotangent that is not 1."""

  def both(hidden, table):
    loss, back, hits = jax.vjp(lambda h, t: fn(h, t, labels, weights), hidden, table, has_aux=True)
    return loss, hits, back(0.3 * jnp.ones_like(loss))

  size = int(np.prod(list(mesh.values()), dtype=int))
  layout = Layout(make_mesh(mesh, jax.devices()[:size]))
  return jax.device_get(jit(both, layout)(hidden, table))


@pytest.mark.parametrize('chunks', [1, 4, 5])
@pytest.mark.parametrize('mesh', MESHES)
def test_chunks_change_nothing(mesh, chunks, given):
  chunked = lambda h, t, y, w: chunked_cross_entropy(h, t, y, w, V, chunks)
  loss, hits, grads = run(plain, {}, *given)
  loss_, hits_, grads_ = run(chunked, MESHES[mesh], *given)
  np.testing.assert_allclose(loss_, loss, rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(hits_, hits)
  for a, b in zip(grads_, grads, strict=True):
    assert np.linalg.norm(a - b) < 1e-6 * np.linalg.norm(b)
  assert not np.asarray(grads_[1])[V:].any()


def test_without_a_gradient_the_value_is_the_same(given):
  value, hits = chunked_cross_entropy(*given, V, 4)
  expected, expected_hits = plain(*given)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_array_equal(hits, expected_hits)


def test_the_gradient_of_an_example_is_its_own(given):
  """Under vmap, as private training takes it."""
  one = lambda fn: lambda h, t, y, w: fn(h[None], t, y[None], w[None])[0]
  chunked = one(lambda *x: chunked_cross_entropy(*x, V, 4))
  per = lambda fn: jax.jit(jax.vmap(jax.grad(fn, (0, 1)), (0, None, 0, 0)))(*given)
  for a, b in zip(per(chunked), per(one(plain)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_half_precision_stays_near_single(given):
  """bfloat16 has 8 bits: gradients of sums of many tokens are within a percent."""
  hidden, table, labels, weights = given
  half = (hidden.astype(jnp.bfloat16), table.astype(jnp.bfloat16))
  loss = lambda fn: lambda h, t: fn(h, t, labels, weights)[0]
  gradient = lambda fn: jax.jit(jax.grad(loss(fn), (0, 1)))
  chunked = gradient(lambda *x: chunked_cross_entropy(*x, V, 4))(*half)
  exact = gradient(plain)(*(x.astype(jnp.float32) for x in half))
  for a, b in zip(chunked, exact, strict=True):
    assert a.dtype == jnp.bfloat16
    assert np.linalg.norm(a - b) < 1e-2 * np.linalg.norm(b)


def test_it_is_on_above_a_vocabulary():
  from bmx.models.gpt import GPT

  assert CausalLM(GPT(CHUNKED_VOCAB, 8)).loss_method is None
  assert CausalLM(GPT(CHUNKED_VOCAB + 1, 8)).loss_method == 'hidden_and_table'
  assert CausalLM(GPT(CHUNKED_VOCAB + 1, 8), chunks=1).loss_method is None


def test_logits_are_not_held():
  """The compiler's own figure: temporary memory of value and gradient."""
  vocab = 16384
  shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in ((4, 64, 32), (vocab, 32))]
  labels, weights = np.zeros((4, 64), np.int32), np.ones((4, 64), np.float32)

  def peak(chunks):
    loss = lambda h, t: chunked_cross_entropy(h, t, labels, weights, vocab, chunks)[0]
    grad = jit(jax.grad(loss, argnums=(0, 1)), Layout(make_mesh({}, jax.devices()[:1])))
    return grad.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

  assert peak(16) < 0.35 * peak(1)
