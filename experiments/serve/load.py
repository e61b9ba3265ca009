"""A real server on loopback under load, hostile requests and faults; its answers are compared.

    python experiments/serve/load.py                       # all parts but `time`
    python experiments/serve/load.py streams hostile       # some
    python experiments/serve/load.py time                  # on an idle machine
    python experiments/serve/load.py check faults          # writes nothing

Trains a small GPT over bytes and a table, serves each with `bmx serve` in a process of its own, and
writes load.json here, with the date of each part:

streams   200 concurrent streams (client `openai`), unequal prompts and lengths, seeded: each text
          equals that of the engine run one request at a time; then more requests than the queue
          holds: every refusal is 429 with Retry-After, every answer right.
vanish    100 clients that leave, streaming and not, amid others: rows are free again.
predict   200 concurrent clients of /v1/predict: rows equal those of `bmx predict`.
hostile   1,000 requests of `hostile.py` against each server: none answered with 5xx or a traceback,
          none without an answer in time; the server answers correctly afterwards.
faults    SIGKILL amid traffic, restart on the same port; a second server on the port; a model
          directory that is gone under a running server, and at its restart.
time      `streams` and `predict` with figures: first token, whole answer (p50, p99), tokens/s.
"""

import asyncio
import collections
import contextlib
import csv
import datetime
import json
import os
import pathlib
import platform
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import numpy as np
import openai

from bmx import config as recipes
from bmx.core.errors import InputError
from bmx.modes import Request, services
from bmx.modes.start import Run, open_run
from bmx.serve.openai import read_request
from bmx.serve.text import Options
from bmx.train.rundir import read_config

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
hostile = runpy.run_path(str(HERE / 'hostile.py'))
STREAMS, CLIENTS, HOSTILE = 200, 200, 1000
SERVE = ('--rows=16', '--max_waiting=256', '--timeout=300')
QUESTION = {'prompt': 'def main', 'max_tokens': 6, 'seed': 1}


class Server:
  """A `bmx serve` in a process of its own."""

  def __init__(self, run: pathlib.Path, *flags: str, port: int = 0):
    command = [sys.executable, '-m', 'bmx', 'serve', str(run), f'--port={port}', *flags]
    self.log = tempfile.TemporaryFile('w+')  # noqa: SIM115
    self.process = subprocess.Popen(command, cwd=ROOT, stderr=self.log, stdout=self.log)
    self.port = self._wait()

  def _wait(self) -> int:
    while self.process.poll() is None:
      for line in self.text().splitlines():
        if ' at http://127.0.0.1:' in line:
          return int(line.partition('127.0.0.1:')[2].partition(',')[0])
      time.sleep(0.2)
    raise RuntimeError(self.text())

  def text(self) -> str:
    """All that it wrote."""
    self.log.seek(0)
    return self.log.read()

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self.port}'

  def end(self, sign: int = signal.SIGTERM) -> int:
    """Sends a signal -> the exit code."""
    self.process.send_signal(sign)
    return self.process.wait(120)


@contextlib.contextmanager
def serving(run: pathlib.Path, *flags: str) -> Iterator[Server]:
  """Serves a run; asserts a clean end."""
  server = Server(run, *flags)
  try:
    yield server
    assert server.end() == 0, server.text()
  finally:
    server.process.kill()


def train(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path, list[dict[str, Any]]]:
  """Returns a run of a language model, one of a table, and instances of the table."""
  bmx('train', 'gpt_char:tiny', '--length=128', f'--workdir={folder / "gpt"}')
  return folder / 'gpt', *train_table(folder)


def train_table(folder: pathlib.Path) -> tuple[pathlib.Path, list[dict[str, Any]]]:
  """Returns a run of FOLDER/people.csv, and its instances."""
  draw = random.Random(0)
  rows = [{'age': draw.randint(18, 90), 'city': draw.choice(['Rome', 'Oslo', 'Lima']),
           'income': round(draw.gauss(30, 9), 2)} for _ in range(600)]  # fmt: skip
  with open(folder / 'people.csv', 'w') as file:
    writer = csv.writer(file)
    writer.writerow([*rows[0], 'bought'])
    writer.writerows([*r.values(), 'yes' if r['age'] + r['income'] > 85 else 'no'] for r in rows)
  bmx('train', 'table', f'--data.path={folder / "people.csv"}', '--data.target=bought',
      '--epochs=3', f'--workdir={folder / "table"}')  # fmt: skip
  return folder / 'table', rows


def bmx(*arguments: str) -> subprocess.CompletedProcess[str]:
  """Runs a command; raises if it fails."""
  return subprocess.run([sys.executable, '-m', 'bmx', *arguments], cwd=ROOT, check=True, text=True,
                        capture_output=True)  # fmt: skip


def questions(count: int, seed: int = 0) -> list[dict[str, Any]]:
  """Bodies of completions: unequal prompts and lengths."""
  draw, text = random.Random(seed), pathlib.Path(random.__file__).read_text()
  found = []
  for number in range(count):
    start, size = draw.randrange(len(text) - 100), draw.randint(3, 70)
    found.append({'prompt': text[start : start + size], 'max_tokens': draw.randint(1, 50),
                  'seed': number, 'temperature': draw.choice((0.0, 0.8, 1.0))})  # fmt: skip
  return found


class Alone:
  """The engine of a run in this process, one request at a time."""

  def __init__(self, run: pathlib.Path):
    request = Request(stored_config(run), 'gpt_char-tiny', str(run))
    recipes.apply(request.config, ['serve.rows=4'])
    x, workdir, stored = open_run(request, read=False, evals=False)
    options = Options(**x.generate)
    made = Run(x, workdir, workdir, stored, 'latest')
    self.service, _ = services.completions(made, options)
    self.options = options
    self.service.worker.start()

  def text(self, body: dict[str, Any]) -> str:
    """The text of an answer."""
    served = self.service.completions
    asked = read_request(body, chat=False, served=served.names, defaults=self.options)

    async def joined() -> str:
      parts = served.pieces(served.jobs(asked), 300)
      return ''.join([piece.text async for piece in parts])

    return asyncio.run(joined())


def stored_config(run: pathlib.Path) -> Any:
  """The config of a run, as `bmx serve` reads it."""
  return recipes.from_stored(read_config(run)['config'])


async def stream(client: openai.AsyncOpenAI, body: dict[str, Any]) -> dict[str, Any]:
  """One stream: its text, its tokens, and seconds to the first part and the last."""
  began, first, text, tokens = time.perf_counter(), 0.0, '', 0
  options = {'include_usage': True}
  made = await client.completions.create(model='gpt_char-tiny', stream=True, stream_options=options,
                                         **body)  # fmt: skip
  async for part in made:
    first = first or time.perf_counter() - began
    text += part.choices[0].text if part.choices else ''
    tokens = part.usage.completion_tokens if part.usage else tokens
  return {'text': text, 'tokens': tokens, 'first': first, 'whole': time.perf_counter() - began}


def streams(server: Server, alone: Alone, timed: bool) -> dict[str, Any]:
  """200 streams at once, then more than the queue holds."""
  asked = questions(STREAMS)
  expected = [alone.text(body) for body in asked]

  async def run(bodies: Sequence[dict[str, Any]]) -> tuple[list[Any], float]:
    limits = httpx.Limits(max_connections=2000)
    async with httpx.AsyncClient(limits=limits, timeout=300) as http:
      client = openai.AsyncOpenAI(base_url=f'{server.url}/v1', api_key='-', max_retries=0,
                                  http_client=http)  # fmt: skip
      began = time.perf_counter()
      found = await asyncio.gather(*[stream(client, b) for b in bodies], return_exceptions=True)
      return found, time.perf_counter() - began

  found, seconds = asyncio.run(run(asked))
  lost = [f for f in found if isinstance(f, BaseException)]
  mixed = [n for n, (f, e) in enumerate(zip(found, expected, strict=True))
           if isinstance(f, dict) and f['text'] != e]  # fmt: skip
  result: dict[str, Any] = {'streams': STREAMS, 'lost': len(lost), 'mixed_up': len(mixed)}
  if timed:
    tokens = sum(f['tokens'] for f in found)
    return result | {'tokens_per_second': round(tokens / seconds, 1), 'seconds': round(seconds, 2),
                     **{f'{k}_seconds': spread([f[k] for f in found])
                        for k in ('first', 'whole')}}  # fmt: skip
  many = questions(STREAMS * 2, seed=1)
  found, _ = asyncio.run(run(many))
  refused = [f for f in found if isinstance(f, openai.RateLimitError)]
  other = [f for f in found if isinstance(f, BaseException) and f not in refused]
  answered = [(b, f) for b, f in zip(many, found, strict=True) if isinstance(f, dict)]
  wrong = [b for b, f in answered if alone.text(b) != f['text']]
  queue = {
    'requests': len(many),
    'refused_429': len(refused),
    'other_errors': len(other),
    'wrong': len(wrong),
    'with_retry_after': sum('retry-after' in f.response.headers for f in refused),
  }
  assert not (lost or mixed or other or wrong), (result, queue, lost[:2], other[:2])
  assert queue['with_retry_after'] == len(refused) > 0, queue
  return result | {'queue': queue}


def vanish(server: Server, alone: Alone) -> dict[str, Any]:
  """Clients that leave; the others are answered, and the rows are free."""
  leaving = [q | {'max_tokens': 50} for q in questions(100, seed=2)]
  staying = questions(40, seed=3)

  async def leave(http: httpx.AsyncClient, number: int, body: dict[str, Any]) -> None:
    whole = body | {'stream': number % 2 == 0}
    with contextlib.suppress(TimeoutError, httpx.HTTPError):
      async with asyncio.timeout(0.2 + 0.01 * number):
        async with http.stream('POST', '/v1/completions', json=whole) as response:
          async for _ in response.aiter_bytes():
            return

  async def stay(http: httpx.AsyncClient, body: dict[str, Any]) -> str:
    return (await http.post('/v1/completions', json=body)).json()['choices'][0]['text']

  async def run() -> tuple[list[str], float]:
    limits = httpx.Limits(max_connections=500)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=300) as http:
      leaves = [asyncio.create_task(leave(http, n, b)) for n, b in enumerate(leaving)]
      texts = await asyncio.gather(*[stay(http, b) for b in staying])
      await asyncio.gather(*leaves)
      began = time.perf_counter()
      while pending(await http.get('/metrics')) and time.perf_counter() - began < 60:
        await asyncio.sleep(0.05)
      assert not pending(await http.get('/metrics'))
      return texts, time.perf_counter() - began

  texts, seconds = asyncio.run(run())
  wrong = sum(t != alone.text(b) for t, b in zip(texts, staying, strict=True))
  assert not wrong, wrong
  return {'left': len(leaving), 'stayed': len(staying), 'wrong': wrong,
          'seconds_until_free': round(seconds, 2)}  # fmt: skip


def pending(response: httpx.Response) -> int:
  """The gauge of requests that wait or run."""
  line = next(x for x in response.text.splitlines() if x.startswith('bmx_pending_requests '))
  return int(float(line.split()[1]))


def expected_rows(run: pathlib.Path, instances: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """The rows of `bmx predict`."""
  with tempfile.TemporaryDirectory() as folder:
    source, target = pathlib.Path(folder) / 'in.jsonl', pathlib.Path(folder) / 'out.jsonl'
    source.write_text(''.join(json.dumps(i) + '\n' for i in instances))
    bmx('predict', str(run), f'--input={source}', f'--output={target}')
    return [json.loads(line) for line in target.read_text().splitlines()]


def differences(found: Sequence[Any], expected: Sequence[Any]) -> tuple[int, float]:
  """Rows that differ in more than the digits of probabilities, and the largest difference there."""
  largest, wrong = 0.0, 0
  for row, other in zip(found, expected, strict=True):
    same = {k: v for k, v in row.items() if k not in ('row', 'probability')}
    wrong += any(other[k] != v for k, v in same.items()) or set(row) != set(other)
    gaps = [abs(v - other['probability'][k]) for k, v in row['probability'].items()]
    largest = max(largest, *gaps)
  return wrong, largest


def predict(
  server: Server, run: pathlib.Path, rows: Sequence[dict[str, Any]], timed: bool
) -> dict[str, Any]:
  """200 clients with one to five instances each, five times."""
  draw = random.Random(0)
  expected = expected_rows(run, rows)
  plans = [[(n := draw.randint(0, len(rows) - 6), n + draw.randint(1, 5)) for _ in range(5)]
           for _ in range(CLIENTS)]  # fmt: skip

  async def client(http: httpx.AsyncClient, plan: Any) -> list[Any]:
    answers = []
    for a, b in plan:
      began = time.perf_counter()
      response = await http.post('/v1/predict', json={'instances': rows[a:b]})
      answers.append((a, b, response, time.perf_counter() - began))
    return answers

  async def run_all() -> tuple[list[Any], float]:
    limits = httpx.Limits(max_connections=500)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=300) as http:
      began = time.perf_counter()
      found = await asyncio.gather(*[client(http, plan) for plan in plans])
      return [a for answers in found for a in answers], time.perf_counter() - began

  answers, seconds = asyncio.run(run_all())
  lost, wrong, largest, count = 0, 0, 0.0, 0
  for a, b, response, _ in answers:
    if response.status_code != 200:
      lost += 1
      continue
    bad, gap = differences(response.json()['predictions'], expected[a:b])
    wrong, largest, count = wrong + bad, max(largest, gap), count + b - a
  assert not (lost or wrong) and largest < 1e-6, (lost, wrong, largest)
  result = {
    'clients': CLIENTS,
    'requests': len(answers),
    'instances': count,
    'lost': lost,
    'wrong': wrong,
    'largest_difference': float(f'{largest:.1e}'),
  }
  if timed:
    result |= {
      'whole_seconds': spread([a[3] for a in answers]),
      'requests_per_second': round(len(answers) / seconds, 1),
    }
  return result


def attack(server: Server, path: str, good: dict[str, Any], check: Any) -> dict[str, Any]:
  """1,000 hostile requests; returns counts of what came back."""
  statuses: collections.Counter[int] = collections.Counter()
  wrong = []
  for number, (kind, raw) in enumerate(hostile['requests'](0, HOSTILE, path, good)):
    try:
      reply = hostile['send'](server.port, raw)
      found = hostile['verdict'](reply)
    except (OSError, ValueError) as error:
      assert server.process.poll() is None, (kind, raw[:500], server.text())
      reply, found = hostile['Reply'](-1, ''), repr(error)
    statuses[reply.status] += 1
    if found:
      wrong.append((number, kind, found))
  assert server.process.poll() is None, server.text()
  check()
  log = server.text()
  result = {
    'requests': HOSTILE,
    'wrong': len(wrong),
    'logged_tracebacks': log.count('Traceback'),
    'statuses': {str(k): n for k, n in sorted(statuses.items())},
  }
  if wrong or 'Traceback' in log:
    sys.stderr.write(f'{wrong[:20]}\n{log[-6000:]}\n')
  assert not wrong, result
  return result


def faults(run: pathlib.Path, alone: Alone) -> dict[str, Any]:
  """Kills a server amid traffic; takes its directory away; starts two on one port."""
  server = Server(run, *SERVE)
  port, expected = server.port, alone.text(QUESTION)
  second = subprocess.run([sys.executable, '-m', 'bmx', 'serve', str(run), f'--port={port}'],
                          cwd=ROOT, capture_output=True, text=True, check=False)  # fmt: skip
  assert second.returncode == 2 and second.stderr.count('error:') == 1, second.stderr

  async def traffic() -> int:
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=60) as http:
      tasks = [asyncio.create_task(http.post('/v1/completions', json=q)) for q in questions(60)]
      await asyncio.sleep(0.3)
      server.process.kill()
      found = await asyncio.gather(*tasks, return_exceptions=True)
      return sum(isinstance(f, httpx.HTTPError) for f in found)

  cut = asyncio.run(traffic())
  server.process.wait(30)
  server = Server(run, *SERVE, port=port)
  assert answer(server) == expected
  moved = run.with_name('elsewhere')
  run.rename(moved)
  assert answer(server) == expected  # the weights are in memory
  assert server.end() == 0
  try:
    Server(run, *SERVE)
    raise AssertionError('a server without a run')
  except RuntimeError as error:
    message = [line for line in str(error).splitlines() if line.startswith('error:')]
    assert len(message) == 1 and 'Traceback' not in str(error), error
  moved.rename(run)
  return {'cut_by_sigkill': cut, 'same_port_again': True, 'second_server_exit_code': 2,
          'directory_gone': 'answers continue; a restart ends with 2'}  # fmt: skip


def answer(server: Server) -> str:
  """The text of QUESTION."""
  response = httpx.post(f'{server.url}/v1/completions', json=QUESTION, timeout=60)
  return response.json()['choices'][0]['text']


def spread(values: Sequence[float]) -> dict[str, float]:
  """Median and 99th percentile."""
  return {f'p{q}': round(float(np.percentile(values, q)), 3) for q in (50, 99)}


def main(parts: Sequence[str]) -> None:
  """Runs parts and adds them to load.json."""
  file = HERE / 'load.json'
  result = json.loads(file.read_text()) if file.is_file() else {}

  def note(name: str, values: dict[str, Any]) -> None:
    facts = {'date': str(datetime.date.today()), 'machine': platform.machine(),
             'cores': os.cpu_count()}  # fmt: skip
    result[name] = facts | values
    if 'check' not in parts:
      file.write_text(json.dumps(result, indent=2) + '\n')
    sys.stderr.write(f'{name}: {json.dumps(values)}\n')

  with tempfile.TemporaryDirectory() as folder:
    gpt, table, rows = train(pathlib.Path(folder))
    if set(parts) & {'streams', 'vanish', 'hostile', 'faults', 'time'}:
      alone = Alone(gpt)
      with serving(gpt, *SERVE) as server:
        if 'streams' in parts:
          note('streams', streams(server, alone, timed=False))
        if 'vanish' in parts:
          note('vanish', vanish(server, alone))
        if 'time' in parts:
          note('time_streams', streams(server, alone, timed=True))
        if 'hostile' in parts:
          expected = alone.text(QUESTION)
          check = lambda: assert_equal(answer(server), expected)
          note('hostile_completions', attack(server, '/v1/completions', QUESTION, check))
          chat = {'messages': [{'role': 'user', 'content': 'a'}], 'max_tokens': 2}
          note('hostile_chat', attack(server, '/v1/chat/completions', chat, check))
      if 'faults' in parts:
        note('faults', faults(gpt, alone))
    if set(parts) & {'predict', 'hostile', 'time'}:
      capture = f'--capture.folder={pathlib.Path(folder) / "captured"}'
      with serving(table, '--max_waiting=256', capture) as server:
        if 'predict' in parts:
          note('predict', predict(server, table, rows, timed=False))
        if 'time' in parts:
          note('time_predict', predict(server, table, rows, timed=True))
        if 'hostile' in parts:
          check = lambda: predict(server, table, rows[:50], timed=False)
          note('hostile_predict', attack(server, '/v1/predict', {'instances': rows[:2]}, check))
          correction = {'id': 'pred-1', 'index': 0, 'label': 'yes', 'rating': 1, 'answer': 'a'}
          note('hostile_feedback', attack(server, '/v1/feedback', correction, check))


def assert_equal(found: Any, expected: Any) -> None:
  """Raises AssertionError with both values."""
  assert found == expected, (found, expected)


if __name__ == '__main__':
  known = ('streams', 'vanish', 'predict', 'hostile', 'faults', 'time', 'check')
  chosen = sys.argv[1:] or known[:-2]
  if set(chosen) - set(known):
    raise InputError(f'{" ".join(chosen)}: expected parts of {", ".join(known)}')
  main(chosen)
