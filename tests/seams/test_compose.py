"""Adapters, distillation, pruning and quantization, each with everything a step can do.

One small model; every case runs under a guard and a moving average. The programs are compared with
each other, the average with one that is computed here.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bmx.adapt.adalora import AdaLoRA, penalty
from bmx.adapt.lora import LoRA
from bmx.compress.distill import Distill
from bmx.compress.prune import prune
from bmx.compress.quantize import FakeQuantize, Quantized
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.models.gpt import GPT
from bmx.parallel import Layout, jit, make_mesh, unbox
from bmx.tasks.language import CausalLM
from bmx.train.gradients import Accumulate, Gradient
from bmx.train.state import plan_state, split_constant, variables_of
from bmx.train.step import make_train_step

REJECTED = 3  # the step before which a broken batch comes; it must leave no trace
STEPS, EMA, BATCH, LENGTH, VOCAB = 6, 0.5, 8, 8, 16
NOISE = Noise(jax.random.PRNGKey(3), jnp.int32(0))


def gpt(depth=2):
  return GPT(VOCAB, LENGTH, width=16, depth=depth, heads=2, scan=True)


def lora(**options):
  return LoRA(CausalLM(gpt()), rank=2, alpha=8.0, **options)


CASES = {
  'lora': lora,
  'lora int8': lambda: lora(base='int8'),
  'lora nf4': lambda: lora(base='nf4', group=8),
  'adalora': lambda: AdaLoRA(CausalLM(gpt()), rank=1, init_rank=2, tfinal=2, orthogonality=0.1),
  'distill': lambda: Distill(CausalLM(gpt()), gpt(3)),
  'distill lora': lambda: Distill(lora(), gpt(3)),
  'prune': lambda: CausalLM(gpt()),
  'qat': lambda: FakeQuantize(CausalLM(gpt()), kind='int4', group=8),
  'prune qat': lambda: FakeQuantize(CausalLM(gpt()), kind='int8'),
}  # fmt: skip

# Each mechanism once at every push, all combinations at night.
PUSHED = ('lora nf4', 'adalora', 'distill lora', 'prune qat')
ADAPTED = ('lora nf4', 'adalora', 'distill lora')
RUN = [c if c in PUSHED else pytest.param(c, marks=pytest.mark.nightly) for c in CASES]


def optimizer(case):
  tx = optax.sgd(0.3, momentum=0.9)
  if case.startswith('prune'):
    tx = prune(tx, STEPS, sparsity=0.5, end=0.5, every=1)
  return CASES[case]().transform(tx, STEPS)


@functools.cache
def batches():
  ids = np.random.default_rng(0).integers(0, VOCAB, (STEPS, BATCH, LENGTH + 1)).astype(np.int32)
  weights = np.ones((BATCH, LENGTH), np.float32)
  return [{'tokens': x[:, :-1], 'targets': x[:, 1:], 'weights': weights} for x in ids]


def broken(batch):
  """A batch whose loss is not finite."""
  return {**batch, 'weights': np.full_like(batch['weights'], np.inf)}


class Trained:
  """A case on one layout: its states after each step, on the host."""

  def __init__(self, case: str, micro: int = 1, **mesh: int):
    self.task: Any = CASES[case]()
    devices = int(np.prod([1, *mesh.values()]))
    self.layout = Layout(make_mesh(mesh, jax.devices()[:devices]))
    tx = optimizer(case)
    abstract = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in batches()[0].items()}
    gradient: Any = Gradient(self.task)
    grad_fn = Accumulate(gradient, micro, BATCH) if micro > 1 else gradient
    self.spec = plan_state(self.task, tx, abstract, self.layout, ema=EMA, grad_fn=grad_fn)
    step = make_train_step(grad_fn, tx, ema=EMA, constant=self.task.constant)
    run = jit(step, self.layout, out_shardings=(self.spec.shardings, None))
    state = self.spec.create()
    self.states, self.losses = [jax.device_get(state)], []
    for i, batch in enumerate(batches()):
      if i == REJECTED:
        state, _ = run(state, broken(batch))
        self.rejected = jax.device_get(state)
      state, metrics = run(state, batch)
      self.states.append(jax.device_get(state))
      self.losses.append(float(metrics['loss'][0] / metrics['loss'][1]))

  @property
  def last(self):
    return self.states[-1]


single = functools.cache(Trained)


def vector(params):
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])


def assert_alike(a, b, tolerance=1e-5):
  assert np.linalg.norm(vector(a) - vector(b)) <= tolerance * np.linalg.norm(vector(a))


@pytest.mark.parametrize('case', RUN)
def test_parameters_move_and_constants_stay(case):
  made = single(case)
  first, last = made.states[0], made.last
  assert np.abs(vector(first.params) - vector(last.params)).max() > 1e-3
  _, before = split_constant(first, made.task.constant)
  _, after = split_constant(last, made.task.constant)
  assert set(before) == set(made.task.constant)
  jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.parametrize('case', RUN)
def test_the_average_is_that_of_the_parameters_under_their_masks(case):
  made = single(case)
  average = made.states[0].params
  for state in made.states[1:]:
    move = lambda a, x: a + (1 - EMA) * (x - a)
    average = jax.tree.map(move, average, state.params)
    average = tree.map_named(lambda k, a, s=state: np.where(kept(case, s, k), a, 0), average)
  assert_alike(average, made.last.ema['params'])


def kept(case, state, name):
  """Where the optimizer's state keeps a parameter, by the field that holds it."""
  if case == 'adalora' or case.startswith('prune'):
    return np.asarray(state.opt_state.masks.kept.get(name, True))
  return True


@pytest.mark.parametrize('case', RUN)
def test_micro_batches_on_a_mesh_are_the_whole_batch_on_one_device(case):
  made = Trained(case, micro=2, fsdp=2, model=2)
  np.testing.assert_allclose(made.losses, single(case).losses, rtol=1e-5)
  assert_alike(single(case).last.params, made.last.params)


@pytest.mark.parametrize('case', RUN)
def test_a_rejected_update_changes_nothing(case):
  made = single(case)
  before, after = made.states[REJECTED], made.rejected
  assert after.consecutive_skips == 1
  for name in ('params', 'opt_state', 'collections', 'ema'):
    old, new = getattr(before, name), getattr(after, name)
    jax.tree.map(np.testing.assert_array_equal, old, new)


def test_the_shares_are_met():
  pruned = tree.named(single('prune qat').last.params)
  kernels = {k: v for k, v in pruned.items() if k.endswith('/kernel')}
  assert kernels
  for kernel in kernels.values():
    for layer in kernel:
      assert (layer == 0).sum() == layer.size // 2
  singular = [v for k, v in tree.named(single('adalora').last.params).items() if 'singular' in k]
  assert sum((v != 0).sum() for v in singular) == sum(v.shape[0] for v in singular)


def coded(task, params):
  """The variables of a quantized task that takes plain weights."""
  return jax.jit(lambda p: task.take(unbox(task.init(NOISE, batches()[0])), p))(params)


def test_pruned_weights_that_are_quantized_stay_pruned():
  params = single('prune qat').last.params
  task = Quantized(CausalLM(gpt()), kind='int4', group=8)
  found = jax.jit(task.merged_params)(coded(task, params))
  for name, kernel in tree.named(params).items():
    if name.endswith('/kernel'):
      assert not np.asarray(tree.named(found)[name])[kernel == 0].any()


def loss(task, variables):
  """The loss of the first batch, without dropout."""
  run = jax.jit(lambda v: task.loss(v, batches()[0], NOISE, train=False).sum)
  return float(run(variables))


def test_qat_is_quantization_afterwards():
  """The task that trained with rounding, and the plain weights in codes, give one loss."""
  made, task = single('prune qat'), Quantized(CausalLM(gpt()), kind='int8')
  codes = coded(task, made.last.params)
  np.testing.assert_allclose(loss(task, codes), loss(made.task, variables_of(made.last)), rtol=1e-6)


@pytest.mark.parametrize('case', ADAPTED)
def test_merged_weights_give_the_loss_of_the_adapters(case):
  made = single(case)
  plain = jax.jit(made.task.merged_params)(variables_of(made.last))
  own = made.task.inner if case == 'distill lora' else made.task
  found, expected = (loss(CausalLM(gpt()), {'params': plain}), loss(own, variables_of(made.last)))
  if case == 'adalora':  # whose loss has a penalty
    names = variables_of(made.last)['params']['adapters']
    expected -= own.orthogonality * float(penalty(names)) * BATCH * LENGTH
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_orders_that_lose_a_wrapper_are_refused():
  base = CausalLM(gpt())
  for make in (
    lambda: LoRA(Distill(base, gpt(3)), rank=2),
    lambda: AdaLoRA(LoRA(base, rank=2), rank=1, init_rank=2),
    lambda: LoRA(FakeQuantize(base), rank=2),
    lambda: FakeQuantize(LoRA(base, rank=2)),
    lambda: Quantized(LoRA(base, rank=2)),
    lambda: FakeQuantize(Quantized(base)),
    lambda: Quantized(Distill(base, gpt(3))),
  ):
    with pytest.raises(InputError, match='expected another order'):
      make()
  assert dataclasses.is_dataclass(LoRA(Quantized(base), rank=2))
