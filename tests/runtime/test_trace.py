"""Times of operations: a trace with known durations, and one that jax records."""

import jax
import jax.numpy as jnp
from jax.profiler import ProfileData

from bmx.runtime import trace

NAMES = {1: 'while.1', 2: 'fusion.2', 3: 'copy.3', 4: '<dot>.4', 5: 'end: copy.3'}
STATS = {1: 'hlo_op', 2: 'hlo_module'}


def plane(name, lines):
  """Text of a plane. Lines: name -> [(id of the event, begin, duration, is an operation)] in ns."""
  text = f'planes {{ name: "{name}" '
  for i, (line, events) in enumerate(lines.items()):
    text += f'lines {{ id: {i} name: "{line}" timestamp_ns: 1000 '
    for event, begin, duration, operation in events:
      stats = f'stats {{ metadata_id: 1 str_value: "{NAMES[event]}" }} ' * operation
      stats += 'stats { metadata_id: 2 str_value: "jit_step" } ' * operation
      at = f'offset_ps: {begin * 1000} duration_ps: {duration * 1000}'
      text += f'events {{ metadata_id: {event} {at} {stats}}} '
    text += '} '
  for table, values in (('event', NAMES), ('stat', STATS)):
    for key, value in values.items():
      text += f'{table}_metadata {{ key: {key} value {{ id: {key} name: "{value}" }} }} '
  return text + '}\n'


def times(*planes):
  found = trace.operations(ProfileData.from_text_proto(''.join(planes)))
  return {one.name: (one.calls, round(1e9 * one.seconds)) for one in found}


HOST = {
  # A loop of 1000 ns with 300 + 200 ns in its first round and 300 ns in its second.
  'client': [(1, 0, 1000, True), (2, 0, 300, True), (3, 300, 200, True), (5, 500, 9, False),
             (2, 600, 300, True), (4, 1000, 50, True)],
  'pool': [(4, 100, 150, True), (3, 400, 0, True)],
  'python': [(5, 0, 9000, False)],
}  # fmt: skip


def test_a_loop_is_listed_without_its_body():
  found = {'fusion.2': (2, 600), 'while.1': (1, 200), 'copy.3': (1, 200), '<dot>.4': (2, 200)}
  assert times(plane('/host:CPU', HOST)) == found


def test_a_device_has_each_operation_once():
  """Lines of steps and modules cover the same time; the host's lines wait for the device."""
  device = {
    'Steps': [(5, 0, 500, True)],
    'XLA Modules': [(5, 0, 500, True)],
    'XLA Ops': [(2, 0, 400, False), (3, 400, 100, False)],
  }
  found = times(plane('/host:CPU', HOST), plane('/device:TPU:0', device))
  assert found == {'fusion.2': (1, 400), 'copy.3': (1, 100)}
  gpu = {'Stream #7(Compute)': [(2, 0, 70, True), (5, 80, 5, False)], 'Other': [(2, 0, 70, True)]}
  assert times(plane('/host:CPU', HOST), plane('/device:GPU:0', gpu)) == {'fusion.2': (1, 70)}


def test_a_device_that_ran_nothing_is_not_read():
  """Libtpu adds such a plane to the trace of a CPU once it has compiled something."""
  empty = plane('/device:CUSTOM:Megascale Trace', {})
  assert times(plane('/host:CPU', HOST), empty) == times(plane('/host:CPU', HOST))


def test_shares_add_up_and_names_are_escaped():
  found = trace.operations(ProfileData.from_text_proto(plane('/host:CPU', HOST)))
  assert trace.rows(found)[0] == ('50.0%', '0.001', '2', 'fusion.2 (jit_step)')
  assert '&lt;dot&gt;.' in trace.section(found).html
  many = [trace.Operation(f'op.{i}', '', 2, 1.0) for i in range(trace.TOP + 8)]
  assert trace.rows(many)[-1] == ('40.0%', '8000.000', '16', '8 others')
  assert trace.text(many).splitlines()[1].split() == ['5.0%', '1000.000', '2', 'op.0']
  assert trace.rows([]) == []


def test_operations_of_a_program(tmp_path):
  """The loop runs its body five times; the trace counts them."""

  def body(carry, x):
    return jnp.sin(carry @ x), carry.sum()

  program = jax.jit(lambda a, xs: jax.lax.scan(body, a, xs))
  inputs = jnp.ones((16, 16)), jnp.ones((5, 16, 16))
  jax.block_until_ready(program(*inputs))
  with jax.profiler.trace(str(tmp_path)):
    jax.block_until_ready(program(*inputs))
  path = trace.newest(tmp_path)
  assert path is not None
  found = trace.read(path)
  loop = [one for one in found if one.name.startswith('while')]
  assert len(loop) == 1 and loop[0].calls == 1
  assert any(one.calls == 5 for one in found)
  assert not [one for one in found if one.seconds < 0]
  assert trace.newest(tmp_path / 'absent') is None
