"""A server with capture, corrections and swapped weights, over HTTP."""

import dataclasses
import json
import threading
import time

import jax
import numpy as np
import pytest

from bmx.core.errors import InputError
from bmx.feedback import pointer, traffic
from bmx.feedback.capture import Capture
from bmx.feedback.pointer import Target
from bmx.modes.promoted import Watch

pytest.importorskip('uvicorn', reason='the extra `serve` is not installed')

from bmx.serve.apierror import ApiError
from bmx.serve.corrections import read_correction
from tests.serve.test_app import get, make_engine, post, serving

FEEDBACK = '/v1/feedback'


@pytest.mark.parametrize('body, message', [
  ([], 'expected a JSON object'),
  ({'label': 'yes'}, 'id=None'),
  ({'id': 'x' * 201, 'label': 'y'}, 'id='),
  ({'id': 'a'}, 'expected one of label, answer and rating'),
  ({'id': 'a', 'label': ['yes']}, 'label='),
  ({'id': 'a', 'label': float('nan')}, 'label='),
  ({'id': 'a', 'answer': 3}, 'answer=3'),
  ({'id': 'a', 'rating': True}, 'rating=True'),
  ({'id': 'a', 'rating': float('nan')}, 'rating=nan'),
  ({'id': 'a', 'label': 10**400}, 'label=1000'),  # no float holds it
  ({'id': 'a', 'label': 'y', 'index': -1}, 'index=-1'),
  ({'id': 'a', 'label': 'y', 'key': 'secret'}, 'key='),
])  # fmt: skip
def test_bad_corrections_are_named(body, message):
  with pytest.raises(ApiError, match=message):
    read_correction(body)


def other_weights(engine):
  """Weights of the same shapes that answer otherwise."""
  random = np.random.default_rng(7)
  return jax.tree.map(lambda x: np.asarray(x) + random.normal(size=x.shape).astype(x.dtype),
                      engine.variables)  # fmt: skip


def ask(port, prompt, n=12, **more):
  words = {'prompt': prompt, 'max_tokens': n, 'temperature': 0, **more}
  status, answer, _ = post(port, words, key='secret')
  assert status == 200, answer
  return answer


def test_capture_corrections_and_swap(tmp_path):
  """One server: answers and corrections are captured without keys, weights are exchanged."""
  captured = Capture(str(tmp_path))
  engine = make_engine()
  with serving(engine, keys=('secret',), observers=[captured], captured=captured.chosen) as found:
    port, server, worker = found
    captured.count(server.metrics.registry)
    first = ask(port, 'hello there')
    better = {'id': first['id'], 'answer': 'better'}
    status, said, _ = post(port, better, FEEDBACK, 'secret')
    assert status == 202 and said['captured'] is True and said['known'] is True
    other = {'id': 'cmpl-unknown', 'rating': 1}  # of another server, perhaps: kept, and said
    status, said, _ = post(port, other, FEEDBACK, 'secret')
    assert (status, said['captured'], said['known']) == (202, False, False)
    assert post(port, better, FEEDBACK, 'wrong')[0] == 401
    assert post(port, {'id': first['id']}, FEEDBACK, 'secret')[0] == 400

    answers: dict[int, dict] = {}
    more = lambda i: answers.update({i: ask(port, 'hello there', 40)})
    threads = [threading.Thread(target=more, args=(i,)) for i in range(6)]
    before = ask(port, 'hello there', 40)
    for thread in threads[:4]:
      thread.start()
    new = other_weights(engine)
    done = worker.swap(new)
    for thread in threads[4:]:
      thread.start()
    for thread in threads:
      thread.join(60)
    done.result(60)
    after = ask(port, 'hello there', 40)
    text_of = lambda answer: answer['choices'][0]['text']
    assert len(answers) == 6 and text_of(after) != text_of(before)
    # Every answer is whole of one model: none has begun with the old weights and ended with others.
    assert {text_of(a) for a in answers.values()} <= {text_of(before), text_of(after)}
    with pytest.raises(InputError, match='weights of another model'):
      worker.swap({'params': {'x': np.zeros(3)}})
    assert server.observers.close(10)
    counts = get(port, '/metrics')[1]
    assert 'bmx_captured_events 11.0' in counts and 'bmx_lost_events 0.0' in counts
  captured.close()
  files = b''.join(f.read_bytes() for f in traffic.event_files(tmp_path)).decode()
  assert 'secret' not in files and 'Bearer' not in files
  events = [json.loads(line) for line in files.splitlines()]
  assert [e['kind'] for e in events[:2]] == ['answer', 'feedback'] and len(events) == 11


def test_swapped_answers_are_those_of_a_new_server():
  """The cache of the old weights is forgotten: a prompt that it held is read again."""
  engine, other = make_engine(), make_engine()
  new = other_weights(engine)
  with serving(engine) as (port, _, worker):
    ask(port, 'the same beginning')
    worker.swap(new)
    swapped = ask(port, 'the same beginning', 30)['choices'][0]['text']
  other.variables = jax.tree.map(
    lambda was, x: jax.device_put(x, was.sharding), other.variables, new
  )
  with serving(other) as (port, _, _):
    assert ask(port, 'the same beginning', 30)['choices'][0]['text'] == swapped


def test_without_capture_corrections_are_refused():
  with serving(make_engine()) as (port, _, _):
    status, said, _ = post(port, {'id': 'a', 'label': 'b'}, FEEDBACK)
    assert status == 404 and '--capture.folder=DIR' in said['error']['message']


def test_the_watch_loads_once_and_keeps_what_fits(tmp_path, caplog):
  """A target that does not fit is named once, and the served one stays."""
  name, loaded = str(tmp_path / 'served.json'), []
  one, two, bad = (Target(n, 1, n * 64) for n in 'abc')

  tries, passing = [], []

  def load(target):
    assert f'promoted   {target.run},' not in caplog.text[-200:]  # only once it is served
    tries.append(target.run)
    if target.run == bad.run:
      raise InputError('its data.json has another spec')
    if passing:
      raise passing.pop()
    loaded.append(target)

  pointer.promote(name, one)
  watch = Watch(name, one, load, seconds=0.01)
  watch.look()
  pointer.promote(name, bad)
  for _ in range(3):
    watch.look()
  assert not loaded and caplog.text.count('another spec; a stays') == 1
  pointer.promote(name, dataclasses.replace(bad, promoted='again'))
  watch.look()
  assert tries == ['c', 'c']  # promoted again, it is tried again
  pointer.promote(name, two)
  passing.append(OSError('disk is busy'))
  watch.look()
  assert not loaded and 'disk is busy' in caplog.text
  watch.look()  # the next look tries again
  assert loaded == [two] and watch.target == two
  pointer.promote(name, one)
  watch.look()
  assert loaded == [two, one]
  (tmp_path / 'served.json').write_text('{')
  for _ in range(3):
    watch.look()
  assert caplog.text.count('expected a pointer') == 1
  (tmp_path / 'served.json').unlink()
  pointer.promote(name, two)
  watch.start()
  deadline = time.monotonic() + 10
  while len(loaded) < 3 and time.monotonic() < deadline:
    time.sleep(0.01)
  watch.stop()
  assert loaded == [two, one, two] and watch.target == two
