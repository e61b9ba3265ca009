"""Predictions over HTTP: rows equal to those of a file, shared batches, swapped weights."""

import asyncio
import contextlib
import dataclasses
import json
import socket
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bmx
from bmx import experiment
from bmx.core.data import Spec
from bmx.core.errors import InputError
from bmx.parallel import Layout, make_mesh
from bmx.train import datafile
from bmx.train.evaluate import predictions as predicted
from bmx.train.predicted import lines
from bmx.train.state import eval_variables

uvicorn = pytest.importorskip('uvicorn', reason='the extra `serve` is not installed')

from bmx.serve.app import Server  # noqa: E402
from bmx.serve.predict_routes import PredictionService  # noqa: E402
from bmx.serve.predictions import Predictions  # noqa: E402
from bmx.serve.predictor import Batcher, Predictor  # noqa: E402
from tests.serve.test_app import assert_unharmed, get, post  # noqa: E402

ONE = Layout(make_mesh({}, jax.devices()[:1]))
AGES = np.random.default_rng(0).integers(18, 90, 40)
TABLE = {
  'age': AGES,
  'born': [f'19{20 + i}-03-01' for i in range(40)],
  'city': ['Rome', 'Oslo', 'Lima', 'Kyiv'] * 10,
  'note': [f'n{i}' for i in range(40)],
  'rich': ['yes' if a > 50 else 'no' for a in AGES],
}


def records(table):
  return [{k: v[i].item() if k == 'age' else v[i] for k, v in table.items()} for i in range(40)]


@dataclasses.dataclass
class Served:
  """A run that has not trained, and its reader of instances."""

  x: object
  read: object
  state: object

  def rows(self, source):
    """The rows that `bmx predict` writes for a file, or for records in memory."""
    data = experiment.input_data(self.x, source, None)
    return list(lines(data, self.x.task, predicted(data, self.x.task, self.x.layout, self.state)))


def make(config, **more):
  """Builds a run as `bmx serve` does: with what it keeps of its data."""
  x = experiment.build(config, devices=jax.devices()[:1], **more)
  kept = datafile.describe(x.data)
  spec = {k: Spec(tuple(s), np.dtype(d), tuple(n)) for k, (s, d, n) in kept['spec'].items()}
  stored = datafile.DataFile(x.data.size, spec, kept['metadata'], kept['state'])
  again = experiment.build(config, devices=jax.devices()[:1], stored=stored, evals=False)
  return Served(again, experiment.Instances(again, stored), again.init())


@pytest.fixture(scope='module')
def table():
  words = ['data.target=rich', 'data.drop=note', 'task.model.widths=(8,)', 'steps=1', 'epochs=0.0']
  config, _ = bmx.load('table', words)
  config.eval, config.keep.metric = {}, ''
  return make(config, given=TABLE)


@contextlib.contextmanager
def serving(made, window=0.0, batch=8, max_instances=16, **options):
  """Serves a run -> (port, worker)."""
  variables = eval_variables(made.state)
  predictor = Predictor(made.x.task, made.x.layout, variables, made.read.spec, batch)
  worker = Batcher(predictor, window, options.pop('max_waiting', 64))
  columns = [dataclasses.asdict(c) for c in made.read.columns]
  served = Predictions('tiny', worker, made.x.task, made.read, columns, max_instances)
  config = uvicorn.Config(Server(PredictionService(served), **options).app(), port=0,
                          log_level='error', lifespan='off')  # fmt: skip
  server = uvicorn.Server(config)
  thread = threading.Thread(target=server.run)
  worker.start()
  thread.start()
  while not server.started:
    time.sleep(0.01)
  try:
    yield server.servers[0].sockets[0].getsockname()[1], worker
  finally:
    worker.drain()
    assert worker.error or worker.join(30)
    server.should_exit = True
    thread.join(30)


def close(found, expected):
  """Whether rows are equal, but for the last digits of numbers."""
  strip = lambda rows: [{k: v for k, v in r.items() if k != 'probability'} for r in rows]
  assert strip(found) == strip(expected)
  for a, b in zip(found, expected, strict=True):
    assert a['probability'] == pytest.approx(b['probability'], abs=1e-6)


@pytest.fixture(scope='module')
def port(table):
  with serving(table) as (port, _):
    yield port


def ask(port, instances, **more):
  return post(port, {'instances': instances} | more, '/v1/predict')


def test_rows_are_those_of_a_file(table, port, tmp_path):
  path = tmp_path / 'new.jsonl'
  given = records(TABLE)[:11]
  given[3]['age'] = None
  path.write_text(''.join(json.dumps(r) + '\n' for r in given))
  status, answer, _ = ask(port, given, model='tiny')
  assert status == 200
  assert answer['id'].startswith('pred-')
  close(answer['predictions'], table.rows(path))
  assert answer['predictions'][2]['note'] == 'n2'
  assert answer['predictions'][2]['label'] == TABLE['rich'][2]
  inputs = [{k: r[k] for k in ('age', 'born', 'city')} for r in given]
  alone = [ask(port, [one])[1]['predictions'][0] for one in inputs]
  for n, (row, whole) in enumerate(zip(alone, answer['predictions'], strict=True), 1):
    assert row['row'] == 1
    assert set(row) == {'row', 'prediction', 'probability'}
    close([row | {k: whole[k] for k in ('note', 'label')} | {'row': n}], [whole])


GOOD = {'age': 30, 'born': '1950-01-01', 'city': 'Oslo'}
BAD = [
  ([], 400, 'expected a JSON object'),
  ({}, 400, 'instances=None'),
  ({'instances': GOOD}, 400, 'instances={'),
  ({'instances': []}, 400, 'instances=[]'),
  ({'instances': [GOOD], 'n': 2}, 400, 'n=2'),
  ({'instances': [GOOD], 'model': 'other'}, 404, "the model 'other' does not exist"),
  ({'instances': [GOOD] * 17}, 413, '17 instances: expected at most 16'),
  ({'instances': [GOOD, 3]}, 400, 'instances[1]: expected an object'),
  ({'instances': [GOOD, {'age': 3, 'born': None}]}, 400, "instances[1]: missing column 'city'"),
  ({'instances': [GOOD | {'agee': 3}]}, 400, "unknown column 'agee'; did you mean 'age'?"),
  ({'instances': [GOOD | {'\ud800': 3}]}, 400, 'unknown column'),
  ({'instances': [GOOD, GOOD | {'age': 'old'}]}, 400, "instances[1]: age is 'old'"),
  ({'instances': [GOOD | {'age': [3]}]}, 400, 'instances[0].age=[3]: expected a finite number'),
  ({'instances': [GOOD | {'age': 10**400}]}, 400, 'instances[0].age=1000'),
  ({'instances': [GOOD | {'age': float('nan')}]}, 400, 'instances[0].age=nan'),
  ({'instances': [GOOD, GOOD | {'age': float('-inf')}]}, 400, 'instances[1].age=-inf'),
  (b'{"instances": [{"age": 1e999, "born": null, "city": null}]}', 400, 'instances[0].age=inf'),
  ({'instances': [GOOD | {'age': True}]}, 400, 'age is True'),
  ({'instances': [GOOD | {'born': 'May'}]}, 400, "born is 'May', expected a date"),
  ({'instances': [GOOD | {'city': {'a': 1}}]}, 400, "instances[0].city={'a': 1}: expected a text"),
  ({'instances': [GOOD | {'rich': 'perhaps'}]}, 400, "class 'perhaps'"),
]


@pytest.mark.parametrize('body, status, text', BAD)
def test_bad_instances_are_named(port, body, status, text):
  found, answer, _ = post(port, body, '/v1/predict')
  assert (found, set(answer['error'])) == (status, {'message', 'type', 'param', 'code'})
  assert text in answer['error']['message']


def test_routes_of_a_predictor(port):
  assert ask(port, [GOOD | {'city': 'Atlantis'}])[0] == 200  # zeros, as `bmx predict` has it
  for path in ('/v1/completions', '/v1/chat/completions'):
    status, answer, _ = post(port, {'prompt': 'a'}, path)
    assert status == 404
    assert 'expected /v1/predict' in answer['error']['message']
  status, page = get(port, '/')
  assert status == 200
  assert '"name": "born", "kind": "date"' in page
  assert 'bmx_instances_total' in get(port, '/metrics')[1]


def test_hostile_requests_do_no_harm(port):
  before = ask(port, [GOOD])[1]['predictions']
  assert_unharmed(port, '/v1/predict', {'instances': [GOOD, GOOD], 'model': 'tiny'}, 60)
  assert ask(port, [GOOD])[1]['predictions'] == before


def test_a_slow_body_is_refused(table):
  with serving(table, timeout=0.2) as (port, _):
    head = b'POST /v1/predict HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{'
    with socket.create_connection(('127.0.0.1', port), 10) as connection:
      connection.sendall(head)
      assert connection.recv(100).startswith(b'HTTP/1.1 408')


def test_requests_of_a_window_share_a_batch(table):
  sizes, answers = [], []
  with serving(table, window=0.2, batch=8) as (port, worker):
    worker.on_batch = sizes.append
    given = records(TABLE)
    call = lambda n: answers.append((n, ask(port, given[n : n + 2])))
    threads = [threading.Thread(target=call, args=(n,)) for n in range(0, 20, 2)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join(60)
  assert sum(sizes) == 20
  assert len(sizes) < 10
  whole = table.rows(given)
  for n, (status, answer, _) in answers:
    assert status == 200
    rows = [r | {'row': n + i} for i, r in enumerate(answer['predictions'], 1)]
    close(rows, whole[n : n + 2])


def test_a_full_queue_and_a_dead_device(table):
  gate = threading.Event()
  with serving(table, max_waiting=2) as (port, worker):

    def broken(rows):
      gate.wait(30)
      raise RuntimeError('the device is lost')

    worker.predictor = Broken(worker.predictor, broken)
    answers = []
    call = lambda: answers.append(ask(port, [GOOD]))
    threads = [threading.Thread(target=call) for _ in range(6)]
    for thread in threads:
      thread.start()
    while len(answers) < 4:
      time.sleep(0.01)
    assert {(a[0], a[2]['retry-after']) for a in answers} == {(429, '1')}
    gate.set()
    for thread in threads:
      thread.join(30)
    assert sorted(a[0] for a in answers) == [429] * 4 + [503] * 2
    assert get(port, '/health')[0] == 503
    assert str(worker.error) == 'the device is lost'


class Broken:
  """A predictor that calls another function."""

  def __init__(self, inner, call):
    self.spec, self.largest, self.call = inner.spec, inner.largest, call
    self.variables = inner.variables

  def __call__(self, rows):
    return self.call(rows)


@dataclasses.dataclass(frozen=True)
class Constant:
  """A task whose prediction is its weight."""

  def predict(self, variables, batch, noise):
    return {'prediction': jnp.broadcast_to(variables['params']['w'], len(batch['x']))}


def test_a_batch_fits_the_mesh():
  eight = Layout(make_mesh({'data': 8}, jax.devices()))
  spec = {'x': Spec((3,), np.dtype(np.float32)), 'weights': Spec((), np.dtype(np.float32))}
  weights = {'params': {'w': jax.device_put(jnp.float32(2), eight.sharding())}}
  predictor = Predictor(Constant(), eight, weights, spec, 16)
  assert predictor.sizes == (8, 16)
  rows = {'x': np.zeros((21, 3), np.float32), 'weights': np.ones(21, np.float32)}
  assert predictor(rows)['prediction'].tolist() == [2.0] * 21
  with pytest.raises(InputError, match=r'serve.batch=12: expected a multiple of 8'):
    Predictor(Constant(), eight, weights, spec, 12)


def test_a_time_out_frees_its_place(table):
  async def ask_twice(served):
    with pytest.raises(Exception, match=r'no answer within 0.05 seconds') as caught:
      await served.rows([GOOD], 0.05)
    assert caught.value.status == 504
    return served.worker.pending

  predictor = Broken(Predictor(table.x.task, ONE, eval_variables(table.state), table.read.spec, 2),
                     lambda rows: {})  # fmt: skip
  worker = Batcher(predictor, 0.0, 1)  # its thread does not run
  columns = [dataclasses.asdict(c) for c in table.read.columns]
  served = Predictions('tiny', worker, table.x.task, table.read, columns, 4)
  assert asyncio.run(ask_twice(served)) == 0
  assert asyncio.run(ask_twice(served)) == 0
