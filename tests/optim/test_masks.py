"""Masks in the state of an optimizer reach the moving average."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bmx.core.types import Noise
from bmx.models.mlp import MLP
from bmx.optim.masks import Masks, apply_mask, masked
from bmx.parallel import Layout, jit, make_mesh
from bmx.tasks.classification import Classification
from bmx.train.gradients import Gradient
from bmx.train.state import plan_state
from bmx.train.step import make_train_step


def halved(name):
  """An optimizer that keeps every other element of a parameter at zero."""
  kept = lambda params: {name: jnp.arange(params['head']['kernel'].size).reshape(
    params['head']['kernel'].shape) % 2 == 0}  # fmt: skip

  def update(updates, state, params=None):
    wanted = apply_mask(state.kept, optax.apply_updates(params, updates))
    return jax.tree.map(lambda new, old: new - old, wanted, params), state

  return optax.GradientTransformation(lambda params: Masks(kept(params)), update)


def test_the_average_is_masked_as_the_parameters_are():
  task = Classification(MLP(num_outputs=2, widths=(4,)))
  tx = optax.chain(optax.sgd(0.1), halved('head/kernel'))
  random = np.random.default_rng(0)
  batch = {'x': random.normal(size=(8, 3)).astype(np.float32), 'label': np.arange(8) % 2,
           'weights': np.ones(8, np.float32)}  # fmt: skip
  batch['label'] = batch['label'].astype(np.int32)
  layout = Layout(make_mesh({}, jax.devices()[:1]))
  abstract = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch.items()}
  spec = plan_state(task, tx, abstract, layout, ema=0.5)
  step = jit(make_train_step(Gradient(task), tx, ema=0.5), layout)
  state, _ = step(spec.create(), batch)
  for params in (state.params, state.ema['params']):
    kernel = np.ravel(params['head']['kernel'])
    assert not kernel[1::2].any()
    assert kernel[::2].all()
  assert masked(state.opt_state, state.params)['dense_0'] is not None
  assert task.predict({'params': state.params}, batch, Noise(state.key, 0))
