"""Kernels of models: recorded, quantized at their paths, and read from there."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Facts, Noise
from bmx.models import kernels
from bmx.models.gpt import GPT
from bmx.parallel import Layout, jit, make_mesh, unbox
from bmx.tasks.language import CausalLM

NOISE = Noise(jax.random.PRNGKey(0), jnp.int32(0))
TOKENS = np.random.default_rng(0).integers(0, 16, (8, 8)).astype(np.int32)


@functools.cache
def made(scan):
  task = CausalLM(GPT(16, 8, width=32, depth=2, heads=4, kv_heads=2, scan=scan))
  with kernels.recorded() as found:
    variables = jax.jit(lambda: task.init(NOISE, {'tokens': TOKENS}))()
  return task, found, variables['params']


@pytest.mark.parametrize('scan', [False, True])
def test_every_kernel_is_recorded(scan):
  _, found, params = made(scan)
  names = {k.removesuffix('/kernel') for k in tree.named(unbox(params)) if k.endswith('/kernel')}
  assert set(found) == names
  (query,) = {v for k, v in found.items() if k.endswith('query')}
  assert query == kernels.Kernel('btd,dnh->btnh', (32, 4, 8), ('embed', 'heads', 'head'), 1)
  assert query.dims(4) == (1,)


@pytest.mark.parametrize(('kind', 'scan', 'mesh'), [
  ('int8', False, {}),
  ('nf4', False, {'fsdp': 2, 'model': 2}),
  ('nf4', True, {}),
  ('int8', True, {'data': 8}),
  ('int8', True, {'fsdp': 2, 'model': 2}),
])  # fmt: skip
def test_a_model_reads_quantized_kernels(kind, scan, mesh):
  """As the plain model reads the rounded kernels; on every layout."""
  task, found, params = made(scan)
  rest, quantized = jax.jit(lambda p: kernels.split(p, found, kind, 8))(unbox(params))
  assert not [k for k in tree.named(rest) if k.endswith('/kernel')]
  plain = jax.jit(kernels.join)(rest, quantized)
  assert tree.signature(plain) == tree.signature(unbox(params))

  def forward(variables):
    read = tuple(k for k in variables if k != 'params')
    out, new = task.forward(
      variables, {'tokens': TOKENS}, NOISE, train=True, method='logits', read=read
    )
    assert not new
    return out.value

  devices = int(np.prod([1, *mesh.values()]))
  run = jit(forward, Layout(make_mesh(mesh, jax.devices()[:devices])))
  given = run({'params': rest, 'quantized': quantized})
  whole = jax.jit(forward)
  np.testing.assert_allclose(given, whole({'params': plain}), atol=1e-5)
  assert np.abs(given - whole({'params': unbox(params)})).max() > 1e-4


def test_boxes_name_the_codes():
  _, found, params = made(True)
  rest, quantized = kernels.split(params, found.matching('query'), 'int4', 8)
  boxes = tree.named(quantized, is_leaf=lambda x: hasattr(x, 'names'))
  names = {k.rpartition('/')[2]: (v.names, v.value.shape) for k, v in boxes.items()}
  axes = ('layers', 'embed', None, 'heads', 'head')
  assert names == {'int4': (axes, (2, 4, 4, 4, 8)), 'scale': (axes, (2, 4, 1, 4, 8))}
  assert 'stack/blocks/attention/key/kernel' in tree.named(unbox(rest))


class Stock(nn.Module):
  """A layer of linen itself."""

  facts = Facts(num_outputs=2)

  @nn.compact
  def __call__(self, x, *, train=False):
    return nn.Dense(2, name='out')(x)


def test_errors_name_what_can_be_chosen():
  _, found, _ = made(False)
  with pytest.raises(InputError, match="targets='quary': expected a regex") as error:
    found.matching('quary')
  assert 'stack/block_0/attention/query' in str(error.value)
  with kernels.recorded() as stock:
    Stock().init(jax.random.PRNGKey(0), np.ones((1, 3), np.float32))
  with pytest.raises(InputError, match='out is a Dense, which cannot be intercepted'):
    stock.matching('out')
