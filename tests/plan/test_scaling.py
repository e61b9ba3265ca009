"""Scaling laws against the tables of their papers, and recipes that are sized by them."""

import json

import numpy as np
import pytest

from bmx import config as recipes
from bmx.core import errors
from bmx.core.errors import InputError
from bmx.modes import Request, dial
from bmx.plan import scaling
from tests.conftest import ROOT

TINY = str(ROOT / 'configs/gpt_char.py:tiny')
# Hoffmann et al. 2022, table A3, approach 3: parameters, FLOPs, tokens.
TABLE_A3 = [
  (400e6, 2.21e19, 9.2e9), (1e9, 1.62e20, 27.1e9), (10e9, 2.46e22, 410.1e9),
  (67e9, 1.71e24, 4.1e12), (280e9, 3.52e25, 20.1e12), (520e9, 1.36e26, 43.5e12),
  (1e12, 5.65e26, 94.1e12),
]  # fmt: skip


@pytest.mark.parametrize(('parameters', 'flops', 'tokens'), TABLE_A3)
def test_chinchilla_as_its_table(parameters, flops, tokens):
  """The FLOPs of the table differ from 6 · parameters · tokens of its lines by up to 4 %."""
  found = scaling.LAWS['hoffmann'].best(flops)
  assert found.parameters == pytest.approx(parameters, rel=0.08)
  assert found.tokens == pytest.approx(tokens, rel=0.12)


def test_the_correction_as_its_paper():
  """Exponent 0.51 of the parameters; about 20 tokens a parameter at Gopher's 5.76e23 FLOPs."""
  law = scaling.LAWS['besiroglu']
  small, large = law.best(1e20), law.best(1e22)
  exponent = np.log(large.parameters / small.parameters) / np.log(100)
  assert exponent == pytest.approx(0.5126, abs=1e-4)
  gopher = law.best(5.76e23)
  assert 15 < gopher.tokens / gopher.parameters < 25
  assert gopher.parameters == pytest.approx(70e9, rel=0.05)  # Chinchilla has 70 B


@pytest.mark.parametrize('name', scaling.LAWS)
def test_no_other_size_is_better_for_the_same_flops(name):
  law = scaling.LAWS[name]
  best = law.best(1e21)
  assert 6 * best.parameters * best.tokens == pytest.approx(1e21)
  for factor in (0.8, 0.97, 1.03, 1.25):
    assert law.loss(best.parameters * factor, best.tokens / factor) > best.loss


@pytest.fixture
def dialed(tmp_path):
  def run(*overrides, recipe=TINY, **flags):
    config, name = recipes.load(recipe, list(overrides))
    request = Request(
      config, name, recipe=recipe, overrides=overrides, output=str(tmp_path / 'out'), **flags
    )
    assert dial.run(request) == errors.DONE
    return tmp_path / 'out', json.loads((tmp_path / 'out/dial.json').read_text())

  return run


@pytest.mark.parametrize('flops', ['3e13', '1e15', '1e17'])
def test_the_recipe_has_the_size_and_spends_the_budget(dialed, flops):
  """The size is near the optimum, so that its loss is within a thousandth of the least."""
  folder, record = dialed('batch_size=4', budget=f'{flops}flops')
  law, budget = scaling.LAWS['besiroglu'], float(flops)
  best = law.best(budget)
  assert 0.6 < record['parameters'] / best.parameters < 1.6
  assert 6 * record['parameters'] * record['tokens'] == pytest.approx(budget, rel=0.02)
  assert law.loss(record['parameters'], record['tokens']) < 1.01 * best.loss
  config, _ = recipes.load(str(folder / 'dialed.py'))
  assert config.batch_size == 4
  assert config.steps * 4 * config.length == record['tokens']
  model = config.task.model
  assert model.width == model.heads * 16  # as the recipe's
  assert config.schedule.warmup <= max(config.steps / 10, 2)


def test_hours_and_money_are_flops_at_the_likely_speed(dialed):
  """8 H100 for an hour: 494 TFLOP/s each in float32, times the share that trainings reach."""
  _, hours = dialed(budget='1h', topology='h100:8')
  assert hours['flops'] == pytest.approx(8 * 494e12 * 0.412 * 3600)
  _, money = dialed('plan.prices=h100=2', budget='16usd', topology='h100:8')
  assert money['flops'] == pytest.approx(hours['flops'])
  _, energy = dialed(budget='5.6kwh', topology='h100:8')  # 700 W each
  assert energy['flops'] == pytest.approx(hours['flops'])


def test_the_law_is_a_word(dialed):
  _, record = dialed('plan.law=hoffmann', budget='1e17flops')
  assert record['law'] == 'hoffmann'
  best = scaling.LAWS['hoffmann'].best(1e17)
  assert 0.6 < record['parameters'] / best.parameters < 1.6


@pytest.mark.parametrize(
  ('overrides', 'flags', 'message'),
  [
    ([], {}, 'expected --budget, such as 1e19flops'),
    ([], {'budget': '1e3eur'}, 'such as 500usd, 24h, 30kwh or 1e21flops'),
    ([], {'budget': '0flops'}, 'expected an amount above 0'),
    ([], {'budget': '1e400flops'}, 'expected an amount above 0'),
    ([], {'budget': '24h'}, 'expected --topology with one slice'),
    ([], {'budget': '24h', 'topology': 'h1000:8'}, 'is not a topology; did you mean'),
    ([], {'budget': '5usd', 'topology': 'h100:8'}, 'unknown for h100.*plan.prices=h100=NUMBER'),
    ([], {'budget': '5kwh', 'topology': 'v5p:4x4x4'}, 'plan.watts=v5p=NUMBER'),
    (['plan.law=chinchila'], {'budget': '1e15flops'}, "plan.law='chinchila': expected a law"),
    ([], {'budget': '1e6flops'}, 'the smallest model of the recipe has'),
  ],
)
def test_bad_input(dialed, overrides, flags, message):
  with pytest.raises(InputError, match=message):
    dialed(*overrides, **flags)


def test_models_without_tokens_are_refused(dialed):
  with pytest.raises(InputError, match='expected a language model'):
    dialed(recipe=str(ROOT / 'configs/digits_mlp.py:tiny'), budget='1e15flops')
