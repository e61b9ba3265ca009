"""Mode `serve`: a process answers over HTTP until SIGTERM; the service of a run that predicts."""

import asyncio
import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import types
from typing import Any

import jax
import numpy as np
import pytest

import bmx
from bmx import modes
from bmx.core.errors import InputError
from bmx.modes import serve, services
from bmx.modes.start import Run, open_run
from bmx.modes.temperature import check_served, keep_temperature
from tests.conftest import CACHE, FLAGS, ROOT

pytest.importorskip('uvicorn', reason='the extra `serve` is not installed')

from bmx.serve.app import Server
from bmx.serve.service import api_errors, threadsafe
from bmx.serve.worker import DeviceThread


def ask(port, path, body=None):
  with contextlib.closing(http.client.HTTPConnection('127.0.0.1', port, timeout=60)) as connection:
    connection.request('POST' if body else 'GET', path, body and json.dumps(body))
    with connection.getresponse() as response:
      return response.status, response.read().decode()


def test_a_run_is_served_until_sigterm(bmx, tmp_path):
  run = tmp_path / 'run'
  words = '--config.steps=4', '--config.data.path=LICENSE', f'--workdir={run}'
  assert bmx('--config=configs/gpt_char.py:tiny', *words).returncode == 0
  flags = FLAGS.replace('count=8', 'count=1')
  environment = {**os.environ, 'XDG_CACHE_HOME': str(CACHE), 'XLA_FLAGS': flags}
  serve = [sys.executable, '-m', 'bmx', 'serve', str(run), '--rows=2']
  with subprocess.Popen([*serve, '--port=0'], cwd=ROOT, env=environment, text=True,
                        stderr=subprocess.PIPE) as server:  # fmt: skip
    assert server.stderr is not None
    lines = []
    for line in server.stderr:
      lines.append(line)
      if found := re.search(r'serving .* at http://127\.0\.0\.1:(\d+)', line):
        break
    else:
      raise AssertionError(''.join(lines))
    port = int(found[1])
    status, text = ask(port, '/v1/completions', {'prompt': 'def', 'max_tokens': 4})
    assert status == 200
    assert json.loads(text)['usage']['completion_tokens'] == 4
    status, text = ask(port, '/v1/chat/completions', {'messages': [{'role': 'a', 'content': 'b'}]})
    assert status == 400
    assert 'no chat template' in text
    again = subprocess.run([*serve, f'--port={port}'], cwd=ROOT, env=environment, text=True,
                           capture_output=True, check=False)  # fmt: skip
    assert again.returncode == 2
    assert 'choose another with --port=N' in again.stderr
    server.send_signal(signal.SIGTERM)
    rest = server.stderr.read()
    assert server.wait(60) == 0
  assert 'all answers are sent' in rest
  assert 'Traceback' not in rest


def test_a_port_has_one_server():
  """Neither two sockets that listen nor a socket of another kind of address share a port.

  Before that nobody waits for a model that is being loaded, and of two servers the later one ends.
  """
  with contextlib.closing(serve._bind('127.0.0.1', 0)) as first:
    port = first.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
      socket.create_connection(('127.0.0.1', port))
    with contextlib.closing(serve._bind('127.0.0.1', port)) as second:
      assert serve._listen(first) == ('127.0.0.1', port)
      with pytest.raises(InputError, match=f'serve.port={port}.*choose another with --port=N'):
        serve._listen(second)
    for host in ('127.0.0.1', '0.0.0.0'):
      with pytest.raises(InputError, match=f'serve.port={port}.*choose another with --port=N'):
        serve._bind(host, port)
    with socket.create_connection(('127.0.0.1', port)) as client:
      accepted, _ = first.accept()
      accepted.close()  # first, so that its port waits for late packets
      client.recv(1)
  serve._bind('127.0.0.1', port).close()  # taken again at once


class Failing(DeviceThread):
  """A device thread that ends at its second request, while the first one waits."""

  def turns(self):
    self.inbox.get()
    self.inbox.get()
    raise RuntimeError('the device is lost')


class FailingService:
  """A service whose requests wait for their device thread."""

  names, ability, page, facts = ('tiny',), 'fails', 'page.html', {}

  def __init__(self):
    self.worker = Failing(8)
    self.routes = {'/v1/predict': self.predict}

  def count(self, registry):
    """Has no metrics."""

  async def predict(self, call):
    inbox = asyncio.Queue()
    with api_errors(call.timeout):
      self.worker.submit(None, threadsafe(inbox.put_nowait))
      raise await inbox.get()


def test_a_lost_device_fails_all_requests_and_ends_the_process_with_1():
  statuses, service = [], FailingService()
  with contextlib.closing(serve._bind('127.0.0.1', 0)) as listening:
    _, port = serve._listen(listening)
    call = lambda: statuses.append(ask(port, '/v1/predict', {'instances': [1]})[0])
    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
      thread.start()
    code = serve._serve(serve._libraries(), Server(service), listening)
    for thread in threads:
      thread.join(30)
  assert statuses == [503, 503]
  assert code == 1
  assert str(service.worker.error) == 'the device is lost'


@pytest.fixture
def trained(tmp_path):
  """A run of a few steps, and its config."""
  config, name = bmx.load('table:tiny', ['steps=2', 'serve.batch=4', 'every.log=2'])
  bmx.train(bmx.build(config, name, jax.devices()[:1]), tmp_path / 'run')
  return tmp_path / 'run', config


def test_a_run_that_predicts_becomes_a_service(trained):
  run, config = trained
  request = modes.Request(config, 'table', str(run))
  x, workdir, stored = open_run(request, read=False, evals=False, devices=jax.devices()[:1])
  service, line = services.predictions(Run(x, workdir, workdir, stored, 'latest'))
  assert line == 'predictions of step 2, batches of 1, 2, 4'
  assert [c['name'] for c in service.facts['columns']] == ['x']
  given = np.random.default_rng(0).normal(size=(7, 30)).astype(np.float32)
  expected = list(bmx.predict(x, run, {'x': given}))
  service.worker.start()
  try:
    instances = [{'x': row.tolist()} for row in given]
    rows = asyncio.run(service.predictions.rows(instances, 30))
  finally:
    service.worker.drain()
    assert service.worker.join(30)
  assert [r['prediction'] for r in rows] == [r['prediction'] for r in expected]
  for row, other in zip(rows, expected, strict=True):
    assert row['probability'] == pytest.approx(other['probability'], abs=1e-6)
  with pytest.raises(InputError, match='expected the directory of a run that has trained'):
    services.predictions(Run(x, workdir, workdir, None, 'latest'))
  x.config['predict']['temperature'] = True
  with pytest.raises(InputError, match='expected a temperature of step 2 in .*, which has none;'):
    services.predictions(Run(x, workdir, workdir, stored, 'latest'))
  keep_temperature(workdir, 2, {'value': 3.0, 'fitted_on': 'valid'})
  service, _ = services.predictions(Run(x, workdir, workdir, stored, 'latest'))
  service.worker.start()
  try:
    scaled = asyncio.run(service.predictions.rows(instances, 30))
  finally:
    service.worker.drain()
    assert service.worker.join(30)
  for row, other in zip(scaled, rows, strict=True):
    a, b = (np.array(list(r['probability'].values())) for r in (row, other))
    np.testing.assert_allclose(a, b ** (1 / 3) / (b ** (1 / 3)).sum(), rtol=1e-4)
  alone = next(iter(bmx.predict(x, run, {'x': given})))
  assert alone['probability'] == pytest.approx(scaled[0]['probability'], rel=1e-4)
  x.config['predict']['tta'] = ('flip',)  # views are served, too: a table has none
  with pytest.raises(InputError, match=r"predict.tta=\('flip',\): expected images"):
    services.predictions(Run(x, workdir, workdir, stored, 'latest'))
  x.config['predict']['tta'] = ()
  for generates, pointer, message in (
    (True, '', 'expected a run that predicts classes'),
    (False, 'good.json', r'expected no --pointer \(good.json\)'),
  ):
    with pytest.raises(InputError, match=message):
      check_served(True, generates, pointer)
  x.config['serve']['batch'] = 0
  with pytest.raises(InputError, match='serve.batch=0'):
    services.predictions(Run(x, workdir, workdir, stored, 'latest'))


def test_adapters_of_another_tokenizer_are_named(tmp_path):
  """Their ids stand for other texts; padding and truncation change none."""
  for name, vocab, more in (
    ('base', {'a': 0}, {}), ('same', {'a': 0}, {'truncation': {}}), ('other', {'a': 0, 'b': 1}, {}),
  ):  # fmt: skip
    (tmp_path / name).mkdir()
    text = json.dumps({'model': {'type': 'BPE', 'vocab': vocab}} | more)
    (tmp_path / name / 'tokenizer.json').write_text(text)
  named: Any = types.SimpleNamespace(name='base')
  run = Run(named, tmp_path / 'base', tmp_path / 'base', None, 'latest')
  with pytest.raises(InputError, match=r'poems=.*other.*BPE of 2 tokens there, BPE of 1'):
    services._adapters(run, f'poems={tmp_path}/other', {})
  with pytest.raises(InputError, match='has no checkpoint yet'):
    services._adapters(run, f'poems={tmp_path}/same', {})


@pytest.mark.nightly
@pytest.mark.parametrize('script', [
  ('load.py', 'check', 'faults', 'vanish'),  # SIGKILL amid traffic, a directory that is gone
  ('promotion.py', 'check', '2'),  # SIGKILL of server and promoter amid promotions
], ids=lambda script: script[0])  # fmt: skip
def test_faults_of_processes(script):
  name, *words = script
  script = [sys.executable, f'experiments/serve/{name}', *words]
  environment = {**os.environ, 'XDG_CACHE_HOME': str(CACHE), 'XLA_FLAGS': ''}
  done = subprocess.run(script, cwd=ROOT, env=environment, text=True, capture_output=True,
                        check=False)  # fmt: skip
  assert done.returncode == 0, done.stderr
