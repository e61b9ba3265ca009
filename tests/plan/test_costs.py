"""FLOPs counted by hand against the compiler's, parameters against published counts."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core import chips, costs
from bmx.ops.attention import reference_attention
from bmx.parallel import jit, use
from bmx.plan import costs as plan_costs
from bmx.plan import memory
from bmx.train.start import step_costs
from bmx.train.state import state_spec, variables_of
from bmx.train.step import step_noise
from tests.conftest import ROOT

WIDE = ('task.model.width=256', 'task.model.depth=1', 'task.model.scan=False', 'batch_size=4')
LLAMA = (*WIDE, 'task.model.mlp_dim=512')


def build(recipe, *overrides, variant='tiny', devices=1):
  config, name = recipes.load(str(ROOT / f'configs/{recipe}.py:{variant}'), list(overrides))
  return experiment.build(config, name, jax.devices()[:devices], read=False)


def compiled_flops(x, recompute):
  plan = state_spec(x)

  def gradient(state, batch):
    with reference_attention(recompute):
      return x.grad_fn(variables_of(state), batch, step_noise(state, state.step)).sum

  program = jit(gradient, x.layout).lower(plan.abstract, x.data.abstract).compile()
  return program.cost_analysis()['flops']


@pytest.mark.parametrize(('recipe', 'recompute', 'overrides'), [
  ('llama_8b', True, [*LLAMA, 'grad.steps=1', 'task.model.remat=full']),
  ('llama_8b', True, [*LLAMA, 'grad.steps=1', 'task.model.remat=dots']),
  ('llama_8b', False, [*LLAMA, 'grad.steps=2']),
  ('gpt_char', False, [w.replace('task.', 'task.inner.') for w in WIDE]),
  ('bert_base', False, ['task.model.encoder.width=256', 'task.model.encoder.depth=1',
                        'task.model.encoder.scan=False', 'batch_size=4']),
  ('digits_mlp', False, ['task.model.widths=(512,512)', 'batch_size=64']),
  ('moe', False, LLAMA),
])  # fmt: skip
def test_flops_are_the_compilers(recipe, recompute, overrides):
  x = build(recipe, *overrides, variant='tiny_lora' if recipe == 'gpt_char' else 'tiny')
  counted = step_costs(x, state_spec(x), recompute).flops
  assert counted == pytest.approx(compiled_flops(x, recompute), rel=0.05)


@pytest.mark.parametrize('strides', [1, 2])
def test_padding_and_dilation_of_convolutions_are_not_counted(strides):
  """Borders of small images, and the zeros between the rows of a strided one's gradient."""

  def loss(kernel, images):
    y = jax.lax.conv_general_dilated(images, kernel, (strides, strides), 'SAME',
                                     dimension_numbers=('NHWC', 'HWIO', 'NHWC'))  # fmt: skip
    return (y * y).sum()

  shapes = (
    jax.ShapeDtypeStruct((5, 5, 16, 32), jnp.float32),
    jax.ShapeDtypeStruct((8, 7, 7, 16), jnp.float32),
  )
  gradient = jax.grad(loss, (0, 1))
  analysis: Any = jax.jit(gradient).lower(*shapes).compile().cost_analysis()
  compiled = analysis['flops']
  assert costs.count(gradient, *shapes).flops == pytest.approx(compiled, rel=0.05)


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_masked_blocks_that_do_not_run_are_not_counted(remat):
  """Plain attention on one device computes 10 of 16 blocks; a trace of it as it runs counts so."""
  x = build('llama_8b', *LLAMA, 'grad.steps=1', 'length=128', f'task.model.remat={remat}')
  plan = state_spec(x)

  def gradient(state, batch):
    return x.grad_fn(variables_of(state), batch, step_noise(state, state.step)).sum

  found = plan_costs.count(x, memory.Memory(0, 0, 0, 0, 0))
  with use(x.layout):
    assert found.run == costs.count(gradient, plan.abstract, x.data.abstract).flops
  assert (found.run < found.flops) == (remat == 'none')
  assert found.parameters == sum(v.size for v in jax.tree.leaves(plan.abstract.params))


def test_every_chip_names_its_source():
  for name, chip in chips.KINDS.items():
    assert chip.page, name
    assert 0.7 * chip.memory < chip.usable < 1.01 * chip.memory
