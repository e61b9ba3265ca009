"""Interceptors find the kernel, the product and the result of every dense layer.

Outputs of modules are captured by path.
"""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core import tree
from bmx.core.types import Noise
from bmx.models.gpt import GPT
from bmx.models.layers import Einsum, Embed
from bmx.models.moe import MoE
from bmx.parallel import Layout, jit, make_mesh
from bmx.tasks.language import CausalLM
from tests.models.weights import variables

T, V = 8, 12
TOKENS = np.random.default_rng(0).integers(0, V, (4, T)).astype(np.int32)
KERNEL = re.compile(r'.*/(kernel|(up|gate|down))$')


def gpt(**options):
  return GPT(V, T, width=16, depth=2, heads=4, tied=False, **options)


def stacked(params):
  """Parameters of separate blocks as those of a scan."""
  blocks = params['stack']
  joined = jax.tree.map(lambda *x: jnp.stack(x), *(blocks[f'block_{i}'] for i in range(2)))
  return params | {'stack': {'blocks': joined}}


def run(model, params, interceptor=None):
  call = jax.jit(lambda params: model.apply({'params': params}, TOKENS))
  if interceptor is None:
    return call(params)
  with nn.intercept_methods(interceptor):
    return call(params)


@pytest.mark.parametrize('options', [{}, {'scan': True}, {'experts': 4}], ids=str)
def test_a_doubled_weight_is_a_doubled_kernel(options):
  model = gpt(**options)
  params = variables(model, TOKENS)['params']

  def double(next_fun, args, kwargs, context):
    y = next_fun(*args, **kwargs)
    dense = isinstance(context.module, Einsum | MoE)
    return 2 * y if dense and context.method_name == 'weight' else y

  grown = tree.map_named(lambda k, v: 2 * v if KERNEL.match(k) else v, params)
  given = run(model, params, double)
  np.testing.assert_array_equal(given, run(model, grown))
  assert np.abs(given - run(model, params)).max() > 1e-3


@pytest.mark.parametrize('scan', [False, True])
def test_products_see_inputs_and_kernels(scan):
  model = gpt(scan=scan)
  params = variables(model, TOKENS)['params']
  seen = {}

  def look(next_fun, args, kwargs, context):
    if isinstance(context.module, Einsum) and context.method_name == 'product':
      x, w = args
      seen['/'.join(context.module.path)] = x.shape, w.shape
    return next_fun(*args, **kwargs)

  run(model, params, look)
  kernels = {k.removesuffix('/kernel'): v for k, v in tree.named(params).items()
             if k.endswith('/kernel')}  # fmt: skip
  assert seen.keys() == kernels.keys()
  for name, kernel in kernels.items():
    x, w = seen[name]
    assert x[:2] == TOKENS.shape
    assert w == kernel.shape[scan:]


@pytest.mark.parametrize('scan', [False, True])
def test_an_adapter_on_the_output_is_another_kernel(scan):
  model, random = gpt(scan=scan), np.random.default_rng(1)
  params = variables(model, TOKENS)['params']
  a, b = random.normal(size=(16, 2)), random.normal(size=(2, 4, 4))

  def adapt(next_fun, args, kwargs, context):
    y = next_fun(*args, **kwargs)
    if context.module.name != 'query' or context.method_name != '__call__':
      return y
    return y + jnp.einsum('btd,dr,rnh->btnh', args[0], a.astype('f'), b.astype('f'))

  delta = np.einsum('dr,rnh->dnh', a, b).astype('f')
  delta = delta[None] if scan else delta
  merged = tree.map_named(lambda k, v: v + delta if k.endswith('query/kernel') else v, params)
  np.testing.assert_allclose(run(model, params, adapt), run(model, merged), atol=2e-5)


def captured(model, params, mesh=None):
  """Outputs of attention [L, B, T, D]."""
  layout = Layout(make_mesh(mesh or {}, jax.devices()[: int(np.prod([1, *(mesh or {}).values()]))]))
  wanted = lambda module, _: module.name == 'attention'

  def apply(params, tokens):
    return model.apply(
      {'params': params}, tokens, capture_intermediates=wanted, mutable=['intermediates']
    )

  logits, found = jit(apply, layout)(params, TOKENS)
  found = {k: v[0][0] for k, v in _outputs(found['intermediates']['stack']).items()}
  return logits, found['blocks'] if 'blocks' in found else jnp.stack([*found.values()])


def _outputs(found):
  return {name: block['attention']['__call__'] for name, block in found.items()}


def test_captured_outputs_do_not_depend_on_how_layers_are_computed():
  params = variables(gpt(), TOKENS)['params']
  logits, expected = captured(gpt(), params)
  assert expected.shape == (2, *TOKENS.shape, 16)
  scan = gpt(scan=True)
  for mesh in ({}, {'pipe': 2}):
    values, given = captured(scan, stacked(params), mesh)
    np.testing.assert_allclose(given, expected, atol=1e-5)
    np.testing.assert_allclose(values, logits, atol=1e-5)


def test_a_program_that_captures_nothing_is_the_same():
  """A filter that matches no module adds nothing to the program."""
  model = gpt(scan=True)
  params = variables(model, TOKENS)['params']
  plain = jax.jit(lambda p: model.apply({'params': p}, TOKENS))
  none = jax.jit(
    lambda p: model.apply({'params': p}, TOKENS, capture_intermediates=lambda *_: False)[0]
  )
  text = lambda f: re.sub(r'@jit_\w+|jit\(.*?\)', '', f.lower(params).as_text())
  assert text(plain) == text(none)


def test_a_task_captures_by_path():
  params = variables(gpt(), TOKENS)['params']
  noise = Noise(jax.random.PRNGKey(0), jnp.int32(0))

  def outputs(model, params, mesh):
    layout = Layout(make_mesh(mesh, jax.devices()[: int(np.prod([1, *mesh.values()]))]))
    task, batch = CausalLM(model), {'tokens': TOKENS}
    forward = lambda p: (
      task.forward(
        {'params': p}, batch, noise, train=False, method='logits', capture=('/attention$',)
      )[0].captured
    )
    return jax.device_get(jit(forward, layout)(params))

  single = outputs(gpt(), params, {})
  assert sorted(single) == ['stack/block_0/attention', 'stack/block_1/attention']
  for mesh in ({}, {'pipe': 2}):
    given = outputs(gpt(scan=True), stacked(params), mesh)
    np.testing.assert_allclose(
      given['stack/blocks/attention'], np.stack([*single.values()]), atol=1e-5
    )


@pytest.mark.parametrize('tied', [False, True])
def test_a_doubled_head_is_doubled_in_chunks_too(tied, monkeypatch):
  model = GPT(V, T, width=16, depth=1, heads=4, tied=tied)
  given = variables(model, TOKENS)
  rows = {'tokens': TOKENS, 'targets': TOKENS, 'weights': np.ones((4, T), np.float32)}

  def double(next_fun, args, kwargs, context):
    y = next_fun(*args, **kwargs)
    twice = isinstance(context.module, Embed) and context.method_name == 'stored_weight'
    return 2 * y if twice else y

  def loss():
    noise = Noise(jax.random.PRNGKey(0), 0)
    with nn.intercept_methods(double):
      return jax.jit(lambda v: CausalLM(model).loss(v, rows, noise, train=False).sum)(given)

  plain = loss()
  monkeypatch.setattr('bmx.tasks.language.CHUNKED_VOCAB', 1)
  np.testing.assert_allclose(loss(), plain, rtol=1e-5)


def test_a_collection_of_the_blocks_reaches_a_pipelined_stack():
  model = gpt(scan=True)
  params = variables(model, TOKENS)['params']
  shift = np.arange(1, model.depth + 1, dtype=np.float32)
  own = {'stack': {'blocks': {'attention': {'query': {'shift': shift}}}}}

  def adapt(next_fun, args, kwargs, context):
    y = next_fun(*args, **kwargs)
    if context.module.name != 'query' or context.method_name != '__call__':
      return y
    return y + context.module.get_variable('adapters', 'shift')

  def apply(params, own, tokens):
    with nn.intercept_methods(adapt):
      return model.apply({'params': params, 'adapters': own}, tokens)

  found = [
    np.asarray(jit(apply, Layout(make_mesh(mesh, jax.devices()[:n])))(params, own, TOKENS))
    for mesh, n in (({}, 1), ({'pipe': 2}, 2))
  ]
  np.testing.assert_allclose(found[1], found[0], atol=2e-5)
  assert np.abs(found[0] - run(model, params)).max() > 1e-3
