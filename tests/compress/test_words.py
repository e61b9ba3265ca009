"""Words of mode `compress`: those that a method does not read, and those that messages name."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx import cli
from bmx import config as recipes
from bmx.compress import calibrate
from bmx.compress.quantize import Scheme
from bmx.compress.rule import Rule
from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.models import kernels
from bmx.models.gpt import GPT
from bmx.modes.compress import plain_config
from bmx.modes.compressors import Plain, checked, compressed
from bmx.parallel import Layout, jit, make_mesh, unbox
from bmx.tasks.language import CausalLM

NOISE = Noise(jax.random.PRNGKey(0), jnp.int32(0))
TOKENS = np.random.default_rng(0).integers(0, 16, (4, 8)).astype(np.int32)
BATCH = {'tokens': TOKENS, 'targets': TOKENS, 'weights': np.ones((4, 8), np.float32)}
TASK = CausalLM(GPT(16, 8, width=32, depth=2, heads=2, mlp_dim=64, scan=True))
TRAINED = {'kind': 'int4', 'group': 16, 'targets': 'attention'}


def layout(**mesh):
  return Layout(make_mesh(mesh, jax.devices()[: int(np.prod([1, *mesh.values()]))]))


def words(**given):
  return {**recipes.plain(recipes.base())['compress'], **given}


def plain(open_data=None, mesh=None, **given):
  data = types.SimpleNamespace(
    abstract={k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in BATCH.items()}
  )
  x = types.SimpleNamespace(task=TASK, data=data, layout=layout(**(mesh or {})))
  params = jax.eval_shape(lambda: unbox(TASK.init(NOISE, BATCH)['params']))
  params = jax.tree.map(lambda v: np.ones(v.shape, v.dtype), params)
  return Plain(x, {'params': params}, checked(words(**given), {}), open_data or (lambda: x))


@pytest.mark.parametrize(('given', 'message'), [
  ({'method': 'magnitude', 'kind': 'int4'}, "kind='int4': expected 'int8' with compress.method"),
  ({'method': 'gptq', 'sparsity': 0.9}, 'sparsity=0.9: expected 0.5 .* compress.method=magnitude'),
  ({'method': 'shrink', 'targets': 'x'}, "targets='x': expected '' with compress.method=shrink"),
  ({'method': 'wanda', 'activations': 'int8'}, "activations='int8': expected '' with"),
  ({'pattern': '2:4'}, "pattern='2:4': expected 'unstructured' with compress.method=nearest"),
  ({'group': 16}, 'group=16: expected compress.kind=int4 or nf4 with it, as int8 has a scale'),
  ({'examples': 64}, 'examples=64: expected 128 with .* set compress.method=gptq or awq or wanda'),
])  # fmt: skip
def test_words_that_the_method_does_not_read(given, message):
  with pytest.raises(InputError, match=r'^compress\.' + message):
    checked(words(**given), {})


def test_a_kind_beside_a_method_that_prunes(capsys):
  """int8 is the default of the kind, so that only the command shows that it was asked for."""
  with pytest.raises(SystemExit):
    cli.translate(['compress', 'runs/a', '--int8', '--magnitude'])
  assert 'error: --int8 --magnitude: expected one of the two' in capsys.readouterr().err


@pytest.mark.parametrize('given', [('--gptq', '--magnitude'), ('--int4', '--group=16', '--nf4')])
def test_two_short_forms_of_one_word(given, capsys):
  with pytest.raises(SystemExit):
    cli.translate(['compress', 'runs/a', *given])
  said = capsys.readouterr().err
  assert f'error: {given[0]} {given[-1]}: expected one value of compress.' in said


def test_the_rounding_of_the_training_gives_the_words():
  config, _ = recipes.load('gpt_char:tiny', ['compress.method=magnitude'])
  call = 'bmx.compress.quantize:FakeQuantize'
  config.task = {'call': call, 'inner': config.task.to_dict(), **TRAINED}
  found, trained = plain_config(config)
  assert found['compress'] == words()
  assert TRAINED.items() <= checked(words(), trained).items()
  assert TRAINED.items() <= checked(words(group=16), trained).items()
  with pytest.raises(InputError, match="compress.kind='nf4': expected 'int4', the rounding that"):
    checked(words(kind='nf4'), trained)
  assert checked(words(method='magnitude'), trained)['targets'] == ''


@pytest.mark.parametrize(('given', 'message'), [
  ({'method': 'gptq', 'kind': 'int4', 'group': 24}, '/kernel: compress.group=24: expected a'),
  ({'method': 'gptq', 'kind': 'int4', 'group': 0}, '/kernel: compress.group=0: expected an even'),
  ({'method': 'magnitude', 'pattern': 'rows'}, "compress.pattern='rows': expected one of"),
  ({'method': 'magnitude', 'pattern': 'channels'}, "compress.pattern='channels': expected a model"),
  ({'method': 'wanda', 'pattern': 'heads'}, "found compress.pattern='heads', compress.sco"),
])  # fmt: skip
def test_words_are_checked_before_data_are_read(given, message):
  with pytest.raises(InputError, match=message):
    compressed(plain(lambda: pytest.fail('data were read'), **given))


def test_groups_that_the_mesh_does_not_divide():
  """Two groups of 16 inputs on four devices; four of 8 would do."""
  message = r'/int4 \(another compress.group=N makes .* is not divisible by fsdp=4; change'
  with pytest.raises(InputError, match=message):
    compressed(plain(mesh={'fsdp': 4}, kind='int4', group=16))


def test_targets_are_the_same_of_all_methods():
  """The path of the module, whose end a regex can name."""
  params = plain().variables['params']
  with kernels.recorded() as found:
    jax.eval_shape(lambda: TASK.init(NOISE, BATCH))
  expected = {'stack/blocks/attention/query/kernel'}
  assert Scheme(targets='query$').chosen(found).keys() == expected
  assert Rule(targets='query$').start(params).keys() == expected
  assert {f'{path}/kernel' for path in found.matching('query$')} == expected


def test_a_layer_whose_inputs_were_not_seen(monkeypatch):
  monkeypatch.setattr(calibrate, 'batches', lambda *_: [])
  monkeypatch.setattr(calibrate, 'hessians', lambda *_: {'stack/blocks/attention/key': 1})
  message = 'compress.method=awq: expected the inputs of stack/blocks/attention/out, which'
  with pytest.raises(InputError, match=message):
    compressed(plain(method='awq'))


def test_stages_of_a_pipeline_are_scanned():
  params = jit(lambda: unbox(TASK.init(NOISE, BATCH)['params']), layout())()
  params = jax.device_get(params)
  one, two = (
    calibrate.hessians(TASK, {'params': params}, [BATCH], at) for at in (layout(), layout(pipe=2))
  )
  assert len(one) == 6
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), one, two)
