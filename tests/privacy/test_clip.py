"""Clipped sums: as a loop over examples computes them, in parts, and on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.models.cnn import CNN
from bmx.models.gpt import GPT
from bmx.models.mlp import MLP
from bmx.parallel import jit
from bmx.privacy import Clipped, Noised
from bmx.privacy.clip import COLLECTION
from bmx.privacy.mechanism import check_task
from bmx.privacy.noise import Scales
from bmx.tasks.classification import Classification
from bmx.tasks.language import CausalLM
from bmx.train.gradients import Accumulate, Gradient
from bmx.train.state import plan_state
from bmx.train.step import make_train_step
from tests.privacy.tasks import (
  NOISE,
  SECRET,
  classifier,
  flat,
  language,
  layout,
  rows,
  spec,
  tokens,
)

CLIP = 0.7


def looped(task, variables, batch, clip):
  """The oracle: numpy sums over examples, one gradient at a time."""
  gradient = jax.jit(
    lambda v, b: jax.grad(lambda p: task.loss({**v, 'params': p}, b, NOISE, train=True).sum)(
      v['params']
    )
  )
  loss = jax.jit(lambda v, b: task.loss(v, b, NOISE, train=True)[:2])
  total, losses, counted, within = 0.0, 0.0, 0, 0
  for i in range(len(batch['weights'])):
    one = {k: v[i : i + 1] for k, v in batch.items()}
    g = flat(gradient(variables, one)).astype(np.float64)
    value, count = (float(x) for x in loss(variables, one))
    if not count or not np.isfinite(g).all():
      continue
    size = np.linalg.norm(g)
    total = total + g * min(1.0, clip / size)
    losses, counted, within = losses + value / count, counted + 1, within + (size <= clip)
  return total, losses, counted, within


@pytest.mark.parametrize('parts', [1, 4])
@pytest.mark.parametrize(
  ('make', 'data', 'clip'), [(classifier, rows, CLIP), (language, tokens, 34.0)]
)
def test_a_sum_is_that_of_a_loop_over_examples(make, data, clip, parts):
  """Rows without weight and examples with NaN add zero; the others are divided by nothing."""
  task, batch = make(), data()
  variables = jax.device_get(jax.jit(task.init)(NOISE, batch))
  variables = jax.tree.map(
    lambda x: getattr(x, 'value', x), variables, is_leaf=lambda x: hasattr(x, 'names')
  )
  batch['weights'][3:5] = 0
  if 'x' in batch:
    batch['x'][7, 2] = np.nan
  clipped = Clipped(Gradient(task), clip, adaptive=True)
  variables = variables | clipped.init(variables)
  grad_fn = Accumulate(clipped, parts, 16) if parts > 1 else clipped
  found = jax.jit(grad_fn)(variables, batch, NOISE)
  total, losses, counted, within = looped(task, {'params': variables['params']}, batch, clip)
  assert 0 < within < counted, 'the clip is above some norms and below others'
  assert np.linalg.norm(flat(found.sum) - total) < 1e-6 * np.linalg.norm(total)
  assert float(found.count) == counted
  np.testing.assert_allclose(found.metrics['loss'], [losses, counted], rtol=1e-6)
  assert float(found.collections[COLLECTION]['within']) == within - counted / 2


def test_losses_are_limited():
  task, batch = classifier(), rows(4)
  variables = {'params': plan_state(task, optax.identity(), spec(batch), layout()).create().params}
  found = jax.jit(Clipped(Gradient(task), loss_bound=0.25))(variables, batch, NOISE)
  np.testing.assert_allclose(found.metrics['loss'], [1.0, 4.0])


def private(task, batch, accumulate):
  inner = Clipped(Gradient(task), CLIP, adaptive=True)
  if accumulate > 1:
    inner = Accumulate(inner, accumulate, len(batch['weights']))
  return Noised(inner, CLIP, 12.0, Scales(0.5, 1.0, 1.0), quantile=0.4)


def trained(task, batch, where, accumulate=2, steps=2):
  """State and metrics after steps with momentum, averages and the guard."""
  grad_fn, tx = private(task, batch, accumulate), optax.sgd(0.5, momentum=0.9)
  plan = plan_state(task, tx, spec(batch), where, ema=0.5, grad_fn=grad_fn)
  step = make_train_step(grad_fn, tx, ema=0.5)
  run, state = jit(step, where, out_shardings=(plan.shardings, None)), plan.create()
  for _ in range(steps):
    state, metrics = run(state, batch, SECRET)
  assert float(metrics['skipped'][0]) == 0
  return jax.device_get((state.params, state.ema, state.collections, metrics['loss']))


MESHES = {'data': {'data': 8}, 'data x fsdp x model': {'data': 2, 'fsdp': 2, 'model': 2}}


@pytest.fixture(scope='module')
def alone():
  return trained(language(), tokens(), layout())


@pytest.mark.parametrize('mesh', MESHES.values(), ids=MESHES)
def test_eight_devices_are_one(alone, mesh):
  """Clipped sums and noise alike: parameters, averages, the adaptive clip and the loss."""
  found = trained(language(), tokens(), layout(8, **mesh))
  for given, expected in zip(found, alone, strict=True):
    assert np.linalg.norm(flat(given) - flat(expected)) < 1e-6 * np.linalg.norm(flat(expected))


def test_accumulation_is_the_whole_batch(alone):
  found = trained(language(), tokens(), layout(), accumulate=1)
  for given, expected in zip(found, alone, strict=True):
    assert np.linalg.norm(flat(given) - flat(expected)) < 1e-6 * np.linalg.norm(flat(expected))


def test_a_bad_example_is_clipped_away_and_not_the_step():
  """The guard never sees an example: whether a step is rejected would reveal one."""
  batch = rows()
  batch['x'][2] = np.nan
  without = rows()
  without['weights'][2] = 0
  a, b = (trained(classifier(), x, layout()) for x in (batch, without))
  np.testing.assert_array_equal(flat(a), flat(b))
  assert np.isfinite(flat(a)).all()


@dataclasses.dataclass(frozen=True)
class Moving(Classification):
  """A task whose model would store a mean of the examples."""

  def forward(self, variables, batch, noise, *, train, method='loss', **apply):
    out, _ = super().forward(variables, batch, noise, train=train, method=method, **apply)
    return out, {'means': {'x': jnp.mean(batch['x'], 0)}}


def test_what_single_examples_lack_is_refused():
  batch = rows(4)
  with pytest.raises(InputError, match='batch norm, balance of experts, Mixup'):
    check_task(Classification(CNN(3, (4,), norm='batch')))
  with pytest.raises(InputError, match='batch norm, balance of experts, Mixup'):
    check_task(Classification(MLP(3, (8,)), mixup=0.2))
  with pytest.raises(InputError, match=r"privacy.*coupling='statistics'"):
    Clipped(Gradient(Classification(MLP(3, (8,)), mixup=0.2)))
  task = Moving(MLP(3, (8,)))
  variables = {'params': plan_state(task, optax.identity(), spec(batch), layout()).create().params}
  with pytest.raises(InputError, match='updates no collection in training, found means'):
    Clipped(Gradient(task))(variables, batch, NOISE)
  check_task(CausalLM(GPT(32, 8, width=32, depth=2, heads=2)))


def test_names_of_leaves_are_kept():
  task, batch = classifier(), rows(4)
  params = plan_state(task, optax.identity(), spec(batch), layout()).create().params
  found = jax.jit(Clipped(Gradient(task)))({'params': params}, batch, NOISE)
  assert list(tree.named(found.sum)) == list(tree.named(params))
