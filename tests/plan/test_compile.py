"""Compiled by the real TPU and GPU compilers, here; nothing is run. More in experiments/aot."""

import jax
import jax.numpy as jnp
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core import chips
from bmx.core.errors import InputError
from bmx.parallel import Layout, jit, make_mesh
from bmx.plan import memory, topology
from bmx.plan.compile import compile_step, summarize
from tests.conftest import ROOT

pytest.importorskip('libtpu', reason='the extra `aot` is not installed')
pytest.importorskip('jax_cuda12_plugin', reason='the extra `aot` is not installed')

MEMORY = {'v5e': 15.75, 'h200': 140.0}


def build(recipe, where, *overrides):
  config, name = recipes.load(str(ROOT / f'configs/{recipe}.py'), ['mesh.data=1', *overrides])
  return experiment.build(config, name, topology.devices(where), read=False)


@pytest.mark.parametrize(('recipe', 'where', 'overrides', 'kernels'), [
  # Forward and two backward kernels, of the first micro-batch and of the others: none runs again.
  pytest.param('gpt2_124m', 'v5e:2x2', ['mesh.data=4'], 6, marks=pytest.mark.nightly),
  # 50 CPU seconds and more; `test_the_mode` compiles a small one for TPU at every push.
  pytest.param('llama_1b', 'v5e:4x4', ['mesh.data=2', 'mesh.fsdp=8'], 6,
               marks=pytest.mark.nightly),
  ('llama_1b', 'h200:1', ['task.model.attention=xla', 'batch_size=64'], 0),
])  # fmt: skip
def test_it_compiles_and_fits(recipe, where, overrides, kernels):
  x = build(recipe, where, *overrides)
  found = summarize(x, compile_step(x))
  assert found['peak_gib'] < MEMORY[where.partition(':')[0]]
  assert found['kernels'] == kernels
  assert found['attention'] == ('splash' if kernels else 'xla')
  assert found['whole_parameters_all_reduced'] == []
  if x.layout.devices > 1:
    assert found['over_analytic_estimate'] < 1.5
    assert 'all-to-all' not in found['received_gib']


def test_micro_batches_are_not_computed_side_by_side():
  """Two micro-batches need the activations of one; without a barrier XLA held those of both."""
  config, name = recipes.load(str(ROOT / 'configs/llama_8b.py:tiny'), [
    'mesh.data=1', 'mesh.fsdp=4', 'batch_size=128', 'length=128', 'grad.steps=2',
    'task.model.depth=8', 'task.model.remat=dots', 'task.model.attention=xla'])  # fmt: skip
  x = experiment.build(config, name, topology.devices('v5e:2x2'), read=False)
  assert compile_step(x).peak < 1.3 * memory.estimate(x).total


@pytest.mark.nightly
def test_splash_keeps_each_normalizer_once():
  """68 MiB; 111 where `remat` dots keeps the kernel's own result, 128 lanes of each."""
  config, name = recipes.load(str(ROOT / 'configs/llama_8b.py:tiny'), [
    'mesh.data=1', 'mesh.fsdp=4', 'batch_size=64', 'length=128', 'grad.steps=1', 'dtype=bfloat16',
    'task.model.depth=8', 'task.model.remat=dots', 'task.model.attention=splash'])  # fmt: skip
  x = experiment.build(config, name, topology.devices('v5e:2x2'), read=False)
  made = compile_step(x)
  assert made.peak < 80 * 2**20
  assert made.kernels == 3, 'the forward kernel runs again'


def test_what_does_not_fit_is_said():
  x = build('llama_8b', 'v5e:2x2', 'mesh.fsdp=4', 'batch_size=4', 'length=512')
  with pytest.raises(InputError, match=r'does not fit a TPU v5 lite: .*\n.*mesh.fsdp'):
    compile_step(x)


@pytest.mark.parametrize(('name', 'message'), [
  ('v5x:2x2', "did you mean 'v5p'"),
  ('v5e', 'is not a topology'),
  ('v5e:3x7', 'v5e has shapes 2x2, 4x4'),
  ('h200:2x2x2', 'devices, or hosts x devices'),
])  # fmt: skip
def test_topologies_that_do_not_exist(name, message):
  with pytest.raises(InputError, match=message):
    topology.devices(name)


@pytest.mark.parametrize('kind', list(topology.GPUS))
def test_every_gpu_compiles(kind):
  devices = topology.devices(f'{kind}:2x2')
  layout = Layout(make_mesh({'data': 4}, devices))
  at = jax.ShapeDtypeStruct((8, 8), jnp.bfloat16, sharding=layout.sharding('batch'))
  text = jit(lambda x: (x @ x.T).sum(), layout).lower(at).compile().as_text()
  assert chips.find(devices[0].device_kind) is chips.KINDS[kind]
  assert 'all-reduce' in text or 'all-gather' in text


def test_a_missing_compiler_names_the_extra(monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(InputError, match=r"pip install 'bmx-jax\[aot\]'"):
    topology.devices('v5e:2x2')


def test_two_slices_lie_along_the_axis_that_talks_least():
  x = build('llama_8b', 'v5e:4x4@2', 'mesh.data=2', 'mesh.fsdp=16')
  grid = x.layout.mesh.devices.reshape(2, 16)
  assert [len({d.slice_index for d in row}) for row in grid] == [1, 1]
  with pytest.raises(
    InputError, match='2 slices, and none of mesh.pipe=1, mesh.data=1, mesh.fsdp=1'
  ):
    build('llama_8b', 'v5e:4x4@2', 'mesh.model=32')


def test_the_mode(bmx, tmp_path):
  done = bmx('--config=configs/gpt_char.py:tiny', '--mode=plan', '--topology=v5e:2x2',
             '--config.task.model.attention=xla', f'--output={tmp_path}')  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert 'peak_gib' in done.stderr
  assert 'data=4' in done.stderr
  assert '(compiled)' in done.stderr
  assert (tmp_path / 'planned.py').is_file()
  assert bmx('--config=configs/gpt_char.py:tiny', '--mode=plan').returncode == 2
