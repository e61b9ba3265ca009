"""Cross-entropy in chunks is cross-entropy: values, and the norm of every gradient, to 1e-6."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.ops.losses import chunked_cross_entropy, cross_entropy
from bmx.parallel import Layout, jit, make_mesh
from bmx.tasks.language import CHUNKED, CausalLM

B, T, D, V, PAD = 8, 24, 32, 500, 12
MESHES = {
  'one': {},
  'fsdp': {'data': 2, 'fsdp': 4},
  'vocabulary': {'data': 2, 'model': 4},
  'all': {'fsdp': 2, 'seq': 2, 'model': 2},
}


@pytest.fixture(scope='module')
def given():
  keys = jax.random.split(jax.random.key(0), 3)
  hidden = jax.random.normal(keys[0], (B, T, D))
  table = jax.random.normal(keys[1], (V + PAD, D))
  return hidden, table, jax.random.randint(keys[2], (B, T), 0, V)


def run(fn, mesh, hidden, table, labels):
  def both(hidden, table):
    loss, back, hits = jax.vjp(fn, hidden, table, has_aux=True)
    return loss, hits, back(jnp.ones_like(loss))

  size = int(np.prod(list(mesh.values()), dtype=int))
  layout = Layout(make_mesh(mesh, jax.devices()[:size]))
  return jax.device_get(jit(both, layout)(hidden, table))


@pytest.mark.parametrize('chunks', [1, 4, 5])
@pytest.mark.parametrize('mesh', MESHES)
def test_chunks_change_nothing(mesh, chunks, given):
  hidden, table, labels = given

  def plain(hidden, table):
    logits = jnp.einsum('btd,vd->btv', hidden, table[:V])
    return cross_entropy(logits, labels), logits.argmax(-1) == labels

  chunked = lambda h, t: chunked_cross_entropy(h, t, labels, V, chunks)
  loss, hits, grads = run(plain, {}, *given)
  loss_, hits_, grads_ = run(chunked, MESHES[mesh], *given)
  np.testing.assert_allclose(loss_, loss, rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(hits_, hits)
  for a, b in zip(grads_, grads, strict=True):
    assert np.linalg.norm(a - b) < 1e-6 * np.linalg.norm(b)
  assert not np.asarray(grads_[1])[V:].any()


def test_it_is_on_above_a_vocabulary():
  from bmx.models.gpt import GPT

  assert CausalLM(GPT(CHUNKED, 8)).method is None
  assert CausalLM(GPT(CHUNKED + 1, 8)).method == 'hidden_and_table'
  assert CausalLM(GPT(CHUNKED + 1, 8), chunks=1).method is None


def test_logits_are_not_held():
  """The compiler's own figure: temporary memory of value and gradient."""
  vocab = 16384
  shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in ((4, 64, 32), (vocab, 32))]
  labels = np.zeros((4, 64), np.int32)

  def peak(chunks):
    loss = lambda h, t: chunked_cross_entropy(h, t, labels, vocab, chunks)[0].sum()
    grad = jit(jax.grad(loss, argnums=(0, 1)), Layout(make_mesh({}, jax.devices()[:1])))
    return grad.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

  assert peak(16) < 0.35 * peak(1)
