"""Recommendation: 8 devices are one, a resumed run is the same, a step costs its own rows."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core import tree
from bmx.parallel import jit
from bmx.train import loop
from bmx.train.feed import Feed
from bmx.train.state import state_spec
from bmx.train.step import make_dispatch, train_step

CLICKS, RATINGS = 'criteo_deepfm:tiny', 'movielens_two_tower:tiny'
WIDE, DCN = (['task.model.call=bmx.models.recsys:' + name] for name in ('WideDeep', 'DCN'))
STEPS = 6
MESHES = {'data': {'data': 8}, 'data-fsdp-model': {'data': 2, 'fsdp': 2, 'model': 2}}


def built(recipe, devices, mesh=(), words=()):
  axes = [f'mesh.{axis}={n}' for axis, n in dict(mesh or {'data': 1}).items()]
  config, name = recipes.load(recipe, [*axes, *words])
  return experiment.build(config, name, jax.devices()[:devices])


def compiled(x):
  """The looped program of a run for abstract arguments; see `make_dispatch`."""
  feed, spec = Feed(x.data, x.layout, STEPS), state_spec(x)
  dispatch = make_dispatch(train_step(x), feed.take, 0, STEPS, x.task.constant)
  program = jit(dispatch, x.layout, donate_argnums=(0,), out_shardings=(spec.shardings, None, None))
  group, _ = next(feed.groups([(0, STEPS)]))
  return program, spec, feed.constants(), group


def trained(x):
  program, spec, constants, group = compiled(x)
  state, sums, _ = program(spec.create(), constants, group, np.int32(STEPS))
  params = np.concatenate([tree.fetch(v).ravel() for v in jax.tree.leaves(state.params)])
  return float(sums['loss'][0] / sums['loss'][1]), params


@pytest.mark.parametrize(('recipe', 'words'), [
  (CLICKS, []), (CLICKS, WIDE), (CLICKS, DCN), (RATINGS, []),
], ids=['deepfm', 'wide_deep', 'dcn', 'two_towers'])  # fmt: skip
def test_eight_devices_are_one(recipe, words):
  loss, params = trained(built(recipe, 1, words=words))
  for mesh in MESHES.values():
    found, other = trained(built(recipe, 8, mesh, words))
    assert found == pytest.approx(loss, 1e-5)
    assert np.linalg.norm(other - params) < 1e-4 * np.linalg.norm(params)


def test_tables_are_cut_over_the_axes_of_the_rules():
  spec = state_spec(built(RATINGS, 8, MESHES['data-fsdp-model'])).abstract
  for table in (spec.params['item']['ids']['table'], spec.opt_state.rows.mu['item/ids/table']):
    assert table.sharding.shard_shape(table.shape) == (table.shape[0] // 2, table.shape[1] // 2)


@pytest.mark.parametrize(('recipe', 'words'), [
  (CLICKS, []), (RATINGS, ['eval.test.metrics=()']),
], ids=['deepfm', 'two_towers'])  # fmt: skip
def test_a_resumed_run_is_the_same(recipe, words, tmp_path):
  words = ['every.log=4', 'steps_per_call=2', 'eval.valid.metrics=()', 'keep.metric=', *words]
  run = lambda steps, name: loop.run(
    built(recipe, 1, words=[*words, f'steps={steps}']), tmp_path / name
  )
  whole = run(8, 'whole')
  run(4, 'parts')
  assert run(8, 'parts')['state_digest'] == whole['state_digest']


@pytest.mark.parametrize('recipe', [CLICKS, RATINGS])
def test_a_step_holds_no_second_table(recipe):
  """Temporary memory of a step does not grow with the tables; with dense gradients it does."""

  def temporary(rows, **words):
    x = built(recipe, 1, words=['task.model.width=16'])
    names = ('field_sizes',) if recipe == CLICKS else ('num_users', 'num_items')
    sizes = (rows, *x.task.model.field_sizes[1:]) if recipe == CLICKS else rows
    model = x.task.model.copy(**dict.fromkeys(names, sizes), **words)
    task = dataclasses.replace(x.task, model=model)
    tx = x.tx if not words else optax.adam(1e-3)
    grad_fn = dataclasses.replace(x.grad_fn, task=task)
    program, spec, constants, group = compiled(dataclasses.replace(x, task=task, tx=tx,
                                                                   grad_fn=grad_fn))  # fmt: skip
    memory = program.lower(spec.abstract, constants, group, np.int32(1)).compile().memory_analysis()
    return memory.temp_size_in_bytes

  table = 4 * 16 * 200_000
  assert temporary(200_000) - temporary(1000) < 0.01 * table
  if recipe == CLICKS:
    assert temporary(200_000, sparse=False) > table
