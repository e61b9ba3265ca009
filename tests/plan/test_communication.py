"""What a step sends, counted by hand against the compiled step on 8 CPU devices."""

import jax
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.plan.compile import compile_step, summarize
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


def test_what_nobody_counted_has_no_estimate():
  facts = found('bert_base', 'mesh.data=4', 'mesh.model=2')
  assert facts['analytic_estimate_gib'] is None
  assert facts['over_analytic_estimate'] is None
