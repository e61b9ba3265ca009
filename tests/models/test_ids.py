"""Ids and labels that do not exist give NaN on every mesh: the guard rejects the update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.types import Noise
from bmx.models.layers import Embed
from bmx.models.tables import Table
from bmx.ops.losses import chunked_cross_entropy, cross_entropy
from bmx.parallel import Layout, jit, make_mesh, unbox
from bmx.train.gradients import Gradient
from tests.train.test_tables import Clicks, Squares, batch

V, D = 6, 4
IDS = np.array([[0, V - 1, V, V + 1, 300, -1, -V - 3]], np.int32)
BAD = (IDS < 0) | (IDS >= V)


@pytest.mark.parametrize('model', [1, 2])
@pytest.mark.parametrize('layer', [Embed(V, D, pad=2), Table(V, D)], ids=['Embed', 'Table'])
def test_rows_that_do_not_exist_are_nan(layer, model):
  params = unbox(jax.jit(layer.init)(jax.random.key(0), IDS)['params'])
  where = Layout(make_mesh({'model': model}, jax.devices()[:model]))
  rows = jit(lambda p, ids: layer.apply({'params': p}, ids), where)(params, IDS)
  np.testing.assert_array_equal(np.isnan(rows), np.broadcast_to(BAD[..., None], rows.shape))
  np.testing.assert_array_equal(rows[0, :2], params['table'][np.array([0, V - 1])])


@pytest.mark.parametrize('bad', [-1, 40])
def test_the_loss_of_sparse_rows_that_do_not_exist_is_nan(bad):
  task, rows = Squares(Clicks()), batch()
  noise = Noise(jax.random.PRNGKey(1), jnp.int32(0))
  variables = jax.jit(lambda: dict(unbox(task.init(noise, rows))))()
  rows['ids'][0, 0] = bad
  grads = jax.jit(Gradient(task))(variables, rows, noise)
  assert np.isnan(grads.metrics['loss'][0])


@pytest.mark.parametrize('label', [-100, -1, V, V + 1, 300])
@pytest.mark.parametrize('chunked', [False, True])
def test_the_loss_of_a_label_that_does_not_exist_is_nan(label, chunked):
  random = np.random.default_rng(0)
  hidden, table = (random.normal(size=s).astype(np.float32) for s in ((1, 2, D), (V + 2, D)))

  def loss(labels, weights):
    if chunked:
      return chunked_cross_entropy(hidden, table, labels, weights, V, 2)[0]
    each = cross_entropy(hidden @ table[:V].T, labels)
    return np.where(weights > 0, each, 0).sum()

  labels = np.array([[0, label]], np.int32)
  assert np.isnan(loss(labels, np.ones((1, 2), np.float32)))
  assert np.isfinite(loss(labels, np.array([[1, 0]], np.float32)))
