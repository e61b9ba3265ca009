"""Rounds of federated training against numpy; masks, clients that drop out, layouts, refusals."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx import config as recipes
from bmx import experiment
from bmx.core import tree
from bmx.core.errors import InputError
from bmx.core.types import Noise
from bmx.models.mlp import MLP
from bmx.models.recurrent_lm import RecurrentLM
from bmx.parallel import Layout, jit, make_mesh
from bmx.parallel.sharding import unbox
from bmx.privacy import secure
from bmx.privacy.federated import Federated
from bmx.tasks.classification import Classification
from bmx.tasks.language import CausalLM
from bmx.train import loop
from bmx.train.feed import Feed
from bmx.train.gradients import Accumulate, Gradient, divide
from bmx.train.state import state_spec
from bmx.train.step import make_dispatch, train_step

K, C, S, B, D, CLASSES, RATE = 5, 3, 4, 2, 6, 3, 0.5
ROWS = C * S * B
FACTS = {'num_clients': K, 'clients_per_round': C}
NOISE = Noise(jax.random.PRNGKey(1), jnp.int32(0))
ONE = Layout(make_mesh({'data': 1}, jax.devices()[:1]))
GRADIENT = Gradient(Classification(MLP(CLASSES, ())))  # softmax regression
METHODS = {
  'fedavg': {},
  'fedprox': {'proximal': 0.3},
  'scaffold': {'weights': 'equal'},
}


def federated(method='fedavg', **words):
  words = {'local_steps': S, 'learning_rate': RATE, **METHODS[method], **words}
  return Federated(GRADIENT, ROWS, FACTS, method=method, **words)


def batch(number):
  """A round of clients of unequal size; the last has rows for two of its steps only."""
  random = np.random.default_rng(number)
  chosen = random.choice(K, C, replace=False)
  client = np.repeat(chosen, S * B).astype(np.int32)
  weights = np.ones(ROWS, np.float32)
  weights[-2 * B :] = 0
  weights[0] = 0.5
  return {
    'x': random.normal(size=(ROWS, D)).astype(np.float32) + client[:, None] / K,
    'label': ((client + random.integers(0, 2, ROWS)) % CLASSES).astype(np.int32),
    'weights': weights,
    'client': client,
    'client_examples': (10.0 + 7 * client).astype(np.float32),
  }


def start(grad_fn):
  params = {'head': {'kernel': np.full((D, CLASSES), 0.1, np.float32),
                     'bias': np.zeros(CLASSES, np.float32)}}  # fmt: skip
  return {'params': params} | jax.tree.map(np.asarray, grad_fn.init({'params': params}))


def softmax_gradient(w, b, rows):
  """Of the weighted mean of the cross-entropy."""
  z = rows['x'] @ w + b
  p = np.exp(z - z.max(1, keepdims=True))
  p /= p.sum(1, keepdims=True)
  d = (p - np.eye(CLASSES)[rows['label']]) * rows['weights'][:, None] / rows['weights'].sum()
  return rows['x'].T @ d, d.sum(0)


def round_of(method, w, b, controls, rows):
  """One round in numpy, float64: Karimireddy et al. 2020, algorithm 1, with its special cases."""
  proximal, scaffold = METHODS[method].get('proximal', 0.0), method == 'scaffold'
  changes, weights, moved = [], [], []
  for part in np.split(np.arange(ROWS), C):
    k, y, c, steps = rows['client'][part[0]], w.copy(), b.copy(), 0
    for step in np.split(part, S):
      own = {name: v[step] for name, v in rows.items()}
      if not own['weights'].sum():
        continue
      gw, gb = softmax_gradient(y, c, own)
      gw, gb = gw + proximal * (y - w), gb + proximal * (c - b)
      if scaffold:
        gw, gb = gw - controls[k][0] + controls[K][0], gb - controls[k][1] + controls[K][1]
      y, c, steps = y - RATE * gw, c - RATE * gb, steps + 1
    changes.append((y - w, c - b))
    weights.append(1.0 if scaffold else rows['client_examples'][part[0]])
    new = [old - server - change / (steps * RATE) for old, server, change in
           zip(controls[k], controls[K], changes[-1], strict=True)]  # fmt: skip
    moved.append((k, [a - o for a, o in zip(new, controls[k], strict=True)]))
  mean = [np.average([ch[i] for ch in changes], 0, weights) for i in range(2)]
  if scaffold:
    for k, more in moved:
      controls[k] = [a + m for a, m in zip(controls[k], more, strict=True)]
      controls[K] = [a + m / K for a, m in zip(controls[K], more, strict=True)]
  return w + mean[0], b + mean[1], sum(weights)


@pytest.mark.parametrize('method', METHODS)
def test_rounds_are_those_of_numpy(method):
  this = federated(method)
  variables, call = start(this), jit(federated(method), ONE)
  w, b = (variables['params']['head'][k].astype(np.float64) for k in ('kernel', 'bias'))
  controls = [[np.zeros_like(w), np.zeros_like(b)] for _ in range(K + 1)]
  for number in range(3):
    rows = batch(number)
    grads = call(variables, rows, NOISE)
    w, b, total = round_of(method, w, b, controls, rows)
    assert float(grads.count) == pytest.approx(total)
    moved = jax.tree.map(lambda p, g: p - g, variables['params'], divide(grads).sum)
    variables = {**variables, 'params': moved, **grads.collections}
    np.testing.assert_allclose(moved['head']['kernel'], w, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moved['head']['bias'], b, rtol=1e-4, atol=1e-5)
    assert float(grads.metrics['loss'][1]) == rows['weights'].sum()
    assert grads.metrics['clients'].tolist() == [C, 1]
  if method == 'scaffold':
    clients = variables['control']['clients']['head']['kernel']
    np.testing.assert_allclose(clients, [c[0] for c in controls[:K]], rtol=1e-3, atol=1e-5)
    server = variables['control']['server']['head']['bias']
    np.testing.assert_allclose(server, controls[K][1], rtol=1e-3, atol=1e-5)


def flat(values):
  return np.concatenate([np.zeros(0), *map(np.ravel, jax.tree.leaves(values))])


def test_one_local_step_of_all_rows_is_plain_gradient_descent():
  """Weights by examples that are the rows themselves: the mean of the clients is that of all."""
  this = federated(local_steps=1)
  rows = batch(0) | {'weights': np.ones(ROWS, np.float32)}
  rows |= {'client_examples': np.full(ROWS, S * B, np.float32)}
  variables = start(this)
  plain = divide(jit(GRADIENT, ONE)(variables, rows, NOISE)).sum
  found = divide(jit(this, ONE)(variables, rows, NOISE)).sum
  np.testing.assert_allclose(flat(found), RATE * flat(plain), rtol=1e-4, atol=1e-6)


def test_secure_sums_are_sums():
  """Equal to the plain sum up to the fixed point; the messages alone look like noise."""
  random = np.random.default_rng(0)
  updates = {'a': random.normal(size=(4, 50, 40)).astype(np.float32),
             'b': random.normal(size=(4, 7)).astype(np.float32)}  # fmt: skip
  sent = jnp.array([True, True, False, True])
  masked = secure.messages(updates, sent, jax.random.PRNGKey(0), 16)
  assert float(masked.saturated) == 0
  added = secure.add(masked.values, 16)
  for name, x in updates.items():
    fixed = np.round(x[np.asarray(sent)] * 2.0**16).astype(np.int64).sum(0)
    np.testing.assert_array_equal(np.asarray(added[name]) * 2.0**16, fixed.astype(np.float32))
  own = np.asarray(masked.values['a'])
  assert not own[2].any()
  for message in own[[0, 1, 3]].reshape(3, -1):
    assert abs(message.mean() / 2**31 - 1) < 0.05  # uniform over 32 bits
    assert abs(np.corrcoef(message, updates['a'][0].ravel())[0, 1]) < 0.1
  huge = {'a': np.full((4, 1), 2.0**20, np.float32)}
  assert float(secure.messages(huge, sent, jax.random.PRNGKey(0), 16).saturated) == 3


def test_a_round_with_secure_sums():
  plain, masked = (
    jit(federated(secure_bits=n), ONE)(start(GRADIENT), batch(0), NOISE) for n in (0, 16)
  )
  scale = np.abs(flat(divide(plain).sum)).max()
  np.testing.assert_allclose(flat(divide(masked).sum), flat(divide(plain).sum), atol=1e-4 * scale)
  assert masked.metrics['secure_saturated'].tolist() == [0, 1]


@pytest.mark.parametrize('method', ['fedavg', 'scaffold'])
def test_updates_that_are_not_finite_count_for_nothing(method):
  """The average of the others, and their controls; all of them: the round is not finite."""
  this = federated(method)
  good, call = batch(0), jit(this, ONE)
  bad = {**good, 'x': np.where(np.arange(ROWS)[:, None] == 1, np.nan, good['x'])}
  without = {**good, 'weights': np.where(np.arange(ROWS) < S * B, 0, good['weights'])}
  variables = start(this)
  rejected, absent = call(variables, bad, NOISE), call(variables, without, NOISE)
  assert rejected.metrics['clients_rejected'].tolist() == [1, 1]
  assert rejected.metrics['clients'].tolist() == absent.metrics['clients'].tolist() == [C - 1, 1]
  assert absent.metrics['clients_rejected'].tolist() == [0, 1]
  np.testing.assert_allclose(flat(rejected.sum), flat(absent.sum), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    flat(rejected.collections), flat(absent.collections), rtol=1e-5, atol=1e-6
  )
  every = call(variables, {**good, 'x': np.full_like(good['x'], np.nan)}, NOISE)
  assert np.isnan(flat(every.sum)).all()
  nobody = call(variables, {**good, 'weights': np.zeros(ROWS, np.float32)}, NOISE)
  assert not flat(nobody.sum).any() and float(nobody.count) == 0


def test_clients_drop_out():
  this = federated(dropout=0.5)
  call = jit(lambda rows, key: this(start(this), rows, Noise(key, jnp.int32(0))), ONE)
  grads = [call(batch(0), jax.random.PRNGKey(i)) for i in range(40)]
  share = np.mean([g.metrics['clients'][0] / C for g in grads])
  assert abs(share - 0.5) < 0.12
  sizes = batch(0)['client_examples'][:: S * B]
  sums = {round(float(g.count)) for g in grads}
  assert sums <= {round(float(sum(sizes[list(i)]))) for i in ([], [0], [1], [2], [0, 1], [0, 2],
                                                              [1, 2], [0, 1, 2])}  # fmt: skip


RECIPE = 'digits_federated:tiny'


def built(devices=1, mesh=(), words=()):
  axes = [f'mesh.{axis}={n}' for axis, n in dict(mesh or {'data': 1}).items()]
  config, name = recipes.load(RECIPE, [*axes, *words])
  return experiment.build(config, name, jax.devices()[:devices])


def trained(x, steps=3):
  feed, spec = Feed(x.data, x.layout, steps), state_spec(x)
  dispatch = make_dispatch(train_step(x), feed.take, 0, steps, x.task.constant)
  program = jit(dispatch, x.layout, donate_argnums=(0,), out_shardings=(spec.shardings, None, None))
  group, _ = next(feed.groups([(0, steps)]))
  state, sums, _ = program(spec.create(), feed.constants(), group, np.int32(steps))
  fetched = lambda v: np.concatenate([tree.fetch(x).ravel() for x in jax.tree.leaves(v)])
  return float(sums['loss'][0] / sums['loss'][1]), fetched(state.params), fetched(state.collections)


def test_eight_devices_are_one():
  words = ['grad.method=scaffold', 'grad.weights=equal']
  loss, params, control = trained(built(words=words))
  for mesh in ({'data': 8}, {'data': 2, 'fsdp': 2, 'model': 2}):
    found, other, other_control = trained(built(8, mesh, words))
    assert found == pytest.approx(loss, 1e-5)
    assert np.linalg.norm(other - params) < 1e-5 * np.linalg.norm(params)
    assert np.linalg.norm(other_control - control) < 1e-4 * np.linalg.norm(control)


def test_a_resumed_run_is_the_same(tmp_path):
  words = ['grad.method=scaffold', 'grad.weights=equal', 'grad.dropout=0.2', 'grad.secure_bits=16',
           'every.log=2', 'steps_per_call=2']  # fmt: skip
  run = lambda name, steps: loop.run(built(words=[*words, f'steps={steps}']), tmp_path / name)
  whole = run('whole', 6)
  run('parts', 2)
  again = run('parts', 6)
  assert again['state_digest'] == whole['state_digest']
  assert {'clients', 'clients_rejected', 'secure_saturated', 'eval/clients/client_worst_tenth'} <= (
    set(again['metrics'])
  )


REFUSED = {
  'method': (['grad.method=fedavgg'], "grad.method='fedavgg': expected one of .* mean 'fedavg'"),
  'proximal': (['grad.method=fedprox'], 'grad.proximal=0.0 with method=fedprox: expected a number'),
  'rate': (['grad.learning_rate=0'], 'learning_rate'),
  'bits': (['grad.secure_bits=40'], 'grad.secure_bits=40: expected from 0'),
  'clients': (['data.per_round=11'], 'data.per_round=11: expected from 1 to 10'),
  'steps': (['grad.local_steps=5'], 'batch_size=128: expected a multiple of 8 clients of a round'),
  'norm': (['task.model.norm=batch'], "found coupling='statistics'.* batch norm"),
}  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_refused_by_name(name):
  words, message = REFUSED[name]
  with pytest.raises(InputError, match=message):
    built(words=words)


def test_refused_parts():
  with pytest.raises(InputError, match='expected data that belong to clients; set --config.data'):
    Federated(GRADIENT, ROWS, {})
  with pytest.raises(InputError, match='grad.steps=2: expected 1'):
    Accumulate(federated(), steps=2, batch_size=ROWS)
  carrying = Gradient(CausalLM(RecurrentLM(5, carry=True)))
  with pytest.raises(InputError, match=r"carried=\('carry',\)"):
    Federated(carrying, ROWS, FACTS, local_steps=S)
  x = built()
  with pytest.raises(InputError, match='of shape .8,. is not divisible by data=3'):
    layout = Layout(make_mesh({'data': 3}, jax.devices()[:3]))
    shapes = jax.tree.map(lambda v: np.zeros(v.shape, v.dtype), dict(x.data.abstract))
    variables = dict(unbox(x.task.init(NOISE, shapes)))
    jit(dataclasses.replace(x.grad_fn), layout).lower(variables, shapes, NOISE)


CLINICS = """
from bmx.config import load

def get_config(variant=''):
  c, _ = load('digits_federated:tiny')
  c.data = {'call': 'bmx.data.clients:by_column', 'column': 'clinic', 'per_round': 2}
  c.data.examples = {'call': 'bmx.data.tables:table', 'path': 'visits.csv', 'target': 'ill',
                     'drop': ('clinic',)}
  c.task.model.num_outputs = 2
  c.batch_size, c.steps = 64, 6
  del c.eval.test
  return c
"""


def test_clients_of_a_table_train_and_their_run_predicts_a_file(tmp_path, monkeypatch, command):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'clinics.py').write_text(CLINICS)
  random = np.random.default_rng(0)
  ages = random.integers(1, 90, 90)
  rows = [f'{"abc"[i % 3]},{age},{"yes" if age > 45 else "no"}' for i, age in enumerate(ages)]
  (tmp_path / 'visits.csv').write_text('\n'.join(['clinic,age,ill', *rows]))
  (tmp_path / 'new.csv').write_text('\n'.join(['clinic,age', 'd,5', 'd,88']))
  trained = command('--config=clinics.py', '--workdir=run', '--config.mesh.data=1')
  assert trained.returncode == 0, trained.stderr
  done = command('--mode=predict', '--workdir=run', '--input=new.csv', '--output=out.jsonl')
  assert done.returncode == 0, done.stderr
  found = [json.loads(line) for line in (tmp_path / 'out.jsonl').read_text().splitlines()]
  assert [row['clinic'] for row in found] == ['d', 'd']
  assert [row['prediction'] for row in found] == ['no', 'yes']
