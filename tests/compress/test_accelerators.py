"""Products of codes in programs of the real TPU and GPU compilers; nothing is run."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bmx.compress.quantize import Quantized
from bmx.core.types import Noise
from bmx.models.gpt import GPT
from bmx.parallel import Layout, jit, make_mesh
from bmx.plan import topology
from bmx.runtime import cache
from bmx.tasks.language import CausalLM
from bmx.train.state import plan_state

pytest.importorskip('libtpu', reason='the extra `aot` is not installed')
pytest.importorskip('jax_cuda12_plugin', reason='the extra `aot` is not installed')


def products(text: str) -> Counter:
  """Counts the products of an optimized program by the types of (result, operands)."""
  types = dict(re.findall(r'%([\w.\-]+) = (\w+)\[', text))
  found = re.findall(r'= (\w+)\[[^=]*? (?:dot|convolution)\(([^)]*)\)', text)
  operand = lambda given: types.get(given.split()[-1].lstrip('%'))
  return Counter((result, *map(operand, operands.split(','))) for result, operands in found)


@pytest.mark.parametrize(('where', 'kind', 'product', 'least'), [
  ('v5e:2x2', 'int8', ('s32', 's8', 's8'), 6),  # query, key, value, out, up, down
  ('h200:1', 'fp8', ('f32', 'f8e4m3fn', 'f8e4m3fn'), 4),  # the first three are one product
])  # fmt: skip
def test_products_are_computed_in_codes(where, kind, product, least):
  devices = topology.devices(where)
  layout = Layout(make_mesh({'data': len(devices)}, devices))
  model = GPT(512, 128, width=256, depth=2, heads=2, scan=True)
  task = Quantized(CausalLM(model), kind=kind, activations=kind)
  place = layout.sharding('batch')
  array = lambda dtype: jax.ShapeDtypeStruct((8 * len(devices), 128), dtype, sharding=place)
  batch = {'tokens': array(np.int32), 'targets': array(np.int32), 'weights': array(np.float32)}
  spec = plan_state(task, optax.identity(), batch, layout)
  noise = Noise(jax.random.PRNGKey(0), jnp.int32(0))
  loss = jit(lambda v, b: task.loss(v, b, noise, train=False).sum, layout)
  with cache.nothing_kept():
    found = products(loss.lower(spec.variables, batch).compile().as_text())
  assert found[product] >= least, found
