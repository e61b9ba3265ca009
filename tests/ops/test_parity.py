"""Every implementation of attention × every mask, values and gradients.

The reference is the formula in float64. `cudnn` computes on a GPU only: here its cells are errors.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.data.shapes import Shapes
from bmx.data.text.windows import token_spec
from bmx.data.transforms import Reorder
from bmx.ops.attention import attend, impossible
from bmx.ops.ring import zigzag
from bmx.parallel import Layout, jit, make_mesh

LENGTH = 128
ONE: dict[str, int] = {}
RULES = {
  'full': {},
  'causal': {'causal': True},
  'window': {'causal': True, 'window': 37},
  'packed': {'causal': True, 'packed': True},
  'packed, full': {'packed': True},
}
SHAPES = {'heads of 64': (2, 2, 64), 'grouped heads of 128': (4, 2, 128)}  # N, K, H
TOLERANCE = {'float32': 2e-5, 'bfloat16': 2e-2}  # of the largest value


def tensors(heads, groups, size, dtype, batch=2):
  random = np.random.default_rng(0)
  shapes = [(batch, LENGTH, n, size) for n in (heads, groups, groups, heads)]
  return [jnp.asarray(random.normal(size=s), dtype) for s in shapes]


def segments(batch=2):
  ends = [(41 + 7 * b, 90 + b) for b in range(batch)]
  return np.stack([np.searchsorted(e, np.arange(LENGTH), side='right') for e in ends]) + 1


def oracle(q, k, v, cotangent, causal=False, window=0, packed=False):
  """-> (out, dq, dk, dv) in float64, from the formulas of softmax attention and its derivative."""
  q, k, v, g = (np.asarray(x.astype(jnp.float32), np.float64) for x in (q, k, v, cotangent))
  each = q.shape[2] // k.shape[2]
  wide_k, wide_v = np.repeat(k, each, 2), np.repeat(v, each, 2)
  ahead = np.arange(LENGTH)[:, None] - np.arange(LENGTH)[None, :]
  seen = np.ones((1, LENGTH, LENGTH), bool)
  if causal:
    seen = seen & (ahead >= 0)[None]
  if window:
    seen = seen & (ahead < window)[None]
  if packed:
    ids = segments(len(q))
    seen = seen & (ids[:, :, None] == ids[:, None, :])
  scale = q.shape[-1] ** -0.5
  scores = np.where(seen[:, None], np.einsum('btnh,bsnh->bnts', q, wide_k) * scale, -np.inf)
  p = np.exp(scores - scores.max(-1, keepdims=True))
  p /= p.sum(-1, keepdims=True)
  dp = np.einsum('btnh,bsnh->bnts', g, wide_v)
  ds = p * (dp - (dp * p).sum(-1, keepdims=True)) * scale
  narrow = lambda x: x.reshape(*k.shape[:3], each, -1).sum(3)
  dk = narrow(np.einsum('bnts,btnh->bsnh', ds, q))
  dv = narrow(np.einsum('bnts,btnh->bsnh', p, g))
  return np.einsum('bnts,bsnh->btnh', p, wide_v), np.einsum('bnts,bsnh->btnh', ds, wide_k), dk, dv


def computed(impl, q, k, v, cotangent, causal=False, window=0, packed=False, mesh=ONE):
  ids = jnp.asarray(segments(len(q))) if packed else None
  options = {'causal': causal, 'window': window, 'impl': impl, 'interpret': impl == 'splash'}

  def value(q, k, v, ids, positions):
    return attend(q, k, v, segment_ids=ids, positions=positions, **options)

  def both(q, k, v, g, ids, positions):
    out, back = jax.vjp(lambda q, k, v: value(q, k, v, ids, positions), q, k, v)
    return out, *back(g)

  if impl != 'ring':
    layout = Layout(make_mesh(mesh, jax.devices()[: math.prod(mesh.values())]))
    return jit(both, layout)(q, k, v, cotangent, ids, None)
  # The tokens lie in zig-zag order on four devices, with rows on two others.
  layout = Layout(make_mesh({'data': 2, 'seq': 4}))
  order = zigzag(LENGTH, 4)
  there = lambda x: None if x is None else x[:, order]
  positions = jnp.broadcast_to(jnp.asarray(order)[None], q.shape[:2])
  args = [there(x) for x in (q, k, v, cotangent, ids)]
  return [x[:, np.argsort(order)] for x in jit(both, layout)(*args, positions)]


# Each rule meets each shape and each type, but not each pair of them.
CELLS = [
  (impl, rule, shape, dtype)
  for impl in ('xla', 'ring', 'splash')
  for number, rule in enumerate(RULES)
  for shape in SHAPES
  for dtype in TOLERANCE
  if (dtype == 'bfloat16') == (shape == 'heads of 64') ^ (impl == 'splash' or number % 2 == 0)
]


@pytest.mark.parametrize(('impl', 'rule', 'shape', 'dtype'), CELLS)
def test_cell(impl, rule, shape, dtype):
  args = tensors(*SHAPES[shape], dtype)
  given = computed(impl, *args, **RULES[rule])
  for name, a, b in zip(['o', 'q', 'k', 'v'], given, oracle(*args, **RULES[rule]), strict=True):
    error = np.abs(np.asarray(a.astype(jnp.float32)) - b).max() / np.abs(b).max()
    assert error < TOLERANCE[dtype], f'{name}: {error}'


@pytest.mark.parametrize('mesh', [{'data': 2, 'model': 2}, {'fsdp': 2}], ids=str)
@pytest.mark.parametrize('rule', ['packed', 'packed, full'])
@pytest.mark.parametrize('impl', ['xla', 'splash'])
def test_documents_stay_apart_in_every_layout(impl, rule, mesh):
  args = tensors(2, 2, 64, 'float32')
  given = computed(impl, *args, **RULES[rule], mesh=mesh)
  for a, b in zip(given, oracle(*args, **RULES[rule]), strict=True):
    assert np.abs(np.asarray(a) - b).max() < 2e-5 * np.abs(b).max()


REFUSED = {
  'cudnn on a CPU': ({'impl': 'cudnn'}, "needs a GPU, and this is for cpu; .*'xla'"),
  'cudnn in float32': ({'impl': 'cudnn', 'platform': 'gpu'}, 'computes in 16 bits, not float32'),
  'cudnn, large heads': (
    {'impl': 'cudnn', 'platform': 'gpu', 'dtype': 'bfloat16', 'size': 192}, 'up to 128, not 192'),
  'splash on a CPU': ({'impl': 'splash'}, 'needs a TPU, and this is for cpu'),
  'splash, odd length': ({'impl': 'splash', 'platform': 'tpu', 'length': 100}, 'that 128 divides'),
  'xla on a cut sequence': ({'impl': 'xla', 'shards': 4}, "mesh.seq=4: .*attention='ring'"),
  'ring on a whole sequence': ({'impl': 'ring'}, "mesh.seq=1: .*attention='xla'"),
  'ring that does not divide': ({'impl': 'ring', 'shards': 3}, '128 is not divisible by'),
}  # fmt: skip
ASKED = {'platform': 'cpu', 'dtype': 'float32', 'length': 128, 'keys': 128, 'size': 64}


@pytest.mark.parametrize('case', REFUSED)
def test_impossible_cells_say_what_is_possible(case):
  import re

  what, message = REFUSED[case]
  asked = ASKED | {'keys': what.get('length', 128)} | what
  assert re.search(message, impossible(**asked))


def test_possible_cells_are_not_refused():
  for impl, platform in (('xla', 'cpu'), ('splash', 'tpu'), ('xla', 'tpu')):
    assert impossible(impl, **ASKED | {'platform': platform}) == ''
  assert impossible('cudnn', **ASKED | {'platform': 'gpu', 'dtype': 'bfloat16'}) == ''


def test_a_refused_cell_is_an_error_where_it_is_used():
  q, k, v, _ = tensors(2, 2, 64, 'float32')
  with pytest.raises(InputError, match='needs a GPU'):
    attend(q, k, v, impl='cudnn')
  with pytest.raises(InputError, match='expected at least 1 and causal attention'):
    attend(q, k, v, window=4)


def test_the_ring_never_holds_all_scores():
  """Temporary memory of value and gradient, by the compiler: far below the T × T scores."""
  length = 32768
  layout = Layout(make_mesh({'seq': 8}))
  shape = jax.ShapeDtypeStruct((1, length, 2, 32), np.float32)
  loss = lambda q, k, v: attend(q, k, v, causal=True, impl='ring').sum()
  grad = jit(jax.grad(loss, argnums=(0, 1, 2)), layout)
  memory = grad.lower(shape, shape, shape).compile().memory_analysis()
  assert (
    memory.temp_size_in_bytes < 2 * length * length * 4 / 8 / 4
  )  # a quarter of a device's share


def test_zigzag_gives_every_device_equal_causal_work():
  order = zigzag(64, 4).reshape(4, 16)
  work = (order + 1).sum(1)  # keys that each query sees
  assert len(set(work.tolist())) == 1
  assert sorted(order.ravel().tolist()) == list(range(64))
  with pytest.raises(InputError, match='100 is not divisible into the 8 chunks'):
    zigzag(100, 4)


def test_reordering_moves_labels_with_their_tokens():
  class Rows(Shapes):
    def rows(self, indices, positions):
      tokens = np.arange(16, dtype=np.int32)[None].repeat(2, 0)
      return {'tokens': tokens, 'targets': tokens + 1, 'weights': (tokens < 15).astype(np.float32)}

  data = Reorder(Rows(token_spec(16), {}), zigzag(16, 2))
  rows = data.rows(np.zeros(2, int), np.arange(2))
  np.testing.assert_array_equal(rows['targets'], rows['tokens'] + 1)
  np.testing.assert_array_equal(rows['positions'], rows['tokens'])
  assert {k: v.shape[1:] for k, v in rows.items()} == {k: v.shape for k, v in data.spec.items()}
