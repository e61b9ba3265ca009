"""The search on chips of chosen sizes, and the recipe that it writes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree
from typing import Any

import jax
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core import chips, errors, spending
from bmx.core.errors import InputError
from bmx.modes import Request
from bmx.modes import plan as mode
from bmx.plan import answer, budget, search, topology
from experiments.plan import fit
from tests.conftest import ROOT

ROOT_CONFIGS = ROOT / 'configs'
MLP = str(ROOT_CONFIGS / 'digits_mlp.py:tiny')
TRACES = {}


def choices(usable, *overrides, devices=2):
  recipe = str(ROOT_CONFIGS / 'llama_8b.py:tiny')
  config, name = recipes.load(recipe, ['task.model.remat=dots', *overrides])
  x = experiment.build(config, name, jax.devices()[:devices], read=False)
  chip = dataclasses.replace(chips.V5E, usable=usable)
  fixed = frozenset(['task.model.remat', *(text.partition('=')[0] for text in overrides)])
  quiet = lambda line: None
  return search.Search(x.rebuild, devices, chip, fixed, quiet, TRACES).choices(), chip


def test_less_memory_is_met_by_shards_or_micro_batches():
  """A chip that holds all needs neither; one that holds two thirds of it must cut."""
  found, chip = choices(2**30)
  best = found[0]
  assert best.overrides['mesh.data'] == 2
  assert best.overrides['grad.steps'] == 1
  need = best.memory.total
  small, _ = choices(need * 2 / 3, 'mesh.data=1', 'mesh.fsdp=2')
  (only,) = small
  assert only.memory.total <= need * 2 / 3
  assert only.rank >= best.rank
  for choice in [*found, only]:
    assert choice.experiment.layout.devices == 2
    assert choice.time.bound <= choice.time.apart
    assert choice.time.bound <= choice.time.likely
    assert choice.time.bound >= choice.costs.run / 2 / chip.flops


def test_factors_are_those_of_the_published_points():
  made = fit.fit()
  assert made == json.loads((ROOT / 'experiments/plan/results.json').read_text())
  assert made['efficiency'] == chips.EFFICIENCY
  assert all(point['share'] < 1 for point in made['points'])


@pytest.mark.parametrize('text', ['', '0h', 'h', '24', '-3usd', '5eur', '1.2.3h'])
def test_budgets_that_train_nothing(text):
  with pytest.raises(InputError, match='500usd, 24h or 30kwh'):
    budget.parse(text)


def test_prices_and_energy():
  """64 chips for 10 hours: 640 chip-hours at 4 dollars, of 192 W and 400 g/kWh."""
  words = {'prices': 'v4=4', 'watts': '', 'carbon': 400.0}
  spent = spending.spend(words, 'v4', 64, 36000)
  assert tuple(spent) == pytest.approx((10.0, 2560.0, 122.88, 49.152))
  unknown = spending.spend({'prices': '', 'watts': '', 'carbon': 0.0}, 'v5p', 64, 36000)
  assert (unknown.usd, unknown.kwh, unknown.kg) == (None, None, None)
  with pytest.raises(InputError, match=r"unknown chip 'v5'.*did you mean"):
    spending.by_kind('v5=3', 'plan.prices')
  with pytest.raises(InputError, match='above 0 for h100'):
    spending.by_kind('h100=0', 'plan.prices')


@pytest.fixture
def planned(tmp_path, monkeypatch):
  """Plans an MLP on 4 devices of this machine that pass for a slice -> (run, compiled)."""
  compiled = []

  def compile_step(x):
    compiled.append(x)

  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.setattr(topology, 'devices', lambda name: jax.devices()[:4])
  monkeypatch.setattr(answer, 'compile_step', compile_step)
  monkeypatch.setattr(answer, 'summarize', lambda x, made: {'peak_gib': 0.5})

  def run(*overrides, **flags):
    config, name = recipes.load(MLP, list(overrides))
    words: dict[str, Any] = {'topology': 'v5e:2x2', 'output': str(tmp_path / 'out')} | flags
    request = Request(config, name, recipe=MLP, overrides=overrides, **words)
    assert mode.run(request) == 0
    return tmp_path / 'out'

  return run, compiled


def test_the_recipe_of_a_plan_and_a_second_plan(planned, tmp_path, monkeypatch):
  run, compiled = planned
  folder = run('batch_size=32')
  assert len(compiled) == 1
  record = json.loads((folder / 'plan.json').read_text())
  picture = xml.etree.ElementTree.parse(folder / 'plan.svg').getroot()
  assert len(picture.findall('{*}line')) == 1
  config, _ = recipes.load(str(folder / 'planned.py'))
  x = experiment.build(config, devices=jax.devices()[:4], read=False)
  assert x.data.batch_size == 32
  words = record['answer']['words']
  assert {f'mesh.{k}': v for k, v in x.layout.mesh.shape.items()}.items() <= words.items()
  assert record['answer']['assumed'] == {'usd': None, 'kwh': None, 'kg_co2e': None}
  run('batch_size=32')
  assert len(compiled) == 1, 'the second plan compiled again'
  text = (folder / 'planned.py').read_text().replace(record['digest'], '0' * 16)
  (folder / 'other.py').write_text(text)
  with pytest.raises(InputError, match='expected the recipe that was planned'):
    recipes.load(str(folder / 'other.py'))


INTERRUPTED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below nohup
import jax
from bmx import main
from bmx.plan import answer, topology

topology.devices = lambda name: jax.devices()[:4]
answer.compile_step = lambda x: time.sleep(600)
sys.exit(main.main(sys.argv[1:]))
"""


def test_an_interrupt_gives_the_answer_so_far(tmp_path):
  """SIGINT while the compiler works, in a process of its own."""
  command = [sys.executable, '-c', INTERRUPTED, '--mode=plan', f'--config={MLP}',
             '--topology=v5e:2x2', f'--output={tmp_path / "out"}']  # fmt: skip
  flags = '--xla_force_host_platform_device_count=4'
  env = os.environ | {'XLA_FLAGS': flags, 'XDG_CACHE_HOME': str(tmp_path), 'JAX_PLATFORMS': 'cpu'}
  with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, cwd=ROOT) as process:
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
      lines.append(line)
      if line.startswith('compiling'):
        process.send_signal(signal.SIGINT)
  text = ''.join(lines)
  assert process.returncode == errors.INTERRUPTED
  after = text.partition('interrupted; by hand so far, not compiled:')[2]
  assert 'examples/s (likely)' in after
  assert 'v5e:2x2' in after
  assert 'Traceback' not in text
  assert not (tmp_path / 'out').exists()


def test_bad_input(planned):
  run, compiled = planned
  with pytest.raises(InputError, match='expected --budget'):
    run(topology='auto')
  with pytest.raises(InputError, match='expected prices'):
    run(topology='v5e:2x2', budget='500usd')
  with pytest.raises(InputError, match=r'needs at least .* hours \(v5e:2x2\)'):
    run('steps=1000000000', 'epochs=0', budget='0.001h')
  with pytest.raises(InputError, match='for all of these chips'):
    run(budget='30kwh')
  with pytest.raises(InputError, match='fits none of v5e:2x2.*times as many devices'):
    run('task.model.widths=(131072,131072)', 'mesh.data=4')
  assert not compiled
