"""Quantized kernels: rounding, packing, shapes and names, against numpy."""

import jax
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.ops import stored

RANDOM = np.random.default_rng(0)
SHAPES = [((64, 8), (0,)), ((64, 4, 8), (0,)), ((4, 16, 32), (0, 1)), ((3, 64, 8), (1,))]


def rounded(w, kind, over):
  """Numpy: the nearest of the levels of each group."""
  peak = np.abs(w).max(over, keepdims=True)
  levels = {
    'int8': np.arange(-127, 128) / 127,
    'int4': np.arange(-7, 8) / 7,
    'nf4': np.array(stored.NF4),
  }[kind]
  scaled = w / np.where(peak > 0, peak, 1)
  return levels[np.abs(scaled[..., None] - levels).argmin(-1)] * peak


@pytest.mark.parametrize('shape, contracted', SHAPES, ids=str)
@pytest.mark.parametrize('kind', ['int8', 'int4', 'nf4'])
def test_codes_are_the_nearest_levels(kind, shape, contracted):
  w = RANDOM.normal(size=shape).astype(np.float32)
  given = stored.quantize(w, kind, contracted, 16)
  axis = contracted[-1]
  if kind == 'int8':
    expected = rounded(w, kind, contracted)
  else:
    grouped = w.reshape(*shape[:axis], shape[axis] // 16, 16, *shape[axis + 1 :])
    expected = rounded(grouped, kind, (axis + 1,)).reshape(shape)
  found = stored.dequantize(given)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert stored.is_stored(given)
  assert stored.kind_of(given) == kind
  assert not stored.is_stored({'kernel': w})
  bits = 8 * given[kind].nbytes / w.size
  assert bits == (8 if kind == 'int8' else 4)


def test_fp8_is_the_nearest_float8():
  w = RANDOM.normal(size=(32, 8)).astype(np.float32)
  scale = np.abs(w).max(0, keepdims=True) / 448
  import ml_dtypes

  expected = (w / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale
  np.testing.assert_allclose(
    stored.dequantize(stored.quantize(w, 'fp8', (0,))), expected, rtol=1e-6
  )


@pytest.mark.parametrize('kind', stored.KINDS)
def test_zero_stays_zero(kind):
  w = RANDOM.normal(size=(64, 8)).astype(np.float32)
  w[RANDOM.random(w.shape) < 0.5] = 0
  w[:, 3] = 0
  found = np.asarray(stored.dequantize(stored.quantize(w, kind, (0,), 16)))
  assert not found[w == 0].any()


@pytest.mark.parametrize('kind', stored.KINDS)
def test_layers_of_a_stack_are_quantized_apart(kind):
  w = RANDOM.normal(size=(3, 64, 4, 8)).astype(np.float32)
  stack = stored.quantize(w, kind, (1,), 16)
  for i in range(3):
    one = stored.quantize(w[i], kind, (0,), 16)
    layer = jax.tree.map(lambda x, i=i: x[i], stack)
    np.testing.assert_array_equal(stored.dequantize(layer), stored.dequantize(one))
  names = stored.stored_names(kind, ('layers', 'embed', 'heads', 'head'), (1,))
  assert {k: len(names[k]) for k in stack} == {k: v.ndim for k, v in stack.items()}


@pytest.mark.parametrize('group', [2, 5, 24])
def test_a_group_that_does_not_divide_is_refused(group):
  with pytest.raises(InputError, match=f'group={group}: expected'):
    stored.quantize(np.ones((64, 8), np.float32), 'int4', (0,), group)
  with pytest.raises(InputError, match="'int5': expected one of"):
    stored.quantize(np.ones((64, 8), np.float32), 'int5', (0,), 4)


@pytest.mark.parametrize('kind', stored.KINDS)
def test_a_given_scale_and_factors_of_inputs(kind):
  """Rounded values with their scale are stored exactly; factors multiply each input's weights."""
  w = RANDOM.normal(size=(3, 64, 8)).astype(np.float32)
  first = stored.quantize(w, kind, (1,), 16)
  again = stored.quantize(stored.dequantize(first), kind, (1,), 16, scale=first['scale'])
  np.testing.assert_array_equal(again[kind], first[kind])
  factors = np.exp(RANDOM.normal(size=(3, 64, 1))).astype(np.float32)
  scaled = stored.quantize(w, kind, (1,), 16, inputs=factors)
  plain = stored.dequantize(stored.quantize(w / factors, kind, (1,), 16))
  np.testing.assert_allclose(stored.dequantize(scaled), plain * factors, rtol=1e-6)
  assert jax.tree.all(jax.tree.map(np.array_equal, stored.like(w, scaled), scaled))
  names = stored.stored_names(kind, ('layers', 'embed', 'mlp'), (1,))
  assert names['inputs'] == ('layers', 'embed', None)


@pytest.mark.parametrize(('equation', 'shape', 'contracted'), [
  ('btd,df->btf', (64, 8), 1), ('btnh,nhd->btd', (4, 16, 24), 2), ('btd,dnh->btnh', (64, 2, 8), 1),
])  # fmt: skip
@pytest.mark.parametrize('kind', ['int8', 'fp8'])
def test_products_of_codes(kind, equation, shape, contracted):
  """Numpy: rows and kernel are rounded, and multiplied in float64."""
  w = RANDOM.normal(size=shape).astype(np.float32)
  x = RANDOM.normal(size=(2, 5, *shape[:contracted])).astype(np.float32)
  factors = np.exp(RANDOM.normal(size=(*shape[:contracted], *[1] * (len(shape) - contracted))))
  kernel = stored.quantize(w, kind, range(contracted), inputs=factors.astype(np.float32))
  found = stored.product(equation, x, kernel, contracted)
  x = x * factors.reshape(shape[:contracted]).astype(np.float32)
  rows = stored.dequantize(stored.quantize(x, kind, range(2, x.ndim)))
  kernel = stored.dequantize({k: v for k, v in kernel.items() if k != 'inputs'})
  expected = np.einsum(equation, *(np.asarray(a, np.float64) for a in (rows, kernel)))
  np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())
