"""Device threads: exchanged weights, the window of a batch, requests beside a drain."""

import queue
import threading
import time
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bmx.core import tree
from bmx.core.data import Spec
from bmx.core.errors import InputError
from bmx.parallel import Layout, make_mesh
from bmx.serve.decode import decoder
from bmx.serve.engine import Engine, Request
from bmx.serve.predictor import Batcher, Predictor
from bmx.serve.worker import DeviceThread, Unavailable, Worker
from tests.serve.test_generate import GREEDY, ONE, gpt, placed, weights

ROWS = {'x': np.zeros((1, 3), np.float32), 'weights': np.ones(1, np.float32)}
SPEC = {k: Spec(v.shape[1:], v.dtype) for k, v in ROWS.items()}


class Constant:
  """A task whose prediction is the sum of its two weights."""

  def predict(self, variables, batch, noise):
    params = variables['params']
    return {'prediction': jnp.broadcast_to(params['a'] + params['b'], len(batch['x']))}


def batcher(window=0.0, value=1):
  variables = jax.tree.map(lambda x: jax.device_put(x, ONE.sharding()), pair(value))
  return Batcher(Predictor(Constant(), ONE, variables, SPEC, 4), window, 8)


def pair(value):
  return {'params': {'a': np.float32(value), 'b': np.float32(0)}}


def predicted(worker):
  found = queue.SimpleQueue()
  worker.submit(ROWS, found.put)
  return found.get(timeout=30)['prediction'].tolist()


def test_the_device_thread_places_weights_and_never_holds_two_models(monkeypatch):
  """Each old array is gone before the next new one is placed; nothing else touches the devices."""
  worker = batcher()
  old = [weakref.ref(x) for x in jax.tree.leaves(worker.predictor.variables)]
  seen, place = [], jax.device_put

  def noted(x, where):
    if isinstance(x, np.generic):  # a weight
      seen.append((threading.current_thread().name, sum(ref() is not None for ref in old)))
    return place(x, where)

  worker.start()
  assert predicted(worker) == [1.0]
  monkeypatch.setattr(jax, 'device_put', noted)
  worker.swap(pair(2)).result(30)
  assert predicted(worker) == [2.0]
  assert seen == [('device', 1), ('device', 0)]
  worker.drain()
  assert worker.join(30)


def test_an_engine_on_a_mesh_takes_weights_of_the_host_between_requests():
  """The future ends after the requests under way; these have the weights that they began with."""
  model, layout = gpt(vocab_pad=1), Layout(make_mesh({'model': 2}, jax.devices()[:2]))
  engine = Engine(*decoder(model, placed(model, layout), layout), layout, rows=4, chunks=(8,))
  new = jax.tree.map(lambda x: np.asarray(x) * -1.0, engine.variables)
  one = Engine(*decoder(model, weights(model), ONE), ONE, rows=4, chunks=(8,))
  requests = [Request((3, 1, n), 20, GREEDY) for n in range(3)]
  before = one.run(requests)
  one.forget()
  one.variables = jax.tree.map(lambda x: x * -1.0, one.variables)
  after = one.run(requests)
  assert before != after
  worker, gate, found = Worker(engine, 8), threading.Event(), [[] for _ in range(6)]
  ends, plain = threading.Semaphore(0), engine.step
  engine.step = lambda: (gate.wait(30), plain())[1]

  def ask(number):
    def sink(output):
      found[number] += output.tokens
      if output.finish:
        ends.release()

    worker.submit(requests[number % 3], sink)

  worker.start()
  for number in range(3):
    ask(number)
  while engine.idle:
    time.sleep(0.01)
  done = worker.swap(new)
  for number in range(3, 6):
    ask(number)
  assert not done.done()
  gate.set()
  done.result(60)
  assert all(ends.acquire(timeout=60) for _ in range(6))
  assert found == before + after
  worker.drain()
  assert worker.join(30)


def test_no_request_mixes_two_sets_of_weights():
  """A request of several batches, while another thread exchanges the weights without a pause."""
  worker, ended, values = batcher(), threading.Event(), iter(range(2, 10**6))
  rows, found = {k: np.repeat(v, 13, 0) for k, v in ROWS.items()}, queue.SimpleQueue()

  def swap():
    while not ended.is_set():
      worker.swap(pair(next(values))).result(30)

  worker.start()
  thread = threading.Thread(target=swap)
  thread.start()
  seen = set()
  for _ in range(60):
    worker.submit(rows, found.put)
    answer = set(found.get(timeout=30)['prediction'].tolist())
    assert len(answer) == 1
    seen |= answer
  ended.set()
  thread.join(30)
  assert len(seen) > 5
  worker.drain()
  assert worker.join(30)


def test_other_weights_and_those_of_an_ended_thread_are_refused():
  worker = batcher()
  for wrong in ({'params': {'a': np.float32(1)}}, {}, pair(np.ones(3))):
    with pytest.raises(InputError, match='weights of another model'):
      worker.swap(wrong)
  waiting = worker.swap(pair(2))
  worker.predictor.swap = lambda variables: 1 / 0
  worker.start()
  with pytest.raises(Unavailable, match='the device thread has ended'):
    waiting.result(30)
  assert worker.join(30) and isinstance(worker.error, ZeroDivisionError)
  with pytest.raises(Unavailable):
    worker.swap(pair(3))


def test_weights_given_twice_are_exchanged_once():
  """The later ones win, and whoever waits for the earlier ones learns it."""
  engine = Engine(*decoder(gpt(), weights(gpt()), ONE), ONE, rows=2, chunks=(8,))
  worker, new = Worker(engine, 8), jax.tree.map(np.asarray, engine.variables)
  first, second = worker.swap(new), worker.swap(new)
  worker.drain()
  worker.start()
  assert worker.join(60)
  assert first.cancelled() and second.result(1) is None
  assert tree.digest(engine.variables) == tree.digest(new)


def test_only_a_request_opens_the_window():
  """The cancellation that every answered request leaves behind does not."""
  worker, found = batcher(window=0.4), []
  worker.cancel(99)
  thread = threading.Thread(target=lambda: found.append(worker._collect()))
  thread.start()
  time.sleep(0.5)
  first = worker.submit(ROWS, print)
  time.sleep(0.1)
  second = worker.submit(ROWS, print)
  thread.join(30)
  assert [*found[0]] == [first, second]


class Watched(queue.SimpleQueue):
  """Notes whether its owner's lock is held at each `put`."""

  def __init__(self, lock):
    self.lock, self.held = lock, []

  def put(self, item, *_):
    self.held.append(self.lock.locked())
    super().put(item)


def test_nothing_is_queued_behind_the_end():
  """A request that was accepted is in the queue before a drain is: the thread reads it."""
  worker = DeviceThread(8)
  worker.inbox = Watched(worker.lock)
  ticket = worker.submit(None, print)
  worker.cancel(ticket)
  worker.swap({})
  worker.drain()
  assert worker.inbox.held == [True] * 4
