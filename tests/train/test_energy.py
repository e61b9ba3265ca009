"""Energy and money of whole runs: sums over starts, forecasts, and what is unknown."""

import json

import jax
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core import chips, hardware
from bmx.core.errors import InputError
from bmx.core.events import Hook
from bmx.runtime import energy
from bmx.runtime.account import Account
from bmx.runtime.writer import read_metrics
from bmx.train import loop
from bmx.train.energy import RunEnergy
from bmx.train.policy import LoopState
from tests.conftest import ROOT

RECIPE = str(ROOT / 'configs/digits_mlp.py:tiny')
STEP = 5.0  # joules


def digits(*overrides):
  words = ['mesh.data=1', 'steps=40', 'every.log=10', 'every.save=20', 'every.eval=20']
  config, _ = recipes.load(RECIPE, [*words, *overrides])
  return experiment.build(config, 'digits', jax.devices()[:1])


class Counter:
  """A processor that uses STEP joules in each step, and nothing besides."""

  name, text, wraps = 'RAPL', 'counted steps', False

  def __init__(self):
    self.value = 0.0

  def joules(self):
    return self.value


def train(x, path, monkeypatch, fails=0):
  """Trains; the counter begins at zero in each start, as one since boot would after a reading."""
  counter = Counter()
  monkeypatch.setattr(energy, 'rapl', lambda: (counter, ''))

  def count(event):
    if event.step == fails:
      raise RuntimeError('a fault of the user')
    counter.value += STEP

  return loop.run(x, path, {'count': Hook(1, count)})


def test_a_resumed_run_continues_its_sum(tmp_path, monkeypatch):
  """Nothing is lost and nothing is doubled by an error at a step that no save was due at."""
  x = digits('plan.carbon=360')
  with pytest.raises(RuntimeError):
    train(x, tmp_path / 'run', monkeypatch, fails=25)
  summary = train(x, tmp_path / 'run', monkeypatch)
  used = summary['energy']
  assert used['joules'] == 40 * STEP
  assert used['joules_by_source'] == {'RAPL': 40 * STEP}
  assert used['joules_per_example'] == pytest.approx(STEP / x.data.batch_size)
  assert used['kwh'] == pytest.approx(40 * STEP / 3.6e6)
  assert used['kg_co2e'] == pytest.approx(40 * STEP / 1e7)  # 360 g of 3.6 MJ
  assert used['usd'] is None
  assert used['measured']
  lines = [line for line in read_metrics(tmp_path / 'run/metrics.jsonl') if 'loss' in line]
  sums = [line['kwh'] * 3.6e6 for line in lines]
  assert sums == pytest.approx([(n - 1) * STEP for n in (10, 20, 30, 40)])  # the line comes first


def test_what_is_unknown_stays_so(tmp_path, monkeypatch):
  monkeypatch.setattr(energy, 'POWERCAP', tmp_path / 'absent')
  x = digits('steps=10')
  used = loop.run(x, tmp_path / 'run')['energy']
  assert (used['joules'], used['kwh'], used['usd'], used['kg_co2e']) == (None, None, None, None)
  assert 'plan.watts=cpu=WATTS' in used['source']
  assert not used['measured']
  assert all('kwh' not in line for line in read_metrics(tmp_path / 'run/metrics.jsonl'))
  page = (tmp_path / 'run/report.html').read_text()
  assert 'gives an estimate' in page


def test_an_estimate_says_so_and_costs_are_of_the_whole_time(tmp_path, monkeypatch):
  monkeypatch.setattr(energy, 'POWERCAP', tmp_path / 'absent')
  x = digits('plan.watts=cpu=100', 'plan.prices=cpu=3.6', 'plan.carbon=500')
  found = loop.run(x, tmp_path / 'run')
  used = found['energy']
  assert 0 < used['joules'] <= 100 * found['seconds'] + 1
  assert used['joules'] == pytest.approx(used['kwh'] * 3.6e6, rel=0.01)
  assert used['kg_co2e'] == pytest.approx(used['kwh'] / 2)
  assert used['usd'] == pytest.approx(found['seconds'] / 1000, rel=0.5)  # written a moment later
  assert list(used['joules_by_source']) == ['estimate']
  assert 'estimate, 100 W × 1 at all times (assumed)' in used['source']
  assert not used['measured']


def account(seconds):
  return Account(0.0, now=lambda: seconds)


def test_a_forecast_from_the_first_windows():
  """100 s are gone at step 20 of 40; the other 20 take 2 s each, at 50 W."""
  x, state = digits('plan.prices=cpu=36'), LoopState()
  found = RunEnergy(x, {'examples': 64}, 1e6, state, account(100.0))
  assert state.forecast == {}
  assert 'after 2 log lines' in found.forecast_text()
  found.energy.watts = lambda: 50.0
  found.energy.parts = lambda: {'RAPL': 4000.0}
  assert found.line(10, {'step_seconds': 9.0})['joules_per_example'] == pytest.approx(450 / 64)
  assert found.line(15, {}) == pytest.approx({'kwh': 4000 / 3.6e6, 'usd': 1.0})
  found.line(20, {'step_seconds': 2.0})
  made = {'step': 20, 'steps': 40, 'seconds': 140.0, 'kwh': 6000 / 3.6e6, 'usd': 1.4}
  assert state.forecast == pytest.approx(made)
  found.line(30, {'step_seconds': 7.0})
  assert state.forecast == pytest.approx(made)
  assert energy.achieved({'forecast': state.forecast, 'kwh': 3000 / 3.6e6, 'usd': 0.7}, 280.0) == (
    '2.00 of the time, 0.50 of the energy, 0.50 of the money that step 20 forecast'
  )
  found.energy.close()


def test_a_forecast_before_the_first_step(monkeypatch):
  """From published peak and share, as of a plan; that of a checkpoint stays if the steps do."""
  monkeypatch.setattr(hardware, 'chip', lambda device: chips.H100)
  x, state = digits('plan.prices=h100=3'), LoopState()
  found = RunEnergy(x, {'examples': 64}, 1e15, state, account(0.0))
  seconds = 40 * 1e15 / 494e12 / chips.EFFICIENCY['h100']  # float32: TF32 products
  assert state.forecast['seconds'] == pytest.approx(seconds)
  # A CPU's device stands for the board: it has the price of its own kind.
  assert found.kind == 'cpu'
  kept = LoopState(forecast={'step': 0.0, 'steps': 40.0, 'seconds': 7.0})
  RunEnergy(x, {'examples': 64}, 1e15, kept, account(0.0)).energy.close()
  assert kept.forecast['seconds'] == 7
  longer = LoopState(forecast={'step': 0.0, 'steps': 20.0, 'seconds': 7.0})
  RunEnergy(x, {'examples': 64}, 1e15, longer, account(0.0)).energy.close()
  assert longer.forecast['seconds'] == pytest.approx(seconds)
  found.energy.close()


@pytest.mark.parametrize('word', ['plan.watts=cpu=0', 'plan.prices=cqu=1', 'plan.carbon=-3'])
def test_words_that_mean_nothing_are_refused_before_compilation(word, tmp_path):
  name = word.partition('=')[0]
  with pytest.raises(InputError, match=name):
    loop.run(digits(word), tmp_path / 'run')


def test_comparisons_show_what_runs_used(tmp_path):
  from bmx.modes import compare

  for name, used in (('a', {'kwh': 0.25, 'joules_per_token': 3.5}), ('b', None)):
    (tmp_path / name).mkdir()
    (tmp_path / name / 'config.json').write_text(json.dumps({'config': {'seed': 0}}))
    (tmp_path / name / 'metrics.jsonl').write_text('{"step": 1, "loss": 2.0}\n')
    (tmp_path / name / 'summary.json').write_text(json.dumps({'energy': used}))
  runs = [compare.read(tmp_path / name, name) for name in 'ab']
  head, rows = compare.compare.results(runs)
  assert head[-2:] == ['J/token', 'kWh']
  assert [row[-2:] for row in rows] == [('3.5', '0.25'), ('', '')]
