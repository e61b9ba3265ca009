"""Outputs of modules: captured and changed by path, in a loop, a scan and a pipeline alike."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.adapt.lora import LoRA
from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.interpret.patches import Patch, forward, places
from bmx.parallel import Layout, make_mesh, unbox
from bmx.parallel import jit as placed_jit
from tests.conftest import ROOT
from tests.interpret.subjects import run, subject
from tests.models.test_interception import stacked
from tests.models.weights import drawn

NOISE = Noise(jax.random.PRNGKey(0), jnp.int32(0))
LAYER, INNER = 'stack/block_1', 'stack/block_0/attention/value'


def subjects():
  """The same GPT with its layers apart and stacked."""
  apart, scanned = subject('gpt'), subject('gpt', scan=True)
  return apart, scanned, {'params': stacked(apart.variables['params'])}


def changed(batch):
  return batch | {'tokens': (batch['tokens'] + 1) % 12}


def test_the_last_output_decides():
  """With a layer's output of another text, everything behind it is as for that text."""
  s = subject('gpt')
  other = changed(s.batch)
  clean = run(lambda v: forward(s.task, v, other, capture=(LAYER,)), s.variables)
  patch = {LAYER: Patch(clean.captured[LAYER])}
  found = run(lambda v: forward(s.task, v, s.batch, patches=patch, capture=(LAYER,)), s.variables)
  np.testing.assert_allclose(found.value, clean.value, atol=1e-5)
  np.testing.assert_array_equal(found.captured[LAYER], clean.captured[LAYER])
  # At one position only: earlier positions see nothing of it, as attention is causal.
  where = np.arange(8)[None, :, None] == 4
  partly = {'stack/block_0': Patch(jnp.full((1, 1, 16), 0.5), where)}
  plain = run(lambda v: forward(s.task, v, s.batch).value, s.variables)
  found = run(lambda v: forward(s.task, v, s.batch, patches=partly).value, s.variables)
  moved = np.abs(found - plain).max((0, 2))
  assert moved[:4].max() == 0 < moved[4:].min()


@pytest.mark.parametrize('pipe', [1, 2])
def test_layers_of_a_scan_and_a_pipeline_are_those_of_a_loop(pipe):
  apart, scanned, params = subjects()
  patches = {INNER: Patch(jnp.full((1, 1, 1, 1), 0.3)), LAYER: Patch(added=jnp.ones((1, 1, 1)))}
  capture = (LAYER, INNER, 'stack/block_0', 'norm_out')
  call = lambda s: lambda v: forward(s.task, v, s.batch, patches=patches, capture=capture)
  expected = run(call(apart), apart.variables)
  layout = Layout(make_mesh({'pipe': pipe}, jax.devices()[:pipe]), {'layers': ('pipe',)})
  found = placed_jit(call(scanned), layout)(params)
  np.testing.assert_allclose(found.value, expected.value, atol=1e-5)
  for path in capture:
    np.testing.assert_allclose(found.captured[path], expected.captured[path], atol=1e-5)
  plain = run(lambda v: forward(apart.task, v, apart.batch).value, apart.variables)
  assert np.abs(plain - expected.value).max() > 0.1


def test_modules_have_the_same_names_in_a_scan():
  apart, scanned, params = subjects()
  first = places(apart.task, apart.variables, apart.batch)
  second = places(scanned.task, params, scanned.batch)
  assert {k: v.output for k, v in first.items()} == {k: v.output for k, v in second.items()}
  assert second['stack/block_1/attention'].own == 'stack/blocks/attention'
  order = list(second)
  assert order.index('stack/block_0') < order.index('stack/block_1') < order.index('norm_out')


def test_unknown_paths_are_named():
  s = subject('gpt')
  with pytest.raises(InputError, match="'stack/block_2': expected the path of a module; did you"):
    forward(s.task, s.variables, s.batch, capture=('stack/block_2',))
  with pytest.raises(InputError, match='expected the path of a module'):
    forward(s.task, s.variables, s.batch, patches={'stock/block_0': Patch(added=jnp.ones(()))})


def test_python_of_the_page():
  """The patched position changes the outputs of the text from there on, and not before."""
  (code,) = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/interpret.md').read_text(), re.DOTALL)
  scope: dict = {}
  exec(compile(code, 'interpret.md', 'exec'), scope)
  plain = scope['forward'](scope['task'], scope['variables'], {'tokens': scope['text']}).value
  moved = np.abs(scope['logits'] - plain).max((0, 2))
  assert moved[:3].max() == 0 < moved[3:].min()


def test_a_patch_lies_around_adapters():
  """The output of an adapted layer is replaced with what its adapter adds, and captured with it."""
  base = subject('mlp')
  task = LoRA(base.task, rank=2, targets='dense_0')
  variables = drawn(unbox(jax.eval_shape(lambda: task.init(NOISE, base.batch))), scale=0.5)
  patch = {'dense_0': Patch(jnp.full((1, 1), 0.25))}
  found = run(
    lambda v: forward(task, v, base.batch, patches=patch, capture=('dense_0',)), variables
  )
  np.testing.assert_allclose(found.captured['dense_0'], 0.25)
  plain = {'params': task.merged_params(variables)}
  expected = run(lambda v: forward(base.task, v, base.batch, patches=patch).value, plain)
  np.testing.assert_allclose(found.value, expected, atol=1e-5)
  whole = run(lambda v: forward(task, v, base.batch, capture=('dense_0',)), variables)
  merged = run(lambda v: forward(base.task, v, base.batch, capture=('dense_0',)), plain)
  np.testing.assert_allclose(whole.captured['dense_0'], merged.captured['dense_0'], atol=1e-5)
