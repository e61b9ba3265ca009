"""What a step sends, counted by hand against the compiled step on 8 CPU devices."""

import jax
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.plan import communication
from bmx.plan.compile import compile_step, summarize
from bmx.train.state import state_spec
from tests.conftest import ROOT


def found(recipe, *overrides):
  config, name = recipes.load(str(ROOT / f'configs/{recipe}.py:tiny'), list(overrides))
  x = experiment.build(config, name, jax.devices(), read=False)
  return summarize(x, compile_step(x))


@pytest.mark.parametrize(('recipe', 'overrides'), [
  ('digits_mlp', []),
  ('bert_base', ['mesh.data=8']),
  ('moe', ['mesh.data=1', 'mesh.expert=4', 'mesh.fsdp=2', 'task.model.capacity_factor=2.0']),
])  # fmt: skip
def test_the_estimate_is_of_the_size_of_what_is_sent(recipe, overrides):
  assert 0.5 < found(recipe, *overrides)['over_analytic_estimate'] < 2


def test_parts_of_gradients_are_reduced_along_data():
  """FSDP receives a weight three times; its gradient's part, one of two, is reduced along data."""
  config, name = recipes.load(
    str(ROOT / 'configs/llama_8b.py:tiny'), ['mesh.data=4', 'mesh.fsdp=2']
  )
  x = experiment.build(config, name, jax.devices(), read=False)
  got = communication.received(x, state_spec(x).abstract.params)
  assert got is not None
  assert got['data'] == pytest.approx(got['fsdp'] / 3 / 2, rel=0.02)  # norms are replicated


def test_what_nobody_counted_has_no_estimate():
  facts = found('bert_base', 'mesh.data=4', 'mesh.model=2')
  assert facts['analytic_estimate_gib'] is None
  assert facts['over_analytic_estimate'] is None
