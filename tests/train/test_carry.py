"""The state that training carries from batch to batch: truncated backpropagation through time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.data.batches import Batches
from bmx.data.text.windows import TokenData
from bmx.models.recurrent_lm import RecurrentLM
from bmx.parallel import Layout, jit, make_mesh
from bmx.parallel.sharding import unbox
from bmx.runtime.storage import place
from bmx.tasks.language import CausalLM
from bmx.train import loop
from bmx.train.evaluate import evaluations
from bmx.train.feed import Feed
from bmx.train.gradients import Accumulate, Gradient
from bmx.train.rundir import RunDir
from bmx.train.state import state_spec
from bmx.train.step import make_dispatch, train_step

B, T, V, H, WINDOWS = 4, 6, 13, 8, 3
NOISE = Noise(jax.random.PRNGKey(1), jnp.int32(0))
ONE = Layout(make_mesh({'data': 1}, jax.devices()[:1]))
RECIPE = 'char_lstm:tiny'


def task(cell='lstm', **words):
  return CausalLM(RecurrentLM(V, width=H, cell=cell, carry=True, **words))


def start(task, batch):
  return jit(lambda key: dict(unbox(task.init(Noise(key, jnp.int32(0)), batch))), ONE)(
    jax.random.PRNGKey(0)
  )


def windows():
  """Batches [B, T] that continue each other, of one long stream a row."""
  ids = np.random.default_rng(0).integers(0, V, (B, WINDOWS * T + 1)).astype(np.int32)
  cut = lambda i: {
    'tokens': ids[:, i * T : (i + 1) * T],
    'targets': ids[:, i * T + 1 : (i + 1) * T + 1],
    'weights': np.ones((B, T), np.float32),
  }
  return ids, [cut(i) for i in range(WINDOWS)]


def flat(values):
  return np.concatenate([np.ravel(v) for v in jax.tree.leaves(values)])


@pytest.mark.parametrize('cell', ['lstm', 'gru', 'rnn'])
def test_windows_with_the_carry_are_the_whole_stream(cell):
  """The losses of windows sum to that of the stream; each gradient is that of its window alone."""
  this = task(cell)
  ids, batches = windows()
  variables = start(this, batches[0])
  assert not flat(variables['carry']).any()
  gradient = jit(Gradient(this), ONE)
  total, now = 0.0, variables
  for batch in batches:
    last, grads = now, gradient(now, batch, NOISE)
    total += float(grads.metrics['loss'][0])
    now = {**now, **grads.collections}
  whole = {'tokens': ids[:, :-1], 'targets': ids[:, 1:], 'weights': np.ones((B, WINDOWS * T))}
  loss = jit(lambda v, batch: this.loss(v, batch, NOISE, train=True), ONE)
  expected = loss(variables, whole)
  assert total == pytest.approx(float(expected.sum), rel=1e-5)
  np.testing.assert_allclose(flat(now['carry']), flat(expected.collections['carry']), atol=1e-5)

  # Truncated: the last gradient is that of the last window, whose carry is a constant.
  size = np.linalg.norm(flat(grads.sum))
  moved = lambda step: jax.tree.map(lambda p, g: p + step * g / size, last['params'], grads.sum)
  value = lambda step: float(loss({**last, 'params': moved(step)}, batches[-1]).sum)
  assert (value(1e-2) - value(-1e-2)) / 2e-2 == pytest.approx(size, rel=1e-2)


def test_evaluation_starts_from_zeros_and_leaves_the_carry():
  this, (_, batches) = task(), windows()
  variables = start(this, batches[0])
  full = {**variables, 'carry': jax.tree.map(jnp.ones_like, variables['carry'])}
  zeros, ones = (this.loss(v, batches[0], NOISE, train=False) for v in (variables, full))
  assert float(zeros.sum) == float(ones.sum)
  assert not ones.collections
  carried = this.loss(full, batches[0], NOISE, train=True)
  assert float(carried.sum) != float(ones.sum)


def test_accumulation_splits_the_carry_with_its_rows():
  this, (_, batches) = task(), windows()
  now = both = start(this, batches[0])
  whole, parts = Gradient(this), Accumulate(Gradient(this), steps=2, batch_size=B)
  for batch in batches:
    one, two = jit(whole, ONE)(now, batch, NOISE), jit(parts, ONE)(both, batch, NOISE)
    now, both = {**now, **one.collections}, {**both, **two.collections}
    np.testing.assert_allclose(flat(one.sum), flat(two.sum), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(flat(now['carry']), flat(both['carry']), rtol=1e-5, atol=1e-6)
  assert flat(now['carry']).any()


def test_a_part_of_a_batch_is_refused():
  this, (_, batches) = task(), windows()
  part = {k: v[: B // 2] for k, v in batches[0].items()}
  with pytest.raises(InputError, match='carried state has 4 rows and a batch 2: .*carry=True'):
    this.loss(start(this, batches[0]), part, NOISE, train=True)


@pytest.mark.parametrize(('tokens', 'batch_size'), [(121, 4), (125, 3), (61, 10), (13, 5)])
def test_contiguous_windows_follow_each_other(tokens, batch_size):
  """Every row continues its own text, and in a pass every window is read as often as another."""
  data = TokenData(np.arange(tokens), tokens, 6, train=True, contiguous=True)
  batches = Batches(data, batch_size)
  last, seen = None, np.zeros(data.size, int)
  for step in range(data.size):
    indices = batches.indices(step)[0]
    rows = batches.rows(indices, step * batch_size + np.arange(batch_size))
    np.add.at(seen, indices // 6, 1)
    if last is not None:
      begins = rows['tokens'][:, 0] == 0  # the text begins anew
      assert (begins | (rows['tokens'][:, 0] == last)).all()
    last = rows['targets'][:, -1]
  assert (seen == batch_size).all()
  firsts = batches.indices(0)[0] // 6
  assert len(set(firsts)) == min(batch_size, data.size)  # rows begin apart
  # A pure function of the step, in groups of any size; evaluation has the order of the file.
  np.testing.assert_array_equal(batches.indices(0, 5)[3], batches.indices(3)[0])
  evaluated = TokenData(np.arange(tokens), tokens, 6, train=False, contiguous=True)
  np.testing.assert_array_equal(Batches(evaluated, 2, train=False).indices(0)[0], [0, 6])


def built(devices=1, mesh=(), words=()):
  axes = [f'mesh.{axis}={n}' for axis, n in dict(mesh or {'data': 1}).items()]
  config, name = recipes.load(RECIPE, [*axes, *words])
  return experiment.build(config, name, jax.devices()[:devices])


def trained(x, steps=6):
  feed, spec = Feed(x.data, x.layout, steps), state_spec(x)
  dispatch = make_dispatch(train_step(x), feed.take, 0, steps, x.task.constant)
  program = jit(dispatch, x.layout, donate_argnums=(0,), out_shardings=(spec.shardings, None, None))
  group, _ = next(feed.groups([(0, steps)]))
  state, sums, _ = program(spec.create(), feed.constants(), group, np.int32(steps))
  fetched = lambda v: np.concatenate([tree.fetch(x).ravel() for x in jax.tree.leaves(v)])
  loss = float(sums['loss'][0] / sums['loss'][1])
  return loss, fetched(state.params), fetched(state.collections), state


@pytest.mark.usefixtures('short_library')
def test_eight_devices_are_one():
  words = ['task.model.dropout=0.1', 'task.model.depth=1']
  loss, params, carry, _ = trained(built(words=words))
  for mesh in ({'data': 8}, {'data': 2, 'fsdp': 2, 'model': 2}):
    x = built(8, mesh, words)
    other_loss, other, other_carry, state = trained(x)
    assert other_loss == pytest.approx(loss, 1e-5)
    assert np.linalg.norm(other - params) < 1e-4 * np.linalg.norm(params)
    assert np.linalg.norm(other_carry - carry) < 1e-3 * np.linalg.norm(carry)
    rows = 8 if 'fsdp' not in mesh else 4
    for leaf in jax.tree.leaves(state.collections['carry']):
      assert leaf.sharding.shard_shape(leaf.shape)[0] == leaf.shape[0] // rows
    if 'fsdp' in mesh:
      kernel = state.params['stack']['forward_0']['cell']['ii']['kernel']
      assert kernel.sharding.shard_shape(kernel.shape)[0] == kernel.shape[0] // 2


@pytest.mark.usefixtures('short_library')
def test_a_resumed_run_is_the_same_and_evaluation_disturbs_nothing(tmp_path):
  words = ['every.log=4', 'steps_per_call=2', 'ema=0.9', 'schedule.floor=0.01', 'schedule.warmup=0',
           'task.model.depth=1']  # fmt: skip
  run = lambda name, *more: loop.run(built(words=[*words, *more]), tmp_path / name)
  whole = run('whole', 'steps=8')
  run('parts', 'steps=4', 'every.eval=2')
  assert run('parts', 'steps=8', 'every.eval=2')['state_digest'] == whole['state_digest']
  with pytest.raises(InputError, match='batch_size: 16 there, 32 given'):
    x = built(words=[*words, 'steps=12', 'batch_size=32'])
    RunDir(place(str(tmp_path / 'parts')), x)._compare()


@pytest.mark.usefixtures('short_library')
def test_a_rejected_update_leaves_the_carry():
  x = built(words=['task.model.depth=1'])
  step, state = jit(train_step(x), x.layout), state_spec(x).create()
  feed = Feed(x.data, x.layout, 1)
  group, _ = next(feed.groups([(0, 1)]))
  batch = jit(lambda a, g: feed.take(a, g, 0), x.layout)(feed.constants(), group)
  state, _ = step(state, batch)
  rejected, metrics = step(state, {**batch, 'weights': batch['weights'] * np.nan})
  assert float(metrics['skipped'][0]) == 1
  np.testing.assert_array_equal(
    flat(jax.device_get(rejected.collections)), flat(jax.device_get(state.collections))
  )


@pytest.mark.usefixtures('short_library')
def test_evaluations_of_other_batches_read_no_carry():
  """Rows of 512 beside a carry of 16; the state of the moment changes only the weights."""
  x = built(words=['eval.valid.batch_size=512'])
  state = state_spec(x).create()
  evaluate = evaluations(x)['valid']
  other = state.replace(collections=jax.tree.map(lambda v: v + 1, state.collections))
  assert evaluate(state) == evaluate(other)


REFUSED = {
  'shuffled': (['data.contiguous=False'], 'set --config.data.contiguous=True'),
  'seq': (['mesh.seq=2', 'mesh.data=4'], 'mesh.seq: expected 1, as a recurrent network'),
  'pipe': (['mesh.pipe=2', 'mesh.data=4'], 'mesh.pipe: expected 1, as a recurrent network'),
}


@pytest.mark.usefixtures('short_library')
@pytest.mark.parametrize('name', REFUSED)
def test_refused_by_name(name):
  words, message = REFUSED[name]
  with pytest.raises(InputError, match=message):
    built(8 if name in ('seq', 'pipe') else 1, words=words)


@pytest.mark.usefixtures('short_library')
def test_mixed_sources_do_not_continue_each_other():
  x = built()
  part = x.config['data']
  mix = {'call': 'bmx.data.mixture:mix', 'sources': {'a': part, 'b': part},
         'weights': {'a': 1.0, 'b': 1.0}}  # fmt: skip
  config, name = recipes.load(RECIPE, ['mesh.data=1'])
  config.data = mix
  config.eval = {}
  with pytest.raises(InputError, match='rows continue those of the batch before'):
    experiment.build(config, name, jax.devices()[:1])


def test_without_carry_there_is_no_collection():
  this = dataclasses.replace(task(), model=RecurrentLM(V, width=H))
  assert set(start(this, windows()[1][0])) == {'params'}
