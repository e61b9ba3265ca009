"""SIGKILL of a server and of the promoting process amid promotions; the pointer stays whole.

    python experiments/serve/promotion.py           # 20 rounds; writes promotion.json here
    python experiments/serve/promotion.py check 1   # one round; writes nothing

Trains a table twice, with other numbers of epochs. In each round `bmx serve POINTER` answers four
clients, a process promotes one run and the other in turn without a pause, and both processes get
SIGKILL, each at a random moment. Then

- the pointer is whole, and names one of both runs;
- every answer is that of one of both models as a whole, and none before the kill has failed;
- the next round's server, which reads that pointer, gives the answers of the run that it names.

Every other round kills the promoting process alone, and the server then follows a last `bmx
promote`. A `.part` file is left by each kill that fell into the write of a pointer.
"""

import contextlib
import datetime
import json
import os
import pathlib
import platform
import random
import runpy
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import httpx

from bmx.feedback import pointer

HERE = pathlib.Path(__file__).parent
load = runpy.run_path(str(HERE / 'load.py'))
ROUNDS, CLIENTS, FOLLOW_SECONDS = 20, 4, 60
# Most of its time is writes; every eighth promotion verifies the checkpoint, as the command does.
PROMOTES = """
import itertools, sys
from bmx.feedback import pointer
from bmx.modes import Request, promote
from bmx.runtime.storage import place
name, *runs = sys.argv[1:]
steps = {}
for n in itertools.count():
  run = runs[n % len(runs)]
  if n % 8 < len(runs):
    promote.run(Request(None, '', workdir=run, pointer=name, force=True))
    steps[run] = pointer.read(name).target.step
  else:
    pointer.promote(name, pointer.target_of(place(run), steps[run]))
  sys.stdout.flush()
"""
Rows = list[dict[str, Any]]


def train(folder: pathlib.Path) -> tuple[list[str], Rows, list[Rows]]:
  """Returns two runs of one table, some instances, and the rows that each run predicts."""
  first, rows = load['train_table'](folder)
  second = folder / 'longer'
  load['bmx']('train', 'table', f'--data.path={folder / "people.csv"}', '--data.target=bought',
              '--epochs=5', f'--workdir={second}')  # fmt: skip
  asked = rows[:3]
  expected = [load['expected_rows'](run, asked) for run in (first, second)]
  assert not same(expected[0], expected[1])
  return [str(first), str(second)], asked, expected


def same(found: Rows, expected: Rows) -> bool:
  """Whether predictions are equal but for the last digits."""
  wrong, gap = load['differences'](found, expected)
  return not wrong and gap < 1e-6


class Clients:
  """Threads that ask a server until it is gone.

  Attributes:
    answers: predictions of each answer.
    refused: statuses other than 200.
  """

  def __init__(self, url: str, asked: Rows):
    self.url, self.asked = url, asked
    self.answers: list[Rows] = []
    self.refused: list[int] = []
    self.ended = threading.Event()
    self.threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
    for thread in self.threads:
      thread.start()

  def _run(self) -> None:
    with httpx.Client(base_url=self.url, timeout=60) as http, contextlib.suppress(httpx.HTTPError):
      while not self.ended.is_set():
        response = http.post('/v1/predict', json={'instances': self.asked})
        if response.status_code == 200:
          self.answers.append(response.json()['predictions'])
        else:
          self.refused.append(response.status_code)

  def stop(self) -> None:
    """Ends the threads."""
    self.ended.set()
    for thread in self.threads:
      thread.join(60)


@contextlib.contextmanager
def promoting(name: str, runs: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
  """Starts a process that promotes without a pause; yields it after its first promotion."""
  command = [sys.executable, '-c', PROMOTES, name, *runs]
  with subprocess.Popen(command, cwd=load['ROOT'], stdout=subprocess.PIPE, text=True) as process:
    assert process.stdout is not None and process.stdout.readline()
    reader = threading.Thread(target=lambda out: [None for _ in out], args=(process.stdout,))
    reader.start()
    try:
      yield process
    finally:
      process.kill()
      reader.join(60)


def play(name: str, runs: list[str], asked: Rows, expected: list[Rows], draw: random.Random) -> Any:
  """Plays one round; returns its counts."""
  named = runs.index(pointer.read(name).target.run)
  server = load['Server'](pathlib.Path(name))
  clients = Clients(server.url, asked)
  alone = draw.random() < 0.5
  try:
    first = httpx.post(f'{server.url}/v1/predict', json={'instances': asked}, timeout=60).json()
    assert same(first['predictions'], expected[named]), 'not the run that the pointer names'
    with promoting(name, runs) as promoter:
      kills = [(draw.uniform(0, 2.5), promoter)]
      kills += [] if alone else [(draw.uniform(0, 2.5), server.process)]
      began = time.monotonic()
      for moment, process in sorted(kills, key=lambda kill: kill[0]):
        time.sleep(max(0.0, began + moment - time.monotonic()))
        process.kill()
        process.wait(60)
        assert pointer.read(name).target.run in runs
    if alone:
      follow(server, name, runs, asked, expected)
  finally:
    clients.stop()
    server.process.kill()
    server.process.wait(60)
  target = pointer.read(name).target
  assert target.run in runs, target
  mixed = [a for a in clients.answers if not any(same(a, e) for e in expected)]
  assert clients.answers and not mixed and not clients.refused, (mixed[:1], clients.refused[:5])
  text = server.text()
  assert 'Traceback' not in text, text
  return {'killed': 'promoter' if alone else 'both', 'answers': len(clients.answers),
          'swaps': text.count('promoted   ')}  # fmt: skip


def follow(server: Any, name: str, runs: list[str], asked: Rows, expected: list[Rows]) -> None:
  """Promotes the run that is not named, and waits until the server answers as it does."""
  other = 1 - runs.index(pointer.read(name).target.run)
  load['bmx']('promote', name, runs[other], '--force')
  deadline = time.monotonic() + FOLLOW_SECONDS
  while time.monotonic() < deadline:
    answer = httpx.post(f'{server.url}/v1/predict', json={'instances': asked}, timeout=60).json()
    if same(answer['predictions'], expected[other]):
      return
    time.sleep(0.2)
  raise AssertionError(f'the server does not follow the pointer: {server.text()}')


def main(rounds: int, writes: bool) -> None:
  """Plays rounds and writes promotion.json."""
  played: list[dict[str, Any]] = []
  with tempfile.TemporaryDirectory() as folder:
    place = pathlib.Path(folder)
    runs, asked, expected = train(place)
    name = str(place / 'served.json')
    load['bmx']('promote', name, runs[0], '--force')
    for number in range(rounds):
      played.append(play(name, runs, asked, expected, random.Random(number)))
      sys.stderr.write(f'{number}: {json.dumps(played[-1])}\n')
    result = {
      'date': str(datetime.date.today()),
      'machine': platform.machine(),
      'cores': os.cpu_count(),
      'rounds': rounds,
      'servers_killed': sum(r['killed'] == 'both' for r in played),
      'promoters_killed': rounds,
      'killed_amid_a_write': len([*place.glob('served.json.*.part')]),
      'answers': sum(r['answers'] for r in played),
      'swaps': sum(r['swaps'] for r in played),
      'damaged_pointers': 0,
      'mixed_answers': 0,
    }
  if writes:
    (HERE / 'promotion.json').write_text(json.dumps(result, indent=2) + '\n')
  sys.stderr.write(json.dumps(result) + '\n')


if __name__ == '__main__':
  chosen = [a for a in sys.argv[1:] if a != 'check']
  main(int(chosen[0]) if chosen else ROUNDS, 'check' not in sys.argv[1:])
