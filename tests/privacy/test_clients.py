"""Rounds with late updates, and differential privacy of clients."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.modes import Request
from bmx.modes import evaluate as evaluate_mode
from bmx.parallel import Layout, jit, make_mesh
from bmx.parallel.sharding import unbox
from bmx.privacy.accounting import Accountant
from bmx.privacy.clients import ClippedClients
from bmx.privacy.noise import Noised, Scales
from bmx.runtime.writer import read_metrics
from bmx.train import loop
from bmx.train.gradients import divide
from tests.privacy.tasks import flat
from tests.privacy.test_federated import ROWS, B, C, S, batch, federated, start

WORDS = ['grad.weights=equal', 'privacy.unit=client', 'mesh.data=1']


def run(grad_fn, *args):
  return jax.jit(lambda *given: grad_fn(*given))(*args)


def at(step, key=1, secret=None):
  return Noise(jax.random.PRNGKey(key), jnp.int32(step), secret)


def test_late_updates_are_those_of_earlier_rounds():
  """If every update comes two rounds late, a round has the gradient of the one before the last."""
  late, prompt = federated(late=1.0, late_rounds=2), federated()
  variables = start(late)
  for step in range(5):
    found = run(late, variables, batch(step), at(step))
    variables = variables | found.collections
    if step < 2:
      assert float(found.count) == 0 and not flat(found.sum).any()
      continue
    expected = divide(run(prompt, start(prompt), batch(step - 2), at(step - 2)))
    np.testing.assert_allclose(flat(divide(found).sum), flat(expected.sum), rtol=1e-5, atol=1e-7)
    assert found.metrics['clients'][0] == 0 and found.metrics['clients_late'][0] == C


def test_late_updates_count_less():
  """Numpy: those on time are a subset of the clients, the others come with the stated factor."""
  this, alone = federated(late=0.5, late_rounds=1, late_weight=0.25), federated()
  rows, variables = batch(0), start(this)
  sizes = rows['client_examples'][:: S * B]
  changes = []
  for i in range(C):
    own = dict(rows, weights=np.where(np.arange(ROWS) // (S * B) == i, rows['weights'], 0))
    changes.append(sizes[i] * flat(divide(run(alone, start(alone), own, at(0))).sum))
  seen = set()
  for key in range(8):
    now = run(this, variables, rows, at(0, key))
    nobody = dict(rows, weights=np.zeros_like(rows['weights']))
    after = run(this, variables | now.collections, nobody, at(1, key))
    fits = [
      chosen
      for n in range(C + 1)
      for chosen in itertools.combinations(range(C), n)
      if np.allclose(sum((changes[i] for i in chosen), 0 * changes[0]), flat(now.sum), atol=1e-4)
    ]
    assert len(fits) == 1
    seen.add(fits[0])
    others = [i for i in range(C) if i not in fits[0]]
    expected = 0.25 * sum((changes[i] for i in others), 0 * changes[0])
    np.testing.assert_allclose(flat(after.sum), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(float(after.count), 0.25 * sum(sizes[others]), rtol=1e-6)
  assert len(seen) > 2


@pytest.mark.parametrize('clip', [0.05, 0.3, 100.0])
def test_changes_of_clients_are_clipped(clip):
  """Numpy: the sum of the changes, each scaled; a client with NaN and one without rows add zero."""
  this = federated(weights='equal')
  rows = batch(0)
  rows['weights'][: S * B] = 0
  rows['x'][S * B, 0] = np.nan
  for nan in (True, False):
    if not nan:
      rows['x'][S * B, 0] = 0.5
    total, counted = 0.0, 0
    for i in range(C):
      own = dict(rows, weights=np.where(np.arange(ROWS) // (S * B) == i, rows['weights'], 0))
      change = flat(run(this, start(this), own, at(0)).sum).astype(np.float64)
      size = np.linalg.norm(change)
      if np.isfinite(size) and own['weights'].any():
        total, counted = total + change * min(1.0, clip / size), counted + 1
    found = run(ClippedClients(this, clip), start(this), rows, at(0))
    assert counted == C - 1 - nan == float(found.count)
    assert np.linalg.norm(flat(found.sum) - total) < 1e-5 * np.linalg.norm(total)
    assert float(found.metrics['loss'][1]) == counted


def test_noise_is_that_of_the_clip():
  """Standard deviation on the sum: scale × clip; the divisor is the expected number."""
  this = Noised(ClippedClients(federated(weights='equal'), 0.3), 0.3, 2.0, Scales(2.0, 1.0))
  call = jax.jit(lambda secret: this(start(this.inner.inner), batch(0), at(0, secret=secret)))
  grads = [call(jnp.array([0, i], jnp.uint32)) for i in range(80)]
  assert float(grads[0].count) == 2.0
  assert np.std([flat(g.sum) for g in grads], axis=0).mean() == pytest.approx(0.6, rel=0.08)


def built(*words, recipe='digits_federated:tiny', eval_clients=False, devices=1):
  config, name = recipes.load(recipe, [*words])
  if not eval_clients:
    del config.eval.clients
  return experiment.build(config, name, jax.devices()[:devices])


@pytest.fixture(autouse=True)
def secret(monkeypatch):
  monkeypatch.setenv('BMX_PRIVACY_SECRET', '0123456789abcdef0123456789abcdef')


def test_a_private_run_of_clients(tmp_path):
  """ε of each line is that of the rate of clients; draws differ in number; the run is evaluated."""
  words = [*WORDS, 'data.clients=40', 'data.per_round=8', 'privacy.noise_multiplier=1.0',
           'steps=6', 'every.log=2', 'every.save=3', 'every.eval=0']  # fmt: skip
  x = built(*words)
  each = 128 // 8
  assert x.data.expected == 128 and x.data.batch_size > 128 and x.data.batch_size % each == 0
  weights = [x.data.keyed('a').compose(i, 1)[1] for i in range(12)]
  drawn = [np.count_nonzero(w.reshape(-1, each).any(1)) for w in weights]
  assert len(set(drawn)) > 2 and 5 < np.mean(drawn) < 11
  summary = loop.run(x, tmp_path / 'run')
  accountant = Accountant(1.0, 8 / 40, 1e-5)
  found = [v for v in read_metrics(tmp_path / 'run' / 'metrics.jsonl') if 'loss' in v]
  for line in found:
    assert line['epsilon'] == pytest.approx(accountant.epsilon(line['step']), rel=3e-3)
    assert 'accuracy' not in line and 'clients' not in line, 'exact metrics of clients'
  assert summary['steps'] == 6
  assert '8 of 40 clients on average' in (tmp_path / 'run' / 'report.html').read_text()
  config = recipes.from_stored(x.config)
  config.mesh.data = -1
  request = Request(config, 'run', str(tmp_path / 'run'))
  assert evaluate_mode.run(request) == 0


def test_eight_devices_are_one():
  """Clipped sums of 8 clients, one each."""
  config, name = recipes.load('digits_federated:tiny', ['grad.weights=equal', 'mesh.data=1'])
  x = experiment.build(config, name, jax.devices()[:1])
  random = np.random.default_rng(0)
  rows = {k: np.zeros(v.shape, v.dtype) for k, v in x.data.abstract.items()}
  rows['image'] = random.normal(size=rows['image'].shape).astype(np.float32)
  rows['label'] = random.integers(0, 10, len(rows['label'])).astype(np.int32)
  rows['client'] = np.repeat(np.arange(8), 16).astype(np.int32)
  rows['weights'][:] = rows['client_examples'][:] = 1
  variables = dict(unbox(x.task.init(at(0), rows)))
  clipped = ClippedClients(x.grad_fn, 1.0)
  meshes = [Layout(make_mesh({'data': n}, jax.devices()[:n])) for n in (1, 8)]
  alone, eight = (jit(clipped, where)(variables, rows, at(0)) for where in meshes)
  assert np.linalg.norm(flat(eight.sum) - flat(alone.sum)) < 1e-6 * np.linalg.norm(flat(alone.sum))
  assert float(eight.count) == 8 and not np.allclose(flat(alone.sum), 0)


BAD = {
  'grad.weights=examples': 'grad.weights=examples: expected equal with privacy.unit=client',
  'grad.late=0.5': r'grad.late=0.5: expected 0.0 with privacy.unit=client',
  'grad.secure_bits=16': 'grad.secure_bits=16: expected 0 with privacy.unit=client',
  'grad.method=scaffold': 'grad.method=scaffold: expected fedavg or fedprox',
  'privacy.unit=example': 'privacy.unit=example: expected client with data of clients',
  'privacy.unit=clients': "privacy.unit='clients': expected example or client; did you mean",
  'privacy.method=ghost': 'privacy.method=ghost, .*: expected vmap and 1 with privacy.unit=client',
}


@pytest.mark.parametrize('word', BAD)
def test_bad_words(word):
  with pytest.raises(InputError, match=BAD[word]):
    built(*WORDS, 'privacy.noise_multiplier=1', word)


def test_bad_parts():
  with pytest.raises(InputError, match='eval.clients: expected other examples than the training'):
    built(*WORDS, 'privacy.noise_multiplier=1', eval_clients=True)
  with pytest.raises(InputError, match='privacy.unit=client: expected data of clients'):
    built('privacy.unit=client', 'privacy.epsilon=3', recipe='digits_mlp:tiny', eval_clients=True)
  for word, value, message in (
    ('late', 1.5, 'grad.late=1.5: .* <= 1'),
    ('late_rounds', 0, 'grad.late_rounds=0: '),
    ('late_weight', -1, 'grad.late_weight=-1: '),
  ):
    with pytest.raises(InputError, match=message):
      federated(**{word: value})
  with pytest.raises(InputError, match='grad.late=0.5: expected 0 with method=scaffold'):
    federated('scaffold', late=0.5)
