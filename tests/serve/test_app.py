"""The server: answers of the real client, limits, clients that leave, a dead device."""

import contextlib
import http.client
import json
import runpy
import socket
import threading
import time
import types

import jax
import numpy as np
import pytest

from bmx.data.text.tokenizer import Bytes, Subwords
from bmx.models.gpt import GPT
from bmx.parallel import Layout, make_mesh
from bmx.serve import observers
from bmx.serve.engine import Engine, Request
from bmx.serve.rows import Output
from bmx.serve.sample import Sampling
from bmx.serve.text import Detokenizer, Options
from tests.conftest import ROOT
from tests.models.weights import variables

openai = pytest.importorskip('openai', reason='the extra `serve` is not installed')
uvicorn = pytest.importorskip('uvicorn', reason='the extra `serve` is not installed')

from bmx.serve.app import Server  # noqa: E402
from bmx.serve.completion_routes import CompletionService  # noqa: E402
from bmx.serve.completions import Completions  # noqa: E402
from bmx.serve.decode import decoder  # noqa: E402
from bmx.serve.openai import read_request  # noqa: E402
from bmx.serve.worker import Worker  # noqa: E402

ONE = Layout(make_mesh({}, jax.devices()[:1]))
CONTEXT = 64
KEY = 'secret-key'


def make_engine():
  model = GPT(256, CONTEXT, width=32, depth=1, heads=2)
  params = variables(model, np.zeros((1, 4), np.int32), scale=0.5)['params']
  engine = Engine(*decoder(model, params, ONE), ONE, rows=4, ends=(0,), chunks=(16,))
  engine.compile()
  return engine


def render(messages):
  return ''.join(f'<{m["role"]}>{m["content"]}' for m in messages) + '<assistant>'


@contextlib.contextmanager
def serving(engine, **options):
  """Serves an engine on a port of its own -> (port, server, worker)."""
  deaths = []
  worker = Worker(engine, options.pop('max_waiting', 8), deaths.append)
  given = {'render': render, 'chat_stop': ('<user>',)} | options.pop('model', {})
  completions = Completions(['tiny'], worker, Bytes(), Options(temperature=0.8), **given)
  server = Server(CompletionService(completions), **options)
  config = uvicorn.Config(server.app(), port=0, log_level='error', lifespan='off')
  http_server = uvicorn.Server(config)
  thread = threading.Thread(target=http_server.run)
  worker.start()
  thread.start()
  while not http_server.started:
    time.sleep(0.01)
  port = http_server.servers[0].sockets[0].getsockname()[1]
  try:
    yield port, server, worker
  finally:
    worker.drain()
    assert worker.error or worker.join(30)
    http_server.should_exit = True
    thread.join(30)
    server.deaths = deaths


@pytest.fixture(scope='module')
def served():
  with serving(make_engine(), keys=('other', KEY)) as found:
    yield found


@pytest.fixture
def client(served):
  port, _, _ = served
  with openai.OpenAI(base_url=f'http://127.0.0.1:{port}/v1', api_key=KEY, max_retries=0) as made:
    yield made


def alone(served, prompt, tokens, **options):
  """The text of the engine's own tokens."""
  return Bytes().decode([i for i in tokens_alone(served, prompt, tokens, **options) if i])


def tokens_alone(served, prompt, tokens, seed=3, temperature=0.8):
  _, server, worker = served
  found, done = [], threading.Event()

  def sink(output):
    found.extend(output.tokens)
    if output.finish:
      done.set()

  ids = tuple(prompt.encode())
  worker.submit(Request(ids, tokens, Sampling(temperature), seed=seed), sink)
  assert done.wait(60)
  return found


def test_completions_and_streams_are_the_tokens_of_the_engine(served, client):
  expected = alone(served, 'def f', 20)
  words = {'model': 'tiny', 'prompt': 'def f', 'max_tokens': 20, 'seed': 3}
  whole = client.completions.create(**words, logprobs=1)
  assert whole.choices[0].text == expected
  assert whole.choices[0].finish_reason in ('length', 'stop')
  assert whole.usage.prompt_tokens == 5
  assert whole.usage.completion_tokens == len(whole.choices[0].logprobs.token_logprobs)
  parts = list(
    client.completions.create(**words, stream=True, stream_options={'include_usage': True})
  )
  assert ''.join(p.choices[0].text for p in parts if p.choices) == expected
  assert parts[-1].usage == whole.usage
  several = client.completions.create(**words | {'prompt': ['def f', 'class'], 'n': 2})
  assert [c.index for c in several.choices] == [0, 1, 2, 3]
  assert several.choices[0].text == expected
  assert several.choices[1].text != expected  # another draw


def test_chats_use_the_template_and_end_at_its_stop(served, client):
  words = {'model': 'tiny', 'messages': [{'role': 'user', 'content': 'Hi'}], 'seed': 3}
  whole = client.chat.completions.create(**words, max_completion_tokens=12)
  assert whole.choices[0].message.content == alone(served, '<user>Hi<assistant>', 12)
  parts = list(client.chat.completions.create(**words, max_tokens=12, stream=True))
  assert parts[0].choices[0].delta.role == 'assistant'
  text = ''.join(p.choices[0].delta.content or '' for p in parts)
  assert text == whole.choices[0].message.content
  assert [m.id for m in client.models.list().data] == ['tiny']


def test_a_stop_text_ends_an_answer_and_frees_its_row(served, client):
  whole = alone(served, 'abc', 40)
  stop = whole[5:7]
  words = {'model': 'tiny', 'prompt': 'abc', 'max_tokens': 40, 'seed': 3, 'stop': [stop]}
  answer = client.completions.create(**words).choices[0]
  assert answer.text == whole[: whole.index(stop)]
  assert answer.finish_reason == 'stop'
  ids = tokens_alone(served, 'abc', 40)

  def ends(n):
    text = Detokenizer(Bytes(), (stop,), list(b'abc'))
    text.add(ids[:n])
    return text.stopped

  used = client.completions.create(**words).usage.completion_tokens
  assert used == next(n for n in range(1, 41) if ends(n))  # none behind the stop


def post(port, body, path='/v1/completions', key=KEY, headers=()):
  data = body if isinstance(body, bytes) else json.dumps(body).encode()
  given = {'Authorization': f'Bearer {key}', 'Content-Type': 'application/json'} | dict(headers)
  with contextlib.closing(http.client.HTTPConnection('127.0.0.1', port, timeout=60)) as connection:
    connection.request('POST', path, data, given)
    with connection.getresponse() as response:
      return response.status, json.loads(response.read()), dict(response.getheaders())


def get(port, path):
  with contextlib.closing(http.client.HTTPConnection('127.0.0.1', port, timeout=60)) as connection:
    connection.request('GET', path)
    with connection.getresponse() as response:
      return response.status, response.read().decode()


BAD = [
  ({}, 400, 'prompt=None'),
  ([], 400, 'expected a JSON object'),
  ({'prompt': 'a', 'modle': 'tiny'}, 400, 'modle='),
  ({'prompt': 'a', 'model': 'gpt-4'}, 404, "the model 'gpt-4' does not exist"),
  ({'prompt': 'a', 'temperature': -1}, 400, 'temperature=-1'),
  ({'prompt': 'a', 'temperature': 'hot'}, 400, "temperature='hot'"),
  ({'prompt': 'a', 'top_p': 0}, 400, 'top_p=0'),
  ({'prompt': 'a', 'top_k': 1.5}, 400, 'top_k=1.5'),
  ({'prompt': 'a', 'temperature': 10**400}, 400, 'temperature=1000'),  # no float holds it
  ({'prompt': 'a', 'temperature': 1e-300}, 400, 'temperature=1e-300'),
  ({'prompt': 'a', 'top_k': 2**31}, 400, 'top_k=2147483648'),
  ({'prompt': 'a', '\ud800': 3}, 400, 'unsupported_parameter'),
  ({'prompt': 'a', 'model': {'a': [[[[[[[[1]]]]]]]]}}, 400, 'model='),
  ({'prompt': 'a', 'max_tokens': 0}, 400, 'max_tokens=0'),
  ({'prompt': 'a', 'n': 1000}, 400, 'n=1000'),
  ({'prompt': 'a', 'n': True}, 400, 'n=True'),
  ({'prompt': 'a', 'stop': ['']}, 400, 'stop='),
  ({'prompt': ['a'] * 100, 'n': 16}, 400, '1600 choices of all prompts: expected at most'),
  ({'prompt': 'a', 'logprobs': 'no'}, 400, 'logprobs='),
  ({'prompt': 'a', 'logprobs': -5}, 400, 'logprobs=-5'),
  ({'prompt': 'a', 'logit_bias': {'1': 2}}, 400, 'logit_bias='),
  ({'prompt': 'a', 'presence_penalty': 1}, 400, 'presence_penalty=1'),
  ({'prompt': 'a', 'stream': 'yes'}, 400, "stream='yes'"),
  ({'prompt': 'a', 'logprobs': 5}, 400, 'logprobs=5'),
  ({'prompt': 'a', 'seed': 1.5}, 400, 'seed=1.5'),
  ({'prompt': ''}, 400, 'at least one token'),
  ({'prompt': 'x' * CONTEXT}, 400, 'max_seq_len=64'),
  ({'prompt': [300]}, 400, 'vocab_size=256'),
  ({'prompt': [[1], 'a', 3]}, 400, 'prompt='),
  (b'{"prompt": ', 400, 'not JSON'),
  (b'[' * 100_000, 400, 'not JSON'),
]


@pytest.mark.parametrize('body, status, text', BAD)
def test_bad_requests_name_the_key(served, body, status, text):
  found, answer, _ = post(served[0], body)
  assert found == status
  assert set(answer['error']) == {'message', 'type', 'param', 'code'}
  assert text in f'{answer["error"]["message"]} {answer["error"]["code"]}'


def test_bad_chats_name_the_message(served):
  for messages, text in (
    (None, 'messages=None'),
    ([], 'messages=[]'),
    ([{'role': 'user'}], 'messages[0]'),
    ([{'role': 'user', 'content': [{'type': 'image_url'}]}], 'messages[0].content'),
  ):
    status, answer, _ = post(served[0], {'messages': messages}, '/v1/chat/completions')
    assert status == 400
    assert text in answer['error']['message']


def test_keys_bodies_and_routes(served):
  port = served[0]
  assert post(port, {'prompt': 'a'}, key='wrong')[0] == 401
  assert post(port, {'prompt': 'a' * 2**21})[0] == 413
  assert post(port, {}, '/v1/nothing')[0] == 404
  for path, text in (('/health', 'ok'), ('/ready', 'ready'), ('/metrics', 'bmx_requests'),
                     ('/', 'Completion')):  # fmt: skip
    status, body = get(port, path)
    assert status == 200
    assert text in body


def assert_unharmed(port, path, good, count):
  """Sends hostile requests: none gets a traceback or 5xx, or no answer in time."""
  script = runpy.run_path(str(ROOT / 'experiments/serve/hostile.py'))
  script['send'].__globals__['QUIET_SECONDS'] = 0.1
  for kind, raw in script['requests'](1, count, path, good):
    assert not script['verdict'](script['send'](port, raw)), (kind, raw[:300])


def test_hostile_requests_do_no_harm():
  with serving(make_engine()) as (port, server, worker):
    good = {'prompt': 'a', 'max_tokens': 1, 'model': 'tiny', 'stop': ['x']}
    assert_unharmed(port, '/v1/completions', good, 60)
    chat = {'messages': [{'role': 'user', 'content': [{'type': 'text', 'text': 'a'}]}]}
    assert_unharmed(port, '/v1/chat/completions', chat | {'max_tokens': 1}, 40)
    assert post(port, {'prompt': 'abc', 'seed': 3, 'max_tokens': 5})[1]['choices'][0][
      'text'
    ] == alone((port, server, worker), 'abc', 5)


def test_clients_that_leave_free_their_rows(served):
  port, _, worker = served
  body = json.dumps({'prompt': 'ab', 'max_tokens': 60, 'stream': True}).encode()
  head = (
    f'POST /v1/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n'
    f'Content-Length: {len(body)}\r\n\r\n'
  ).encode()
  slow = worker.engine.step
  worker.engine.step = lambda: (time.sleep(0.02), slow())[1]
  try:
    for _ in range(6):
      with socket.create_connection(('127.0.0.1', port)) as connection:
        connection.sendall(head + body)
        connection.recv(200)
    deadline = time.monotonic() + 20
    while worker.pending and time.monotonic() < deadline:
      time.sleep(0.02)
    assert worker.pending == 0
  finally:
    worker.engine.step = slow


def test_a_full_queue_asks_to_come_again_and_a_dead_device_fails_all_at_once():
  engine = make_engine()
  step, gate = engine.step, threading.Event()

  def held():
    gate.wait(60)
    if engine.busy or engine.waiting:
      raise RuntimeError('the device is lost')
    return step()

  with serving(engine, max_waiting=2) as (port, server, worker):
    engine.step = held
    answers = []
    ask = lambda: answers.append(post(port, {'prompt': 'a', 'max_tokens': 60}))
    threads = [threading.Thread(target=ask) for _ in range(9)]
    for thread in threads:
      thread.start()
    while len(answers) < 2:
      time.sleep(0.01)
    assert {a[0] for a in answers} == {429}
    assert {a[2]['retry-after'] for a in answers} == {'1'}
    gate.set()
    for thread in threads:
      thread.join(60)
    rest = [a for a in answers if a[0] != 429]
    assert len(rest) >= 6
    assert {a[0] for a in rest} == {503}
    assert post(port, {'prompt': 'a'})[0] == 503
    assert get(port, '/health')[0] == 503
  assert [str(e) for e in server.deaths] == ['the device is lost']


class Watching:
  """An observer that fails for some answers."""

  def __init__(self):
    self.seen = []

  def answered(self, route, request_id, asked, answer):
    self.seen.append((route, request_id, asked, answer))
    if 'explode' in asked.get('prompt', ''):
      raise RuntimeError('of the observer')


def test_observers_see_whole_answers_and_never_fail_one():
  watching = Watching()
  with serving(make_engine(), observers=[watching]) as (port, server, _):
    words = {'max_tokens': 12, 'seed': 3}
    _, whole, _ = post(port, words | {'prompt': 'explode'})
    with openai.OpenAI(base_url=f'http://127.0.0.1:{port}/v1', api_key='-', max_retries=0) as made:
      ask = {'model': 'tiny', 'prompt': 'def f', **words}
      parts = list(made.completions.create(**ask, stream=True))
      several = made.completions.create(**ask, n=2)
    assert post(port, {'prompt': 'a', 'n': 0})[0] == 400  # errors are not observed
    assert server.observers.close(10)
  assert [s[0] for s in watching.seen] == ['/v1/completions'] * 3
  assert [s[1] for s in watching.seen] == [whole['id'], parts[0].id, several.id]
  assert watching.seen[0][3] == whole
  asked, answer = watching.seen[1][2:]
  assert asked['stream'] is True
  assert answer['choices'][0]['text'] == ''.join(p.choices[0].text for p in parts)
  assert answer['choices'][0]['text'] == several.choices[0].text
  assert answer['usage']['completion_tokens'] > 0


def test_a_slow_observer_loses_answers_and_delays_none(monkeypatch):
  monkeypatch.setattr(observers, 'MAX_WAITING', 2)
  gate, began = threading.Event(), time.monotonic()

  class Slow:
    def answered(self, *_):
      gate.wait(30)

  made = observers.Observers([Slow()])
  for n in range(10):
    made.answered('/v1/predict', str(n), {}, {})
  assert time.monotonic() - began < 1
  assert made.lost >= 7
  gate.set()
  assert made.close(10)


def test_answers_that_wait_have_a_limit_of_bytes(monkeypatch, caplog):
  """One answer of any size is observed; room is free again afterwards."""
  monkeypatch.setattr(observers, 'MAX_BYTES', 100)
  gate, seen = threading.Event(), []

  class Slow:
    def answered(self, route, name, *_):
      gate.wait(30)
      seen.append(name)

  made = observers.Observers([Slow()])
  for name, size in (('large', 500), ('small', 1)):
    made.answered('/v1/predict', name, {}, {}, size)
  assert not made.corrected('/v1/feedback', 'large', {}, 1)
  assert made.knows('large') and not made.knows('small')
  assert made.lost == 2 and caplog.text.count('1 answers of 500 bytes wait') == 1
  gate.set()
  while made._waiting:
    time.sleep(0.01)
  made.answered('/v1/predict', 'later', {}, {}, 60)
  assert made.close(10) and seen == ['large', 'later']


def test_streams_and_failures_are_counted_with_all_of_their_seconds():
  engine = make_engine()
  slow = engine.step
  with serving(engine) as (port, server, _):
    engine.step = lambda: (time.sleep(0.05), slow())[1]
    with openai.OpenAI(base_url=f'http://127.0.0.1:{port}/v1', api_key='-', max_retries=0) as made:
      words = {'model': 'tiny', 'prompt': 'def f', 'max_tokens': 40, 'temperature': 0}
      began = time.perf_counter()
      parts = made.completions.create(**words, stream=True)
      next(iter(parts))
      first = time.perf_counter() - began
      list(parts)
      whole = time.perf_counter() - began

    async def fails(call):
      raise RuntimeError('of a handler')

    assert post(port, {'prompt': 'a', 'n': 0})[0] == 400
    server.service.routes['/v1/completions'] = fails
    assert post(port, {'prompt': 'a'})[0] == 500
    lines = dict(line.rsplit(' ', 1) for line in get(port, '/metrics')[1].splitlines()
                 if line.startswith(('bmx_request_seconds', 'bmx_requests_total')))  # fmt: skip
  route = 'route="/v1/completions"'
  assert lines[f'bmx_request_seconds_count{{{route}}}'] == '3.0'
  assert first < float(lines[f'bmx_request_seconds_sum{{{route}}}']) < whole + 1
  for status in (200, 400, 500):
    assert lines[f'bmx_requests_total{{{route},status="{status}"}}'] == '1.0'


def test_a_stop_that_is_a_special_token_ends_an_answer():
  """No text shows it: its id does. What stands behind it is not in the answer."""
  import tokenizers

  inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({'a': 0, 'b': 1, '?': 2}, '?'))
  inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  inner.add_special_tokens(['<|stop|>'])
  coder, engine = Subwords(inner.to_str()), types.SimpleNamespace(ends=())
  engine.model, engine.context = GPT(4, 8, width=8, depth=1, heads=2), 8
  engine.check = lambda request: None
  made = Completions(['m'], types.SimpleNamespace(engine=engine, most=4), coder, Options())
  asked = read_request({'prompt': 'a', 'stop': '<|stop|>'}, chat=False, served=['m'],
                       defaults=Options())  # fmt: skip
  (job,) = made.jobs(asked)
  text = Detokenizer(coder, job.stop, job.request.prompt)
  piece = made._piece(0, Output(1, [0, 3, 1], [-1.0, -2.0, -3.0], ''), job, text)
  assert (piece.text.strip(), piece.tokens, piece.logprobs) == ('a', [0, 3], [-1.0, -2.0])
  assert piece.finish == 'stop'
