"""Silos and a server of federated training: the rounds of the simulation; bad updates."""

import re

import jax
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core.errors import InputError
from bmx.parallel import jit
from bmx.privacy.silos import Server, Silo, Update
from bmx.train.state import state_spec
from bmx.train.step import train_step
from tests.conftest import ROOT
from tests.privacy.tasks import flat

SIZES, EACH = (70, 41), 32


@pytest.fixture(scope='module')
def archives(tmp_path_factory):
  """Two archives of digits, one for each silo."""
  random = np.random.default_rng(0)
  folder, paths = tmp_path_factory.mktemp('silos'), []
  for i, size in enumerate(SIZES):
    x = random.normal(size=(size, 6)).astype(np.float32) + i
    paths.append(str(folder / f'{i}.npz'))
    np.savez(paths[-1], x=x, label=random.integers(0, 3, size))
  return paths


def built(archives, *words):
  """An experiment whose clients are archives."""
  words = ['mesh.data=1', 'task.model.num_outputs=3', 'task.model.widths=(8,)', *words]
  config, name = recipes.load('digits_federated:tiny', words)
  sources = {
    str(i): {'call': 'bmx.data.arrays:arrays', 'path': path, 'classes': 3}
    for i, path in enumerate(archives)
  }
  config.data = {'call': 'bmx.data.clients:sources', 'sources': sources}
  config.data.per_round = len(sources)
  config.batch_size = EACH * len(sources)
  config.eval = {}
  return experiment.build(config, name, jax.devices()[:1])


@pytest.mark.parametrize('words', [[], ['grad.weights=equal', 'grad.method=fedprox',
                                        'grad.proximal=0.5']])  # fmt: skip
def test_rounds_are_those_of_the_simulation(archives, words):
  """A silo that does not answer is one without rows there."""
  simulated, silos = built(archives, *words), [Silo(built([p], *words)) for p in archives]
  server = Server(built(archives[:1], *words))
  spec = state_spec(simulated)
  step, state = jit(train_step(simulated), simulated.layout), spec.create()
  np.testing.assert_array_equal(flat(state.params), flat(server.state.params))
  for number in range(4):
    positions = number * 64 + np.arange(64)
    indices, weights = (x[0] for x in simulated.data.compose(number, 1))
    rows = {**simulated.data.rows(indices, positions), 'weights': weights}
    absent = 1 if number == 2 else None
    rows['weights'] = np.where(rows['client'] == absent, 0, rows['weights'])
    state, expected = step(state, rows)
    updates = {
      str(i): silo.answer(server.params, number, i, SIZES)
      for i, silo in enumerate(silos)
      if i != absent
    }
    found = server.step(updates)
    difference = flat(state.params) - flat(server.state.params)
    assert np.linalg.norm(difference) < 1e-6 * np.linalg.norm(flat(state.params))
    mean = float(expected['loss'][0] / expected['loss'][1])
    assert found['loss'] == pytest.approx(mean, rel=1e-5)
    assert found['clients'] == len(updates)


def test_python_of_the_page(archives):
  text = (ROOT / 'docs/federated.md').read_text()
  (code,) = (c for c in re.findall(r'```python\n(.*?)```', text, re.DOTALL) if 'Silo' in c)
  names = {'experiment': built(archives[:1]), 'own': built(archives[:1])}
  exec(code.replace('[900, 537]', str(list(SIZES))), names)
  assert names['metrics']['clients'] == 1


def test_bad_updates(archives, caplog):
  silo, server = Silo(built(archives[:1])), Server(built(archives[:1]))
  before, good = server.params, silo.answer(server.params, 0, 0, SIZES[:1])
  bad = good._replace(change=[np.full_like(x, np.nan) for x in good.change])
  found = server.step({'a': bad})
  assert found['clients'] == 0 and found['clients_rejected'] == 1
  np.testing.assert_array_equal(flat(server.params), flat(before))
  assert 'update of silo a: expected finite numbers; it is left out' in caplog.text
  with pytest.raises(InputError, match=r'update of silo a: expected 4 arrays, found 1: use one'):
    server.step({'a': Update(good.change[:1], 70, good.loss)})
  with pytest.raises(InputError, match=r'silo a: .*bias: expected float32 .8., found float32 .9.'):
    server.step({'a': good._replace(change=[np.zeros(9, np.float32), *good.change[1:]])})
  with pytest.raises(InputError, match=r'silo 0 of sizes .71.: expected 70 examples, its own'):
    silo.answer(server.params, 0, 0, [71])
  with pytest.raises(InputError, match='parameters of the server: expected 4 arrays, found 3'):
    silo.answer(server.params[:3], 0, 0, SIZES[:1])


def test_bad_silos(archives):
  with pytest.raises(InputError, match='expected those of one client, the silo, found 2 clients'):
    Silo(built(archives))
  with pytest.raises(InputError, match='expected fedavg or fedprox without secure_bits'):
    Server(built(archives, 'grad.secure_bits=16'))
