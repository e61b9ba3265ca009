"""Reading a program's text, on programs whose messages are known."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from bmx.parallel import Layout, jit, make_mesh
from bmx.plan import hlo


def test_collectives_of_a_loop_are_multiplied():
  """Five hops round a ring of 8, then one sum: 5 permutes of 4 × 8 floats, one all-reduce."""
  layout = Layout(make_mesh({'data': 8}))

  def local(x):
    turn = lambda _, x: jax.lax.ppermute(x, 'data', [(i, (i + 1) % 8) for i in range(8)])
    return jax.lax.psum(jax.lax.fori_loop(0, 5, turn, x), 'data')

  fn = lambda x: jax.shard_map(
    local, mesh=layout.mesh, in_specs=P('data'), out_specs=P(), check_vma=False
  )(x)
  text = jit(fn, layout).lower(jax.ShapeDtypeStruct((32, 8), np.float32)).compile().as_text()
  found = {c.kind: c for c in hlo.collectives(text)}
  assert set(found) == {'collective-permute', 'all-reduce'}
  permute = found['collective-permute']
  assert (permute.shape, permute.bytes, permute.times) == ('f32[4,8]', 128, 5)
  assert hlo.total(list(found.values())) == {'all-reduce': 128, 'collective-permute': 640}


def test_a_program_that_sends_nothing():
  layout = Layout(make_mesh({}, jax.devices()[:1]))
  text = jit(jnp.sin, layout).lower(jnp.ones(3)).compile().as_text()
  assert hlo.collectives(text) == []


TPU = """
HloModule m
%fused.1 (p: f32[8]) -> f32[8] {
  %all-gather.1 = f32[64]{0} all-gather(%p), channel_id=7, dimensions={0}
}
%fused.2 (p: f32[8]) -> f32[8] {
  %all-gather.2 = f32[64]{0} all-gather(%p), channel_id=7, dimensions={0}
}
%all-reduce-scatter.3 (p: f32[64]) -> f32[8] {
  %all-reduce.4 = f32[64]{0} all-reduce(%p), channel_id=8, to_apply=%sum
}
ENTRY %main (x: f32[8]) -> f32[8] {
  %async-collective-start = f32[8]{0} fusion(%x), kind=kCustom, calls=%fused.1
  %async-collective-done = f32[8]{0} fusion(%x), kind=kCustom, calls=%fused.2
  ROOT %r = f32[8]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
}
"""


def test_how_the_tpu_writes_them():
  """One gather spread over two fusions; a reduce-scatter that is spelt as an all-reduce."""
  found = {c.kind: c.bytes for c in hlo.collectives(TPU)}
  assert found == {'all-gather': 256, 'reduce-scatter': 256}
  assert len(hlo.collectives(TPU)) == 2


def test_an_all_reduce_of_several_arrays_moves_them_all():
  text = """
ENTRY %main (p: f32[8], q: bf16[4,2]) -> (f32[8], bf16[4,2]) {
  ROOT %all-reduce.1 = (f32[8]{0}, /*index=1*/bf16[4,2]{1,0}) all-reduce(%p, %q), channel_id=1
}
"""
  (found,) = hlo.collectives(text)
  assert (found.shape, found.bytes) == ('f32[8]', 8 * 4 + 8 * 2)
