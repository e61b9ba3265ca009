"""Bytes that kernels move, of programs whose bytes are counted by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from bmx.models import layers
from bmx.plan import traffic

pytestmark = pytest.mark.quick

# A loop of 3: reads row i of `table` and writes it, doubled, into row i of `out`, in place.
LOOP = """
HloModule m, is_scheduled=true
%slices (p0: f32[3,8], p1: f32[3,8], p2: s32[]) -> f32[3,8] {
  %p0 = f32[3,8]{1,0} parameter(0)
  %p1 = f32[3,8]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,8]{1,0} dynamic-slice(%p1, %p2, %zero), dynamic_slice_sizes={1,8}
  %twice = f32[1,8]{1,0} add(%row, %row)
  ROOT %put = f32[3,8]{1,0} dynamic-update-slice(%p0, %twice, %p2, %zero)
}
%body (s: (s32[], f32[3,8], f32[3,8])) -> (s32[], f32[3,8], f32[3,8]) {
  %s = (s32[], f32[3,8]{1,0}, f32[3,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %out = f32[3,8]{1,0} get-tuple-element(%s), index=1
  %table = f32[3,8]{1,0} get-tuple-element(%s), index=2
  %f = f32[3,8]{1,0} fusion(%out, %table, %i), kind=kLoop, calls=%slices, \
    metadata={op_name="a/feed_forward/add"}
  ROOT %t = (s32[], f32[3,8]{1,0}, f32[3,8]{1,0}) tuple(%i, %f, %table)
}
%condition (s: (s32[], f32[3,8], f32[3,8])) -> pred[] {
  %s.1 = (s32[], f32[3,8]{1,0}, f32[3,8]{1,0}) parameter(0)
  ROOT %c = pred[] constant(false)
}
%gelu (q0: bf16[4,8]) -> (bf16[4,8], f32[8]) {
  %q0 = bf16[4,8]{1,0} parameter(0)
  %sum = f32[8]{0} reduce(%q0, %q0), dimensions={0}, to_apply=%plus
  ROOT %both = (bf16[4,8]{1,0}, f32[8]{0}) tuple(%q0, %sum)
}
ENTRY %main (a: f32[3,8], b: bf16[4,8], c: bf16[8,16]) -> f32[3,8] {
  %a = f32[3,8]{1,0} parameter(0)
  %b = bf16[4,8]{1,0} parameter(1)
  %c = bf16[8,16]{1,0} parameter(2)
  %n = s32[] constant(0)
  %state = (s32[], f32[3,8]{1,0}, f32[3,8]{1,0}) tuple(%n, %a, %a)
  %w = (s32[], f32[3,8]{1,0}, f32[3,8]{1,0}) while(%state), \
    condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %two = (bf16[4,8]{1,0}, f32[8]{0}) fusion(%b), kind=kInput, calls=%gelu, \
    metadata={op_name="a/attention_norm/mul"}
  %left = bf16[4,8]{1,0} get-tuple-element(%two), index=0
  %product = bf16[4,16]{1,0} custom-call(%left, %c), \
    custom_call_target="__cublas$lt$matmul", metadata={op_name="a/attention/query/dot_general"}
  %scores = bf16[4,16]{1,0} custom-call(%left, %c), \
    custom_call_target="__cublas$gemm", metadata={op_name="a/attention/dot_general"}
  ROOT %r = f32[3,8]{1,0} copy(%w)
}
"""


def test_bytes_of_each_kernel_by_hand():
  found = {k.name: (k.group, k.bytes, k.times) for k in traffic.kernels(LOOP)}
  row = 8 * 4  # and the index of 4 bytes
  assert found['f'] == ('feed-forward', 2 * row + 4, 3)
  assert found['two'] == ('norms', 4 * 8 * 2 + 4 * 8 * 2 + 8 * 4, 1)
  assert found['product'] == ('products', (4 * 8 + 8 * 16 + 4 * 16) * 2, 1)
  assert found['scores'] == ('attention', (4 * 8 + 8 * 16 + 4 * 16) * 2, 1)
  assert set(found) == {'f', 'two', 'product', 'scores', 'r'}


@pytest.mark.parametrize(
  ('source', 'group'),
  [
    ('jit(traced)/jvp()/while/body/closed_call/reduce_max', 'loss'),
    ('jit(traced)/transpose(jvp(GPT))/stack/while/body/blocks/add', 'other'),
    ('jit(traced)/jvp(GPT)/stack/while/body/jit(f)/dynamic_update_slice', 'copies'),
    ('jit(traced)/mul', 'optimizer'),
  ],
)
def test_groups_of_what_is_outside_the_blocks(source, group):
  line = f'ROOT %r = f32[8]{{0}} add(%a, %a), metadata={{op_name="{source}"}}'
  text = f'ENTRY %main (a: f32[8]) -> f32[8] {{\n  %a = f32[8]{{0}} parameter(0)\n  {line}\n}}'
  assert [k.group for k in traffic.kernels(text)] == [group]


def test_groups_multiply_loops_out():
  sums = traffic.by_group(traffic.kernels(LOOP))
  assert sums['feed-forward'] == (3, 3 * 68)


def test_gelu_of_16_bits_is_rounded_once():
  """Against float64: within half a unit in the last place, where the steps one by one are not."""
  x = jnp.linspace(-6, 6, 4001).astype(jnp.bfloat16)
  y = np.asarray(x, np.float64)
  exact = y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3))) / 2
  unit = 2.0 ** (np.floor(np.log2(np.maximum(np.abs(exact), 1e-30))) - 7)
  errors = np.abs(np.asarray(layers.gelu(x), np.float64) - exact) / unit
  assert errors.max() <= 0.51
