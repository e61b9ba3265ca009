"""Mode `serve` as a process: a run answers over HTTP, SIGTERM ends it with 0."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys

import pytest

from tests.conftest import CACHE, ROOT

pytest.importorskip('uvicorn', reason='the extra `serve` is not installed')


def ask(port, path, body=None):
  with contextlib.closing(http.client.HTTPConnection('127.0.0.1', port, timeout=60)) as connection:
    connection.request('POST' if body else 'GET', path, body and json.dumps(body))
    with connection.getresponse() as response:
      return response.status, response.read().decode()


def test_a_run_is_served_until_sigterm(bmx, tmp_path):
  run = tmp_path / 'run'
  words = '--config.steps=4', '--config.every.log=4', f'--workdir={run}'
  assert bmx('--config=configs/gpt_char.py:tiny', *words).returncode == 0
  environment = {**os.environ, 'XDG_CACHE_HOME': str(CACHE), 'XLA_FLAGS': ''}
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
