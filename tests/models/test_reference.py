"""The MLP beside PyTorch (extra `reference`)."""

import jax
import numpy as np
import optax
import pytest

from bmx.models.mlp import MLP
from bmx.parallel import Layout, jit, make_mesh
from bmx.tasks.classification import Classification
from bmx.train.gradients import Gradient
from bmx.train.state import plan_state
from bmx.train.step import make_train_step

torch = pytest.importorskip('torch')
B, D, CLASSES, STEPS, RATE = 32, 20, 5, 100, 0.1


def batch(step):
  random = np.random.default_rng(step)
  x = random.normal(size=(B, D)).astype(np.float32)
  label = (np.abs(x[:, :CLASSES]).argmax(1)).astype(np.int32)
  return {'x': x, 'label': label, 'weights': np.ones(B, np.float32)}


def torch_losses(params):
  layers = [torch.nn.Linear(D, 64), torch.nn.Linear(64, 32), torch.nn.Linear(32, CLASSES)]
  for layer, name in zip(layers, ('dense_0', 'dense_1', 'head'), strict=True):
    layer.weight.data = torch.tensor(np.array(params[name]['kernel']).T.copy())
    layer.bias.data = torch.tensor(np.array(params[name]['bias']))
  relu = torch.nn.ReLU()
  model = torch.nn.Sequential(layers[0], relu, layers[1], relu, layers[2])
  optimizer, losses = torch.optim.SGD(model.parameters(), lr=RATE), []
  for step in range(STEPS):
    rows = batch(step)
    optimizer.zero_grad()
    out, label = model(torch.tensor(rows['x'])), torch.tensor(rows['label']).long()
    loss = torch.nn.functional.cross_entropy(out, label)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
  return losses


def test_a_hundred_sgd_steps():
  layout = Layout(make_mesh({}, jax.devices()[:1]))
  task, tx = Classification(MLP(CLASSES, (64, 32))), optax.sgd(RATE)
  spec = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batch(0).items()}
  state = plan_state(task, tx, spec, layout).create()
  expected = torch_losses(state.params)
  step, losses = jit(make_train_step(Gradient(task), tx), layout), []
  for i in range(STEPS):
    state, metrics = step(state, batch(i))
    losses.append(float(metrics['loss'][0]) / B)
  np.testing.assert_allclose(losses, expected, rtol=1e-4)
  assert losses[-1] < losses[0]
